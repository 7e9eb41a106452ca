"""Keys and values of every layer, in buffers that the decoder graph writes in place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.names import LOGITS, past_names, present_names
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.providers import import_onnxruntime, in_one_line

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.session import GraphSession

# What a graph's inputs may hold keys and values in. numpy has no bfloat16: ONNX's number of it.
BFLOAT16: Final = 16
CACHE_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": BFLOAT16,
}


class KVCache:
    """One buffer per layer for keys and one for values, each bound once as past and as present.

    GroupQueryAttention finds both on the same memory and appends in place, so a step moves only its
    own keys and values. Several graphs may fill one cache in turn.

    Attributes:
        bindings: an IO binding for each session, complete but for inputs_embeds and attention_mask.
        token: float32 [1, 1, hidden_size], the decoder's input where it is one token.
        logits: float32 [1, 1, vocab_size], written by each run of a graph that has logits.
        length: positions filled.
        capacity: positions there is room for.
    """

    def __init__(
        self, sessions: Sequence["GraphSession"], decoder: DecoderFormat, capacity: int
    ) -> None:
        """Allocate it where the sessions' tensors live.

        Raises:
            ProviderError: there is not enough memory.
        """
        values = import_onnxruntime().OrtValue
        memory = sessions[0].choice.memory
        self.length, self.capacity = 0, capacity
        self.logits = np.empty((1, 1, decoder.vocab_size), np.float32)
        self.bindings = [session.io_binding() for session in sessions]
        for session, binding in zip(sessions, self.bindings, strict=True):
            if any(output.name == LOGITS for output in session.get_outputs()):
                binding.bind_ortvalue_output(LOGITS, values.ortvalue_from_numpy(self.logits))
        inputs = {value.name: value.type for value in sessions[0].get_inputs()}
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        try:
            self.token = values.ortvalue_from_shape_and_type(
                (1, 1, decoder.hidden_size), np.float32, memory
            )
            for layer in range(decoder.num_hidden_layers):
                for past, present in zip(past_names(layer), present_names(layer), strict=True):
                    # ONNX Runtime's own memory, which the bindings keep alive; they would not keep
                    # an array's. What is not yet filled is never read.
                    buffer = values.ortvalue_from_shape_and_type(
                        shape, CACHE_DTYPES[inputs[past]], memory
                    )
                    for binding in self.bindings:
                        binding.bind_ortvalue_input(past, buffer)
                        binding.bind_ortvalue_output(present, buffer)
        except Exception as error:
            raise ProviderError(
                f"no memory for keys and values of {capacity} positions ({in_one_line(error)}); "
                "ask for fewer new tokens, or free some."
            ) from None
