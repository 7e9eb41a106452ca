"""Keys and values of every layer, in buffers that the decoder graph writes in place."""

from typing import Any

import numpy as np

from fastvlm_onnx.names import LOGITS, past_names, present_names
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.providers import import_onnxruntime


class KVCache:
    """One buffer per layer for keys and one for values, each bound once as past and as present.

    GroupQueryAttention finds both on the same memory and appends in place, so a step moves only its
    own keys and values.

    Attributes:
        binding: the session's IO binding, complete but for inputs_embeds and attention_mask.
        logits: float32 [1, 1, vocab_size], written by each run.
        length: positions filled.
        capacity: positions there is room for.
    """

    def __init__(self, session: Any, decoder: DecoderFormat, capacity: int) -> None:
        ort = import_onnxruntime()
        self.binding = session.io_binding()
        self.length, self.capacity = 0, capacity
        self.logits = np.empty((1, 1, decoder.vocab_size), np.float32)
        self.binding.bind_ortvalue_output(LOGITS, ort.OrtValue.ortvalue_from_numpy(self.logits))
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        for layer in range(decoder.num_hidden_layers):
            for past, present in zip(past_names(layer), present_names(layer), strict=True):
                # ONNX Runtime's own memory, which the binding keeps alive; it would not keep an
                # array's. What is not yet filled is never read.
                buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
                self.binding.bind_ortvalue_input(past, buffer)
                self.binding.bind_ortvalue_output(present, buffer)
