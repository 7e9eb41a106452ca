"""What is measured and where its files lie; each process of a comparison is given one job.

Known to both environments, so nothing but the standard library is imported here.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# Tokens of the conversation template around the image, and decoded tokens that are timed.
TOKENS_BEFORE, TOKENS_AFTER, STEPS = 14, 10, 32
PATCH_SIZE = 64


@dataclass(frozen=True)
class Job:
    """One way at one image size.

    Attributes:
        way: a name of `ways.WAYS`.
        work: everything made for one checkpoint.
        repeats: whole answers that are timed, after one that is not.
    """

    way: str
    work: Path
    image_size: int
    threads: int
    repeats: int

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    @property
    def package(self) -> Path:
        """All variants of our package, for every image size."""
        return self.work / "package"

    @property
    def language(self) -> Path:
        """The language model in transformers' layout."""
        return self.work / "language"

    @property
    def prompt(self) -> Path:
        """pixel_values and token ids, and what PyTorch makes of them, as an .npz."""
        return self.work / f"prompt.{self.image_size}.npz"

    @property
    def openvino_language(self) -> Path:
        return self.work / "openvino-language"

    @property
    def openvino_vision(self) -> Path:
        return self.work / f"openvino-vision.{self.image_size}"

    def genai(self, way: str) -> Path:
        return self.work / way

    @property
    def prompt_tokens(self) -> int:
        return TOKENS_BEFORE + (self.image_size // PATCH_SIZE) ** 2 + TOKENS_AFTER

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"work": str(self.work)})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        return cls(**fields | {"work": Path(fields["work"])})


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """An empty folder that takes the name `path` once all is well."""
    temporary = path.with_name(path.name + ".unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
