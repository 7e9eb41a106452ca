"""The decoder in ONNX's own operators: Attention, RotaryEmbedding, RMSNormalization, TensorScatter.

For runtimes and compilers without com.microsoft operators. Inputs, outputs, weights and cache are
those of decoder.py. The cache is one buffer of fixed length; TensorScatter writes it in place if
the runtime binds past and present to the same memory.

Source: ONNX operators, opset 24.
"""

from typing import Final

import onnx_ir as ir

from fastvlm_onnx.export.graphs.decoder import DecoderOperators, RMSNorm
from fastvlm_onnx.export.graphs.decoder_attention import Attention, AttentionInputs, KeyValue
from fastvlm_onnx.export.graphs.layers import Op


class StandardRMSNorm(RMSNorm):
    """RMSNormalization of a plain sum."""

    def forward(
        self, op: Op, x: ir.Value, residual: ir.Value | None = None
    ) -> tuple[ir.Value, ir.Value]:
        total = x if residual is None else op.Add(x, residual)
        return op.RMSNormalization(total, self.weight, axis=-1, epsilon=self.eps), total


class StandardAttentionInputs(AttentionInputs):
    """Inputs of attention that all layers share: write position, rotary positions, and mask.

    Attributes:
        start: int64 [B], the cache position of the first new key.
        positions: int64 [B, sequence_length], the position of each new token.
        is_seen: bool [B, 1, sequence_length, total], the causal mask.
        total: int64 [1], the length of the attention mask.
    """

    def read_lengths(self, op: Op, valid: ir.Value, total: ir.Value) -> None:
        length = op.Shape(self.inputs_embeds, start=1, end=2)
        # A prompt with padding on its right has fewer valid tokens than rows. It starts at 0.
        self.start = op.Max(op.Sub(valid, length), [0])
        steps = op.Range(0, op.Squeeze(length, [0]), 1)
        self.positions = op.Add(op.Unsqueeze(self.start, [1]), steps)
        keys = op.Range(0, op.Squeeze(total, [0]), 1)
        # A token attends to keys up to its own position.
        self.is_seen = op.LessOrEqual(keys, op.Unsqueeze(self.positions, [1, 3]))
        self.total = total


class StandardAttention(Attention):
    def attend(
        self, op: Op, qkv: ir.Value, past: KeyValue, inputs: AttentionInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        assert isinstance(inputs, StandardAttentionInputs)
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        head_dim = self.config.head_dim

        def by_head(x: ir.Value, count: int) -> ir.Value:
            """[B, N, count * head_dim] -> [B, count, N, head_dim]."""
            return op.Transpose(op.Reshape(x, [0, 0, count, head_dim]), perm=[0, 2, 1, 3])

        def rotated(x: ir.Value) -> ir.Value:
            return op.RotaryEmbedding(x, inputs.cos, inputs.sin, inputs.positions)

        def filled(buffer: ir.Value) -> ir.Value:
            # Unwritten slots may hold NaN, which a mask does not remove (0 * NaN is NaN).
            return op.Slice(buffer, [0], inputs.total, [2])

        widths = [count * head_dim for count in (heads, kv_heads, kv_heads)]
        q, k, v = op.Split(qkv, widths, axis=-1, _outputs=3)
        key = op.TensorScatter(past[0], rotated(by_head(k, kv_heads)), inputs.start, axis=2)
        value = op.TensorScatter(past[1], by_head(v, kv_heads), inputs.start, axis=2)
        mixed = op.Attention(rotated(by_head(q, heads)), filled(key), filled(value), inputs.is_seen)
        merged = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), [0, 0, heads * head_dim])
        return merged, key, value


STANDARD_OPERATORS: Final = DecoderOperators(
    norm=StandardRMSNorm,
    attention=StandardAttention,
    attention_inputs=StandardAttentionInputs,
    opset=24,  # the first version with TensorScatter
)
