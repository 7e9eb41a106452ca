"""A job of a worker process, and the sequences of tokens that every system is fed.

The project's environment and that of the other runtimes import this module, so it imports only
numpy and the standard library.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ForcedSequence:
    """A prompt, and the tokens that every system is fed after it.

    Attributes:
        id: the prompt's id.
        kind: "answer" for fp32's own greedy answer, "text" for a given text.
        before_image: token ids before the image.
        image: token ids whose embeddings stand where image features would; empty without image.
        after_image: token ids after the image; the whole prompt where there is no image.
        forced: token ids of the answer or the text, at least one.
    """

    id: str
    kind: str
    before_image: list[int]
    image: list[int]
    after_image: list[int]
    forced: list[int]

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt for a system that takes only token ids."""
        return [*self.before_image, *self.image, *self.after_image]


@dataclass(frozen=True)
class Job:
    """One system on all sequences.

    Attributes:
        system: a name of `systems.SYSTEMS`.
        work: the folder of all files that are made from the checkpoint.
        package: this project's package.
        threads: threads of every runtime.
    """

    system: str
    work: Path
    package: Path
    threads: int

    @property
    def sequences(self) -> Path:
        """A JSON file with the sequences."""
        return self.work / "sequences.json"

    @property
    def image_features(self) -> Path:
        """An .npz file: fp32's embeddings of `image`, float32 [rows, hidden_size], by prompt id."""
        return self.work / "image_features.npz"

    @property
    def language(self) -> Path:
        """The folder of the language model in transformers' layout."""
        return self.work / "language"

    @property
    def openvino(self) -> Path:
        return self.work / "openvino"

    @property
    def genai(self) -> Path:
        """The folder of the system's own decoder, for onnxruntime-genai."""
        return self.work / self.system

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"work": str(self.work), "package": str(self.package)})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        return cls(**fields | {"work": Path(fields["work"]), "package": Path(fields["package"])})


def write_sequences(path: Path, sequences: list[ForcedSequence]) -> None:
    path.write_text(json.dumps([asdict(sequence) for sequence in sequences]), encoding="utf-8")


def read_sequences(path: Path) -> list[ForcedSequence]:
    return [ForcedSequence(**fields) for fields in json.loads(path.read_text("utf-8"))]
