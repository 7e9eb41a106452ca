"""The pictures that a command line means, and the part of them that a machine takes."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import InputError

# Suffixes of the files that are taken from a folder. A file given by its name may have any suffix.
SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_pictures(given: Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Find the pictures that files, folders and patterns mean.

    Args:
        given: paths of files, paths of folders (searched at any depth), and patterns such as
            `photos/*.jpg`.
        suffixes: the ends of the names of files that are taken from a folder.

    Returns:
        Paths without duplicates, in the order of `given`; sorted within a folder or pattern.

    Raises:
        InputError: a path is empty, or no picture was found.
    """
    found: dict[str, None] = {}
    for name in given:
        if not name:
            raise InputError("a path is empty; give a file, a folder or a pattern.")
        path = Path(name)
        if path.is_dir():
            inside = (
                p for p in path.rglob("*") if p.name.lower().endswith(suffixes) and p.is_file()
            )
            found |= dict.fromkeys(sorted(map(str, inside)))
        elif any(character in name for character in "*?[") and not path.exists():
            import glob

            matches = sorted(glob.glob(name, recursive=True))
            found |= dict.fromkeys(match for match in matches if not os.path.isdir(match))
        else:
            found[name] = None
    if not found:
        raise InputError(
            "found no pictures; give files, folders with "
            f"{', '.join(suffixes)} in them, or a pattern like 'photos/*.jpg'."
        )
    return list(found)


@dataclass(frozen=True)
class Shard:
    """One of several parts of a set of pictures.

    A picture's path alone decides its shard, so a picture stays in its shard when others are
    added. Each machine must name the pictures by the same paths.

    Attributes:
        number: from 1 to count.
        count: the number of shards.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read a shard such as `3/8`.

        Raises:
            InputError: the text is no shard.
        """
        parts = text.split("/")
        if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
            # int() refuses a number of thousands of digits.
            shard = cls(*(int(part[:9]) for part in parts))
            if 1 <= shard.number <= shard.count and max(map(len, parts)) <= 9:
                return shard
        raise InputError(f"--shard is {text!r}; expected a number of all, from 1/8 to 8/8.")

    def holds(self, path: str) -> bool:
        """Whether a picture is in this shard."""
        # Windows writes the same path with other slashes.
        digest = hashlib.blake2b(os.fsencode(path.replace(os.sep, "/")), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1
