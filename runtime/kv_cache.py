"""Keys and values of every layer, in buffers that the decoder graph writes in place."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvlm_onnx.names import LOGITS, past_names, present_names
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.providers import import_onnxruntime

# What a graph's inputs may hold keys and values in.
CACHE_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class KVCache:
    """One buffer per layer for keys and one for values, each bound once as past and as present.

    GroupQueryAttention finds both on the same memory and appends in place, so a step moves only its
    own keys and values. Several graphs may fill one cache in turn.

    Attributes:
        bindings: an IO binding for each session, complete but for inputs_embeds and attention_mask.
        logits: float32 [1, 1, vocab_size], written by each run of a graph that has logits.
        length: positions filled.
        capacity: positions there is room for.
    """

    def __init__(self, sessions: Sequence[Any], decoder: DecoderFormat, capacity: int) -> None:
        ort = import_onnxruntime()
        self.length, self.capacity = 0, capacity
        self.logits = np.empty((1, 1, decoder.vocab_size), np.float32)
        self.bindings = [session.io_binding() for session in sessions]
        for session, binding in zip(sessions, self.bindings, strict=True):
            if any(output.name == LOGITS for output in session.get_outputs()):
                logits = ort.OrtValue.ortvalue_from_numpy(self.logits)
                binding.bind_ortvalue_output(LOGITS, logits)
        inputs = {value.name: value.type for value in sessions[0].get_inputs()}
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        for layer in range(decoder.num_hidden_layers):
            for past, present in zip(past_names(layer), present_names(layer), strict=True):
                # ONNX Runtime's own memory, which the bindings keep alive; they would not keep an
                # array's. What is not yet filled is never read.
                buffer = ort.OrtValue.ortvalue_from_shape_and_type(
                    shape, CACHE_DTYPES[inputs[past]]
                )
                for binding in self.bindings:
                    binding.bind_ortvalue_input(past, buffer)
                    binding.bind_ortvalue_output(present, buffer)
