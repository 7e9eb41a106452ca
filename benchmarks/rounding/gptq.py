"""GPTQ: round a column, and let the columns that follow take up its error.

Source: GPTQ (arXiv 2210.17323).
"""

from collections.abc import Callable

import torch
from rounding.integers import MORE_SHARES, Grid, Spec, search_grid
from torch import Tensor

# Columns are rounded in pieces of this size; the later columns are corrected once a piece.
PIECE = 128


def damped(hessian: Tensor, damping: float, by_column: bool = False) -> Tensor:
    """Add a share of the mean diagonal, or of each column's own, to the diagonal."""
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    # A few channels can be a million times the others: their mean would drown the others.
    added = diagonal + 1e-6 * mean if by_column else torch.ones_like(diagonal) * mean
    return hessian + torch.diag(damping * added)


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse, rows divided by their diagonal."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    upper = torch.linalg.cholesky(inverse, upper=True)
    return (upper / upper.diagonal()[:, None]).float()


def gptq(
    weight: Tensor,
    hessian: Tensor,
    spec: Spec,
    by_activation: bool = False,
    uses_importance: bool = True,
    factor: Tensor | None = None,
) -> tuple[Tensor, Grid]:
    """Round a weight [out, in] so that its output changes least.

    Args:
        weight: float32 [out, in].
        hessian: X^T X of the inputs, [in, in], damped.
        spec: the integers.
        by_activation: round the columns of the largest inputs first, with scales found before.
        uses_importance: choose scales by the error weighted with the Hessian's diagonal.
        factor: the result of `inverse_factor` where it is known, in the order of rounding.

    Returns:
        The rounded weight float32 [out, in], and its grid.
    """
    in_size = weight.shape[1]
    block = spec.block or in_size
    importance = hessian.diagonal() if uses_importance else None
    shares = MORE_SHARES
    order = torch.arange(in_size, device=weight.device)
    grid = search_grid(weight, spec, importance, shares)
    is_static = by_activation or block > PIECE
    if by_activation:
        order = hessian.diagonal().argsort(descending=True)
        hessian = hessian[order][:, order]
    if factor is None:
        factor = inverse_factor(hessian)
    column_block = order // block
    # Columns lie in rows, so that each is contiguous.
    rest = weight.T[order].contiguous()
    rounded = torch.empty_like(rest)
    scales, lows, highs = (x.clone() for x in (grid.scale, grid.low, grid.high))
    step = PIECE if is_static else min(PIECE, block)
    for start in range(0, in_size, step):
        stop = min(start + step, in_size)
        piece = rest[start:stop]
        if not is_static:
            at = start // block
            own = None if importance is None else importance[start:stop]
            found = search_grid(piece.T.contiguous(), spec, own, shares)
            for target, source in ((scales, found.scale), (lows, found.low), (highs, found.high)):
                target[:, at] = source[:, 0]
        which = column_block[start:stop]
        steps = [x.T[which] for x in (scales, lows, highs)]
        rounded[start:stop], errors = Columns.run(
            _round_columns, piece, factor[start:stop, start:stop], *steps
        )
        if stop < in_size:
            rest[stop:] -= factor[start:stop, stop:].T @ errors
    result = torch.empty_like(weight)
    result[:, order] = rounded.T
    return result, Grid(scales, lows, highs)


