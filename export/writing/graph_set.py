"""The graphs and token embeddings that are written into a package, before they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
        other_files: by tensor, the weights file of another graph that takes it.
    """

    model: ir.Model
    weights_file: str | None
    other_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The graph's name for people, such as "vision encoder"."""
        return str(self.model.graph.name).replace("_", " ")

    def file_of(self, tensor: str) -> str | None:
        """Return the weights file that takes a tensor; None where the graph file holds it."""
        return self.other_files.get(tensor, self.weights_file)


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
