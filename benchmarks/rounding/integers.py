"""Rounding of weights and activations, in PyTorch, as the exporter and ONNX Runtime round them."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

INT4_SHARES: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 1.04)
# Calibrated searches try more: the error that counts differs from the error of the weights.
MORE_SHARES: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 1.04)
INT8_SHARES: Final = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7, 1.04)


@dataclass(frozen=True)
class Spec:
    """The integers of one matrix.

    Attributes:
        bits: 4, 8, or 32 for float32.
        block: columns that share a scale; 0 for a whole row.
        zeros: whether a block of 4 bits has a zero point.
        asymmetric: whether a block of 8 bits has a zero point.
    """

    bits: int = 4
    block: int = 128
    zeros: bool = True
    asymmetric: bool = False

    def size_bytes(self, out_size: int, in_size: int) -> int:
        """Return the bytes of a matrix as MatMulNBits stores it, scales in float32."""
        if self.bits == 32:
            return out_size * in_size * 4
        blocks = -(-in_size // self.block) if self.block else 1
        zeros = out_size * -(-blocks // 2) if self.bits == 4 and self.zeros else 0
        if self.asymmetric:
            zeros = out_size * blocks
        return out_size * in_size * self.bits // 8 + out_size * blocks * 4 + zeros


@dataclass(frozen=True)
class Grid:
    """The scale and the range of integers of each block; all tensors [rows, blocks]."""

    scale: Tensor
    low: Tensor
    high: Tensor


def in_blocks(x: Tensor, block: int) -> Tensor:
    """Return [rows, blocks, block], the last block padded with zeros."""
    block = block or x.shape[-1]
    return functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))


def search_grid(
    weight: Tensor,
    spec: Spec,
    importance: Tensor | None = None,
    shares: tuple[float, ...] = INT4_SHARES,
) -> Grid:
    """Choose scales and zero points of a weight [out, in].

    In 4 bits with zero points, several shares of a block's range are tried, as the exporter does;
    least squares refines the scale.

    Args:
        weight: float32 [out, in].
        spec: the integers.
        importance: [in], the weight of each column's squared error; None weighs all alike.
        shares: the shares of the range to try.
    """
    blocks = in_blocks(weight, spec.block)
    if spec.bits == 8 and spec.asymmetric:
        least = blocks.amin(-1).clamp(max=0)
        step = (blocks.amax(-1).clamp(min=0) - least) / 255
        step = torch.where(step == 0, torch.ones_like(step), step)
        nil = torch.round(-least / step)
        return Grid(step, -nil, 255 - nil)
    if spec.bits == 8 and importance is not None:
        return _search_int8(blocks, in_blocks(importance[None], spec.block))
    if spec.bits == 8 or not spec.zeros:
        # Symmetric int4 is -8 .. 7, and its largest magnitude maps to 8 steps below zero.
        top = 127.0 if spec.bits == 8 else 8.0
        peak = blocks.abs().amax(-1)
        if spec.bits == 4:
            at = blocks.abs().argmax(-1, keepdim=True)
            peak = -blocks.gather(-1, at)[..., 0]
        scale = torch.where(peak == 0, torch.ones_like(peak), peak / top)
        low = torch.full_like(scale, -top)
        return Grid(scale, low, torch.full_like(scale, top if spec.bits == 8 else 7.0))
    lowest = blocks.amin(-1, keepdim=True).clamp(max=0)
    width = blocks.amax(-1, keepdim=True).clamp(min=0) - lowest
    width = torch.where(width == 0, torch.ones_like(width), width)
    zero = torch.round((-lowest / width * 15).clamp(max=15))
    counted = blocks if importance is None else blocks * in_blocks(importance[None], spec.block)
    best_gain = torch.full_like(width, -1)
    best_scale, best_inverse = torch.zeros_like(width), torch.zeros_like(width)
    for share in shares:
        inverse = torch.nan_to_num((15 / share) / width, posinf=0)
        q = torch.round(blocks * inverse).maximum(-zero).minimum(15 - zero)
        dot = (counted * q).sum(-1, keepdim=True)
        square = (
            q.square()
            if importance is None
            else q.square() * in_blocks(importance[None], spec.block)
        )
        norm = square.sum(-1, keepdim=True).clamp(min=1e-12 if importance is not None else 1)
        gain = dot.square() / norm
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, dot / norm, best_scale)
        best_inverse = torch.where(better, inverse, best_inverse)
    scale = best_scale[..., 0]
    # The exporter rounds with the range's step and multiplies by the refined scale.
    scale = torch.where(scale <= 0, 1 / best_inverse[..., 0].clamp(min=1e-30), scale)
    return Grid(scale, -zero[..., 0], 15 - zero[..., 0])


def _search_int8(blocks: Tensor, importance: Tensor) -> Grid:
    """Try shares of each block's largest magnitude, as the exporter's calibration does."""
    peak = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    best_error = torch.full_like(peak, torch.inf)
    best = torch.ones_like(peak)
    for share in INT8_SHARES:
        q = torch.round(blocks * (127 / share / peak)).clamp(-127, 127)
        norm = (q.square() * importance).sum(-1, keepdim=True).clamp(min=1e-30)
        scale = (q * blocks * importance).sum(-1, keepdim=True) / norm
        error = ((blocks - q * scale).square() * importance).sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, scale, best)
    best = torch.where(best > 0, best, torch.ones_like(best))[..., 0]
    top = torch.full_like(best, 127)
    return Grid(best, -top, top)


def nearest(weight: Tensor, spec: Spec, importance: Tensor | None = None) -> Tensor:
    """Round a weight [out, in] as the exporter does, and return its float32 values."""
    if spec.bits == 32:
        return weight
    if spec.bits == 8 or not spec.zeros:
        return to_grid(weight, search_grid(weight, spec), spec.block)
    return searched(weight, spec, importance)


def to_grid(weight: Tensor, grid: Grid, block: int) -> Tensor:
    blocks = in_blocks(weight, block)
    q = torch.round(blocks / grid.scale[..., None])
    q = q.maximum(grid.low[..., None]).minimum(grid.high[..., None])
    return (q * grid.scale[..., None]).flatten(1)[:, : weight.shape[1]]


def searched(weight: Tensor, spec: Spec, importance: Tensor | None = None) -> Tensor:
    """Round to int4 as export/tensors/quantization.py does: the integers of the best share."""
    blocks = in_blocks(weight, spec.block)
    lowest = blocks.amin(-1, keepdim=True).clamp(max=0)
    width = blocks.amax(-1, keepdim=True).clamp(min=0) - lowest
    width = torch.where(width == 0, torch.ones_like(width), width)
    zero = torch.round((-lowest / width * 15).clamp(max=15))
    factor = 1.0 if importance is None else in_blocks(importance[None], spec.block)
    best_gain = torch.full_like(width, -1)
    best = torch.zeros_like(blocks)
    for share in INT4_SHARES if importance is None else MORE_SHARES:
        inverse = torch.nan_to_num((15 / share) / width, posinf=0)
        q = torch.round(blocks * inverse).maximum(-zero).minimum(15 - zero)
        dot = (blocks * q * factor).sum(-1, keepdim=True)
        norm = (q.square() * factor).sum(-1, keepdim=True)
        norm = norm.clamp(min=1 if importance is None else 1e-12)
        gain = dot.square() / norm
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best = torch.where(better, q * (dot / norm), best)
    return best.flatten(1)[:, : weight.shape[1]]


def symmetric_nearest(weight: Tensor, block: int) -> Tensor:
    """Round to int4 in -8 .. 7 without a zero point, as onnxruntime-genai's default does."""
    spec = Spec(4, block, zeros=False)
    return to_grid(weight, search_grid(weight, spec), block)


