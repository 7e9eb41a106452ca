"""The decoder in operators that ONNX has had since opset 17, with a cache that grows.

For runtimes and compilers without com.microsoft operators. Inputs, outputs and weights are those of
decoder.py. Each run takes the keys and values so far and returns them with the new positions
appended, so that no engine needs to write into a buffer. Every shape of a Reshape is a constant.

Source: Qwen2 (arXiv 2407.10671); ONNX operators, opset 17.
"""

from typing import Final

import onnx_ir as ir

from fastvlm_onnx.export.graphs.decoder import DecoderOperators, RMSNorm
from fastvlm_onnx.export.graphs.decoder_attention import (
    NO_WEIGHT,
    Attention,
    AttentionInputs,
    KeyValue,
)
from fastvlm_onnx.export.graphs.layers import STANDARD_OPSET, Op


class StandardRMSNorm(RMSNorm):
    """RMSNorm of a plain sum, in arithmetic."""

    def forward(
        self, op: Op, x: ir.Value, residual: ir.Value | None = None
    ) -> tuple[ir.Value, ir.Value]:
        total = x if residual is None else op.Add(x, residual)
        # Until opset 17 the axes are an attribute.
        mean = op.ReduceMean(op.Mul(total, total), axes=[-1], keepdims=1)
        root = op.Sqrt(op.Add(mean, self.eps))
        return op.Mul(op.Div(total, root), self.weight), total


class StandardAttentionInputs(AttentionInputs):
    """Inputs of attention that all layers share: rotary angles of the new tokens, and the mask.

    Attributes:
        cos_of_tokens: float32 [B, 1, sequence_length, head_dim / 2], at each new token's position.
        sin_of_tokens: of the same shape.
        bias: float32 [B, 1, group * sequence_length, total], zero where a token sees a key. The
            rows are repeated for each query head of a group.
    """

    @property
    def arithmetic_dtype(self) -> ir.DataType:
        # Scores of Qwen2 exceed the range of float16, which GroupQueryAttention sums in float32.
        return ir.DataType.FLOAT

    def read_mask(self, op: Op, mask: ir.Value) -> None:
        length = op.Shape(self.inputs_embeds, start=1, end=2)
        total = op.Shape(mask, start=1, end=2)
        # Some engines sum and compare floats only.
        weights = op.Cast(mask, to=ir.DataType.FLOAT)
        valid = op.ReduceSum(weights, [1], keepdims=1)
        # A prompt with padding on its right has fewer valid tokens than rows. It starts at 0.
        start = op.Relu(op.Sub(valid, op.Cast(length, to=ir.DataType.FLOAT)))
        steps = op.Range(0, op.Squeeze(length, [0]), 1)
        positions = op.Add(op.Cast(start, to=ir.DataType.INT64), steps)
        self.cos_of_tokens = op.Unsqueeze(op.Gather(self.cos, positions), [1])
        self.sin_of_tokens = op.Unsqueeze(op.Gather(self.sin, positions), [1])

        # A token sees the keys before it and its own, but for padding.
        end = op.Squeeze(total, [0])
        keys = op.Range(0, end, 1)
        rows = op.Range(op.Squeeze(op.Sub(total, length), [0]), end, 1)
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        rows = op.Unsqueeze(op.Concat(*[rows] * group, axis=0), [1])
        is_padding = op.Unsqueeze(op.Less(weights, 0.5), [1, 2])
        is_hidden = op.Or(op.Greater(keys, rows), is_padding)
        self.bias = op.Where(is_hidden, NO_WEIGHT, 0.0)


class StandardAttention(Attention):
    """Grouped-query attention in products of matrices; the heads of a group are rows of one."""

    def attend(
        self, op: Op, qkv: ir.Value, past: KeyValue, inputs: AttentionInputs
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        assert isinstance(inputs, StandardAttentionInputs)
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        head_dim = self.config.head_dim
        half = head_dim // 2

        def by_head(x: ir.Value, count: int) -> ir.Value:
            """[B, N, count * head_dim] -> [B, count, N, head_dim]."""
            split = op.Reshape(x, [0, 0, count, head_dim])
            return op.Transpose(split, perm=[0, 2, 1, 3])

        def appended(old: ir.Value, new: ir.Value) -> tuple[ir.Value, ir.Value]:
            """Return the cache with the new positions, and the same in float32."""
            if inputs.dtype == ir.DataType.FLOAT:
                present = op.Concat(old, new, axis=2)
                return present, present
            present = op.Concat(old, op.Cast(new, to=inputs.dtype), axis=2)
            return present, op.Cast(present, to=ir.DataType.FLOAT)

        widths = [(heads + kv_heads) * head_dim, kv_heads * head_dim]
        qk, v = op.Split(qkv, widths, axis=-1, _outputs=2)
        # Queries and keys turn alike, so they turn together.
        left, right = op.Split(by_head(qk, heads + kv_heads), [half, half], axis=-1, _outputs=2)
        cos, sin = inputs.cos_of_tokens, inputs.sin_of_tokens
        turned = op.Concat(
            op.Sub(op.Mul(left, cos), op.Mul(right, sin)),
            op.Add(op.Mul(right, cos), op.Mul(left, sin)),
            axis=-1,
        )
        q, k = op.Split(turned, [heads, kv_heads], axis=1, _outputs=2)
        present_key, key = appended(past[0], k)
        present_value, value = appended(past[1], by_head(v, kv_heads))

        grouped = op.Reshape(op.Mul(q, head_dim**-0.5), [0, kv_heads, -1, head_dim])
        scores = op.MatMul(grouped, op.Transpose(key, perm=[0, 1, 3, 2]))
        mixed = op.MatMul(op.Softmax(op.Add(scores, inputs.bias), axis=-1), value)
        separate = op.Reshape(mixed, [0, heads, -1, head_dim])
        tokens = op.Transpose(separate, perm=[0, 2, 1, 3])
        merged = op.Reshape(tokens, [0, 0, heads * head_dim])
        return merged, present_key, present_value


STANDARD_OPERATORS: Final = DecoderOperators(
    norm=StandardRMSNorm,
    attention=StandardAttention,
    attention_inputs=StandardAttentionInputs,
    opset=STANDARD_OPSET,
)
