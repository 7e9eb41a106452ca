"""The graphs and token embeddings that are written into a package, before they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fastvlm_onnx.export.writing.token_embeddings import Embeddings
from fastvlm_onnx.package import Variant


@dataclass(frozen=True)
class UnwrittenGraph:
    """One graph.

    Attributes:
        model: the graph, whose weights are computed when they are written.
        weights_file: the file that takes the weights, which several graphs may share; None where
            the graph file holds its weights.
    """

    model: ir.Model
    weights_file: str | None

    @property
    def stage(self) -> str:
        """The graph's name for people, such as "vision encoder"."""
        return str(self.model.graph.name).replace("_", " ")


@dataclass(frozen=True)
class GraphSet:
    """Everything of some variants that is written.

    Attributes:
        graphs: the graphs, by file name.
        embeddings: the token embeddings, in each number format that a variant needs.
        shares_head: lm_head is the embedding matrix.
        variants: the files of each variant, by variant.
    """

    graphs: Mapping[str, UnwrittenGraph]
    embeddings: Sequence[Embeddings]
    shares_head: bool
    variants: Mapping[str, Variant]
