"""Hadamard transforms, which spread a large value over the channels of its block.

A block of n channels is multiplied by H, an n x n matrix whose values are all 1 / sqrt(n) or its
negative. H is symmetric and its own inverse, so (x H) (H w) = x w: an activation and its weight are
both transformed, and the product does not change. A value that is far larger than the others
becomes n values of 1 / sqrt(n) of its size, so 8 bits represent the other values more finely.

Source: QuaRot (arXiv 2404.00456).
"""

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import Op, parameter
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.quantization import PIECE_VALUES


class Hadamard(nn.Module):
    """Multiply each block of the last axis of x [B, N, width] by a Hadamard matrix."""

    def __init__(self, width: int, block_size: int) -> None:
        """Declare the transform.

        Args:
            width: the number of channels, a multiple of block_size.
            block_size: the number of channels in a block, a power of two.
        """
        super().__init__()
        self.width, self.block_size = width, block_size
        shape = (block_size, block_size)
        self.matrix = parameter(LazyArray(shape, lambda: hadamard_matrix(block_size)))

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        blocks = op.Reshape(x, [0, 0, self.width // self.block_size, self.block_size])
        return op.Reshape(op.MatMul(blocks, self.matrix), [0, 0, self.width])


def hadamard_matrix(size: int) -> FloatArray:
    """Return Sylvester's Hadamard matrix over sqrt(size), float32 [size, size].

    Args:
        size: a power of two.
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(np.float32(size))


def hadamard_block(width: int, largest: int) -> int:
    """Return the largest power of two that divides `width`, and is at most `largest`."""
    return min(width & -width, largest)


def transform_inputs(weight: LazyArray, block_size: int) -> LazyArray:
    """Transform torch's weight [out, in] for an input that Hadamard has transformed."""
    return weight.each_row(lambda rows, _: transform_columns(rows, block_size))


def transform_outputs(weight: LazyArray, block_size: int) -> LazyArray:
    """Transform torch's weight [out, in], so that its output is transformed as by Hadamard."""
    return weight.then(lambda whole: transform_columns(whole.T, block_size).T, *weight.shape)


def transform_columns(matrix: FloatArray, block_size: int) -> FloatArray:
    """Return matrix @ H for each block of columns of a float32 matrix.

    The order of these sums is fixed, and so are their last bits on every processor. A matrix
    product would let two machines round a weight to different integers.
    """
    rows, columns = matrix.shape
    result = np.empty_like(matrix)
    step = max(1, PIECE_VALUES // columns)
    for start in range(0, rows, step):
        piece = np.array(matrix[start : start + step].T, order="C")
        half = 1
        while half < block_size:
            pairs = piece.reshape(-1, 2, half * piece.shape[1])
            differences = pairs[:, 0] - pairs[:, 1]
            pairs[:, 0] += pairs[:, 1]
            pairs[:, 1] = differences
            half *= 2
        piece /= np.sqrt(np.float32(block_size))
        result[start : start + step] = piece.T
    return result