def q4_k(weight: Tensor) -> Tensor:
    """Round as llama.cpp's Q4_K: blocks of 32, scales and minima in 6 bits of a float16 in 256."""
    rows, columns = weight.shape
    weight = functional.pad(weight, (0, -columns % 256))
    blocks = weight.unflatten(-1, (-1, 8, 32))
    lowest = blocks.amin(-1, keepdim=True).clamp(max=0)
    width = blocks.amax(-1, keepdim=True) - lowest
    best_error = torch.full_like(width, torch.inf)
    best_scale, best_low = torch.zeros_like(width), torch.zeros_like(width)
    for share in (1.0, 0.95, 0.9, 0.85, 1.05):
        scale = (width * share / 15).clamp(min=1e-12)
        q = torch.round((blocks - lowest) / scale).clamp(0, 15)
        # Least squares of w = scale * q + low.
        mean_q, mean_w = q.mean(-1, keepdim=True), blocks.mean(-1, keepdim=True)
        spread = (q - mean_q).square().sum(-1, keepdim=True).clamp(min=1e-12)
        slope = ((q - mean_q) * (blocks - mean_w)).sum(-1, keepdim=True) / spread
        low = (mean_w - slope * mean_q).clamp(max=0)
        error = (slope * q + low - blocks).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, slope.clamp(min=1e-12), best_scale)
        best_low = torch.where(better, low, best_low)

    def six_bits(x: Tensor) -> Tensor:
        unit = (x.amax(-2, keepdim=True) / 63).half().float().clamp(min=1e-12)
        return torch.round(x / unit).clamp(0, 63) * unit

    scale, low = six_bits(best_scale), -six_bits(-best_low)
    q = torch.round((blocks - low) / scale.clamp(min=1e-12)).clamp(0, 15)
    return (q * scale + low).flatten(1)[:, :columns].reshape(rows, columns)


# --- activations ----------------------------------------------------------------------------------


def round_blocks(x: Tensor, block: int) -> Tensor:
    """Round activations as MatMulNBits does: int8, a scale for each block of each token."""
    blocks = in_blocks(x, block)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (torch.round(blocks / scale) * scale).flatten(1)[:, : x.shape[1]]


def round_tokens(x: Tensor, runs: Tensor) -> Tensor:
    """Round activations [tokens, in] as PerTokenInt8Linear does.

    A token is divided by its largest magnitude; DynamicQuantizeLinear then gives all tokens of one
    run one scale and one zero point.
    """
    peak = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    x = x / peak
    count = int(runs.max()) + 1
    low = x.new_zeros(count).scatter_reduce(0, runs, x.amin(-1).clamp(max=0), "amin")
    high = x.new_zeros(count).scatter_reduce(0, runs, x.amax(-1).clamp(min=0), "amax")
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    scale, zero = scale[runs][:, None], zero[runs][:, None]
    q = torch.round(x / scale).add_(zero).clamp_(0, 255)
    return q.sub_(zero).mul_(scale * peak)


def hadamard(size: int, device: torch.device | str) -> Tensor:
    """Return the orthogonal Hadamard matrix of a power of two."""
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5