class Columns:
    """Runs a function over the columns of a piece; replays it as a CUDA graph where it can."""

    graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}  # noqa: RUF012
    uses_graphs = True

    @staticmethod
    def run(function: Callable[..., None], *given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rounded columns and the changes, both [columns, out].

        Args:
            function: takes copies of `given` and the two results, which it fills.
            given: tensors whose first is [columns, out].
        """
        if given[0].device.type != "cuda" or not Columns.uses_graphs:
            buffers = _buffers(given)
            function(*buffers)
            return buffers[-2], buffers[-1]
        key = (function, given[0].shape)
        if key not in Columns.graphs:
            try:
                Columns.graphs[key] = _capture(function, given)
            except Exception as error:
                print("no CUDA graphs:", error, flush=True)
                Columns.uses_graphs = False
                return Columns.run(function, *given)
        graph, buffers = Columns.graphs[key]
        for buffer, value in zip(buffers, given, strict=False):
            buffer.copy_(value)
        graph.replay()
        return buffers[-2], buffers[-1]


def _buffers(given: tuple[Tensor, ...]) -> list[Tensor]:
    copies = [x.contiguous().clone() for x in given]
    return [*copies, torch.empty_like(copies[0]), torch.empty_like(copies[0])]


def _capture(
    function: Callable[..., None], given: tuple[Tensor, ...]
) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    buffers = _buffers(given)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    expected = buffers[-2].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*buffers)
    for buffer, value in zip(buffers, given, strict=False):
        buffer.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    if not torch.allclose(buffers[-2], expected):
        raise RuntimeError("a replay differs from the columns that were rounded one by one")
    return graph, buffers


def _round_columns(
    columns: Tensor,
    factor: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    rounded: Tensor,
    errors: Tensor,
) -> None:
    """Round each column, and spread its error over the columns that follow (GPTQ)."""
    for j in range(len(columns)):
        q = rounded[j]
        torch.div(columns[j], scale[j], out=q)
        q.round_()
        torch.clamp(q, low[j], high[j], out=q)
        q.mul_(scale[j])
        torch.sub(columns[j], q, out=errors[j])
        if j + 1 < len(columns):
            columns[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)


def _descend_columns(
    gradient: Tensor,
    hessian: Tensor,
    inverse: Tensor,
    columns: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    rounded: Tensor,
    changes: Tensor,
) -> None:
    """Round each column anew to the value that is best while the others stay."""
    for j in range(len(columns)):
        q = rounded[j]
        torch.addcmul(columns[j], gradient[j], inverse[j], out=q)
        q.div_(scale[j]).round_()
        torch.clamp(q, low[j], high[j], out=q)
        q.mul_(scale[j])
        torch.sub(q, columns[j], out=changes[j])
        gradient.addr_(hessian[j], changes[j], alpha=-1)


def descend(
    rounded: Tensor, target: Tensor, hessian: Tensor, grid: Grid, block: int, passes: int
) -> Tensor:
    """Improve a rounded weight by coordinate descent; scales and zero points stay.

    Args:
        rounded: the rounded weight [out, in].
        target: the weight whose output counts [out, in].
        hessian: [in, in], damped.
        grid: the scales that `rounded` was made with.
        block: the columns of a scale.
        passes: times that each column is visited.
    """
    in_size = rounded.shape[1]
    values = rounded.T.contiguous()
    gradient = (hessian @ (target - rounded).T).contiguous()
    which = torch.arange(in_size, device=rounded.device) // (block or in_size)
    steps = [x.T[which] for x in (grid.scale, grid.low, grid.high)]
    inverse = 1 / hessian.diagonal()
    for _ in range(passes):
        for start in range(0, in_size, PIECE):
            at = slice(start, min(start + PIECE, in_size))
            found, changes = Columns.run(
                _descend_columns,
                gradient[at],
                hessian[at, at],
                inverse[at],
                values[at],
                *(x[at] for x in steps),
            )
            values[at] = found
            gradient -= hessian[:, at] @ changes
    return values.T.contiguous()


def refit(
    rounded: Tensor, target: Tensor, hessian: Tensor, grid: Grid, block: int
) -> tuple[Tensor, Grid]:
    """Choose all scales of a row again, together, by least squares of the output; same integers.

    Args:
        rounded: the rounded weight [out, in].
        target: the weight whose output counts [out, in].
        hessian: [in, in], damped.
        grid: the scales that `rounded` was made with.
        block: the columns of a scale.
    """
    out_size, in_size = rounded.shape
    block = block or in_size
    blocks = grid.scale.shape[1]
    integers = rounded / grid.scale.repeat_interleave(block, 1)[:, :in_size]
    aim = target @ hessian
    scale = grid.scale.clone()
    step = max(1, 20_000_000 // (in_size * blocks))
    for start in range(0, out_size, step):
        q = integers[start : start + step].unflatten(1, (blocks, block))
        rows = len(q)
        # y[n, k, c] = sum over block c of H[k, j] q[n, j]
        y = torch.einsum("kcj,ncj->nkc", hessian.view(in_size, blocks, block), q)
        normal = torch.einsum("nbi,nbic->nbc", q, y.view(rows, blocks, block, blocks))
        right = (q * aim[start : start + step].unflatten(1, (blocks, block))).sum(-1)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = 1e-4 * diagonal.mean(1, keepdim=True) + 1e-12
        normal = normal + torch.diag_embed(ridge.expand_as(diagonal))
        right = right + ridge * grid.scale[start : start + step]
        scale[start : start + step] = torch.linalg.solve(normal, right)
    scale = torch.where(scale.abs() < 1e-12, grid.scale, scale)
    found = Grid(scale, grid.low, grid.high)
    return integers * scale.repeat_interleave(block, 1)[:, :in_size], found
