"""A job: the way to measure, its conditions, and the places of its files.

Each process of a comparison gets one job. Both environments import this module, so it imports only
the standard library.
"""

import fcntl
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
        work: the folder of all files that are made from one checkpoint.
        threads: threads of every runtime.
        repeats: the number of timed answers, after one untimed answer.
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
        """The exported package with every variant and image size."""
        return self.work / "package"

    @property
    def language(self) -> Path:
        """The folder of the language model in transformers' layout."""
        return self.work / "language"

    @property
    def prompt(self) -> Path:
        """An .npz file: pixel_values, token ids, and the arrays that PyTorch computes from them."""
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
    """Give an empty folder that is renamed to `path` if the block succeeds."""
    temporary = path.with_name(path.name + ".unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Lock a work folder. Two runs at once would damage each other's files and figures.

    Raises:
        BlockingIOError: another run holds the lock.
    """
    with (work / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
