"""The decoder in ONNX's own operators: Attention, RotaryEmbedding, RMSNormalization, TensorScatter.

For runtimes and compilers that know no com.microsoft operator. Inputs, outputs and weights are
those of decoder.py, and so is the cache: one buffer of fixed length, which TensorScatter writes in
place where a runtime binds past and present to the same memory.

Source: ONNX operators, opset 24.
"""

from typing import Final

import onnx_ir as ir

from fastvlm_onnx.export.graphs.decoder import Attention, Cached, CacheInputs, Operators, RMSNorm
from fastvlm_onnx.export.graphs.layers import Op


class StandardRMSNorm(RMSNorm):
    """RMSNormalization, after a plain sum."""

    def forward(
        self, op: Op, x: ir.Value, residual: ir.Value | None = None
    ) -> tuple[ir.Value, ir.Value]:
        total = x if residual is None else op.Add(x, residual)
        return op.RMSNormalization(total, self.weight, axis=-1, epsilon=self.eps), total


class StandardCacheInputs(CacheInputs):
    """Where to write, what angle each position has, and who may look at whom."""

    def read_lengths(self, op: Op, valid: ir.Value, total: ir.Value) -> None:
        length = op.Shape(self.inputs_embeds, start=1, end=2)
        # A prompt padded on its right is shorter than what the run appends: it begins at 0.
        self.start = op.Max(op.Sub(valid, length), [0])
        steps = op.Range(0, op.Squeeze(length, [0]), 1)
        self.positions = op.Add(op.Unsqueeze(self.start, [1]), steps)  # [B, sequence_length]
        keys = op.Range(0, op.Squeeze(total, [0]), 1)
        # A key is seen from its own position on: bool [B, 1, sequence_length, total].
        self.is_seen = op.LessOrEqual(keys, op.Unsqueeze(self.positions, [1, 3]))
        self.total = total


class StandardAttention(Attention):
    def attend(
        self, op: Op, qkv: ir.Value, past: Cached, cache: CacheInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        assert isinstance(cache, StandardCacheInputs)
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        head_dim = self.config.head_dim

        def by_head(x: ir.Value, count: int) -> ir.Value:
            """[B, N, count * head_dim] -> [B, count, N, head_dim]."""
            return op.Transpose(op.Reshape(x, [0, 0, count, head_dim]), perm=[0, 2, 1, 3])

        def rotated(x: ir.Value) -> ir.Value:
            return op.RotaryEmbedding(x, cache.cos, cache.sin, cache.positions)

        def filled(buffer: ir.Value) -> ir.Value:
            # What lies beyond is not a number always, and no mask hides that.
            return op.Slice(buffer, [0], cache.total, [2])

        widths = [count * head_dim for count in (heads, kv_heads, kv_heads)]
        q, k, v = op.Split(qkv, widths, axis=-1, _outputs=3)
        key = op.TensorScatter(past[0], rotated(by_head(k, kv_heads)), cache.start, axis=2)
        value = op.TensorScatter(past[1], by_head(v, kv_heads), cache.start, axis=2)
        mixed = op.Attention(rotated(by_head(q, heads)), filled(key), filled(value), cache.is_seen)
        merged = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), [0, 0, heads * head_dim])
        return merged, key, value


# TensorScatter came with 24.
STANDARD_OPERATORS: Final = Operators(
    StandardRMSNorm, StandardAttention, StandardCacheInputs, opset=24
)
