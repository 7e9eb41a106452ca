"""Pictures from files, tar files and parquet, on disks and object stores, as a Ray dataset.

A file that cannot be read becomes a row with an error, so that it does not end the job.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.ray.captioner import CONTENT, ERROR, PATH
from fastvlm_onnx.runtime.captions.pictures import SUFFIXES, find_pictures
from fastvlm_onnx.runtime.captions.table import unicode_name

TARS: Final = (".tar", ".tar.gz", ".tgz")
PARQUET: Final = (".parquet",)
# Reading and writing wait for disks and networks, so that several share a CPU.
LIGHT_CPUS: Final = 0.25
SCHEMA: Final = pa.schema([(PATH, pa.string()), (CONTENT, pa.binary()), (ERROR, pa.string())])

_LARGEST_FILE: Final = 256_000_000
# The pictures of a task are answered in one go. More of them keep an actor busier; fewer are lost
# when it dies, and end together with those of the other actors.
_LEAST_FILES_IN_A_TASK: Final = 32
_FILES_IN_A_TASK: Final = 128
_TASKS_OF_AN_ACTOR: Final = 8
# Ray's scheduler slows down with more tasks in a job.
_MOST_TASKS: Final = 20_000
_BLOCK_BYTES: Final = 32_000_000


@dataclass(frozen=True)
class SourceFile:
    """A file of the source.

    Attributes:
        name: as the user would write it; the id of a picture, or the start of an id in a tar file.
        path: the path in its file system.
    """

    name: str
    path: str


@dataclass(frozen=True)
class Source:
    """Files of the same kind in one file system."""

    files: Sequence[SourceFile]
    filesystem: pyarrow.fs.FileSystem

    def check_columns(self, id_column: str | None, image_column: str | None) -> None:
        """Check the columns that `dataset` takes; no cluster is needed.

        Raises:
            InputError: parquet files lack a column; or a column is named for other files.
        """
        if not self.are(PARQUET):
            if id_column or image_column:
                raise InputError("--id-column and --image-column are for parquet files; drop them.")
            return
        first = self.files[0]
        try:
            schema = pq.read_schema(first.path, filesystem=self.filesystem)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{first.name}: cannot be read as parquet ({_short(error)})."
            ) from None
        for option, name in (
            ("--id-column", id_column or PATH),
            ("--image-column", image_column or CONTENT),
        ):
            if name not in schema.names:
                raise InputError(
                    f"{first.name}: has the columns {', '.join(schema.names)[:200]}; expected "
                    f"{name}. Name another with {option}."
                )

    def dataset(
        self, id_column: str | None, image_column: str | None, *, actors: int
    ) -> ray.data.Dataset:
        """Return a dataset with an id and a picture in each row.

        Args:
            id_column: the column of parquet files with a unique id; `path` when None.
            image_column: the column of parquet files with the pictures; `bytes` when None.
            actors: the number of actors that share the pictures.
        """
        if not self.are(PARQUET):
            pictures = PictureFiles(self, actors)
            # Ray would cut blocks into rows of a few pictures where it expects more tasks.
            tasks = len(pictures.get_read_tasks())
            # A process that starts takes a second of the actors' time, and reading a disk is quick.
            is_disk = isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)
            return ray.data.read_datasource(
                pictures,
                num_cpus=LIGHT_CPUS,
                concurrency=actors if is_disk else None,
                override_num_blocks=tasks,
            )
        return ray.data.read_parquet(
            [file.path for file in self.files],
            filesystem=self.filesystem,
            columns=[id_column or PATH, image_column or CONTENT],
            num_cpus=LIGHT_CPUS,
        )

    def are(self, suffixes: tuple[str, ...]) -> bool:
        """Whether the files have one of the suffixes."""
        return self.files[0].name.lower().endswith(suffixes)


def find_source(given: Sequence[str]) -> Source:
    """Find the files that paths, patterns and addresses of object stores mean.

    Args:
        given: paths and patterns as `find_pictures` takes them; or addresses such as
            `s3://bucket/folder`. Folders are searched at any depth.

    Raises:
        InputError: no file was found, an address cannot be read, or the files are of several
            kinds or file systems.
    """
    if not any("://" in name for name in given):
        found = find_pictures(given, (*SUFFIXES, *TARS, *PARQUET))
        files = [SourceFile(unicode_name(path), os.path.abspath(path)) for path in found]
        source = Source(files, pyarrow.fs.LocalFileSystem())
    else:
        source = _find_remote(given)
    kinds = {_kind(file.name) for file in source.files}
    if len(kinds) > 1:
        raise InputError(
            f"found {' and '.join(sorted(kinds))}; expected files of one kind in a job."
        )
    return source


def _find_remote(given: Sequence[str]) -> Source:
    files: dict[str, SourceFile] = {}
    filesystems: list[pyarrow.fs.FileSystem] = []
    for name in given:
        try:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(name)
            info = filesystem.get_file_info(path)
            found = [info]
            if info.type != pyarrow.fs.FileType.File:
                found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{name}: cannot be read ({_short(error)}); expected an address such as "
                "s3://bucket/folder."
            ) from None
        if filesystems and filesystem != filesystems[0]:
            raise InputError("the paths are in several file systems; expected one in a job.")
        filesystems.append(filesystem)
        scheme = name.partition("://")[0]
        for one in found:
            is_known = one.path.lower().endswith((*SUFFIXES, *TARS, *PARQUET))
            if one.type == pyarrow.fs.FileType.File and (is_known or one is info):
                files[one.path] = SourceFile(f"{scheme}://{one.path}", one.path)
    if not files:
        raise InputError(f"found no pictures in {', '.join(given)[:200]}; name another folder.")
    return Source(sorted(files.values(), key=lambda file: file.name), filesystems[0])


def _kind(name: str) -> str:
    lower = name.lower()
    if lower.endswith(PARQUET):
        return "parquet files"
    return "tar files" if lower.endswith(TARS) else "pictures"


class PictureFiles(Datasource):
    """Files with pictures, and tar files of them, as rows with SCHEMA.

    The tasks are as many as suit the number of actors that share the pictures.
    """

    def __init__(self, source: Source, actors: int) -> None:
        super().__init__()
        self._source, self._actors = source, actors

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """Return a task for each tar file, or for many files with pictures."""
        files = self._source.files
        size = len(files) // (self._actors * _TASKS_OF_AN_ACTOR)
        size = min(max(size, _LEAST_FILES_IN_A_TASK), _FILES_IN_A_TASK)
        size = max(size, -(-len(files) // _MOST_TASKS))
        size = 1 if self._source.are(TARS) else size
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [
            ReadTask(
                partial(_read_blocks, files[begin : begin + size], self._source.filesystem),
                metadata,
                schema=SCHEMA,
            )
            for begin in range(0, len(files), size)
        ]


def _read_blocks(
    files: Sequence[SourceFile], filesystem: pyarrow.fs.FileSystem
) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    size = 0
    for file in files:
        read = _read_tar if file.name.lower().endswith(TARS) else _read_file
        for row in read(file, filesystem):
            rows.append(row)
            size += len(row[CONTENT] or b"")
            if size >= _BLOCK_BYTES:
                yield pa.Table.from_pylist(rows, SCHEMA)
                rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, SCHEMA)


def _read_file(file: SourceFile, filesystem: pyarrow.fs.FileSystem) -> Iterable[dict[str, Any]]:
    try:
        with filesystem.open_input_stream(file.path, compression=None) as stream:
            return [_row(file.name, stream.read(_LARGEST_FILE + 1))]
    except FileNotFoundError:
        return [_row(file.name, None, "no such picture; give the path of an image file.")]
    except (OSError, pa.ArrowException) as error:
        return [_row(file.name, None, f"cannot be read ({_short(error)}).")]


def _read_tar(file: SourceFile, filesystem: pyarrow.fs.FileSystem) -> Iterator[dict[str, Any]]:
    names: dict[str, int] = {}
    try:
        with (
            filesystem.open_input_stream(file.path, compression=None) as stream,
            tarfile.open(fileobj=io.BufferedReader(stream, 1 << 20), mode="r|*") as tar,
        ):
            for member in tar:
                if not member.isfile() or not member.name.lower().endswith(SUFFIXES):
                    continue
                # A tar file may hold a name twice; an id is unique.
                count = names[member.name] = names.get(member.name, 0) + 1
                name = f"{file.name}/{unicode_name(member.name)}" + (f"#{count}" * (count > 1))
                content = tar.extractfile(member)
                yield _row(name, None if content is None else content.read(_LARGEST_FILE + 1))
    except (OSError, EOFError, tarfile.TarError, pa.ArrowException) as error:
        yield _row(file.name, None, f"ends in the middle ({_short(error)}); copy it again.")


def _row(name: str, content: bytes | None, error: str | None = None) -> dict[str, Any]:
    if content is not None and len(content) > _LARGEST_FILE:
        content, error = None, f"has more than {_LARGEST_FILE:,} bytes; make it smaller."
    return {PATH: name, CONTENT: content, ERROR: error and f"{name}: {error}"}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
