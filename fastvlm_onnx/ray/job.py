"""A job: pictures of a source to captions in a folder, each exactly once."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import ray.data
import ray.exceptions
from ray.data.checkpoint import CheckpointConfig

from fastvlm_onnx import errors
from fastvlm_onnx.errors import InputError, ProviderError
from fastvlm_onnx.ray.captioner import CONTENT, ERROR, PATH, Captioner
from fastvlm_onnx.ray.cluster import connected, default_threads, fitting_actors, machines
from fastvlm_onnx.ray.json_lines import JsonLinesFiles
from fastvlm_onnx.ray.sources import LIGHT_CPUS, PARQUET, find_source
from fastvlm_onnx.runtime.captions.destination import locked
from fastvlm_onnx.runtime.captions.prompts import PromptTemplate

# Ray reserves this much for the ids of answered pictures, or more where they take more.
_FILTER_BYTES: Final = 100_000_000
# An actor gets this many batches of parquet files at once: it reads a batch while it answers the
# batch before. Blocks of pictures are as large as an actor should have them.
_BATCHES_AT_ONCE: Final = 16
# The end of a traceback: one of this library's errors, and its message.
_OWN_ERROR: Final = re.compile(r"^fastvlm_onnx\.errors\.(\w+): (.+)$", re.MULTILINE)
_FORMATS: Final = {".parquet": "parquet", ".jsonl": "json"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job.

    Attributes:
        source: paths, patterns, or addresses of object stores.
        destination: a folder, or the address of one; named .jsonl for JSON lines, else parquet.
        package: as `Captioner` takes it.
        prompt: as `Captioner` takes it.
        address: the cluster's, as `cluster.connected` takes it.
        resume: leave out the pictures that an earlier run answered.
        id_column: the column of parquet files with a unique id.
        image_column: the column of parquet files with pictures.
        threads: CPUs of an actor, and threads of its sessions; chosen by the machines and the
            package when None.
        actors: the largest number of actors; as many as fit when None.
        rows_per_file: the smallest number of rows in a file of the destination, but for the last.
        batch_size: pictures that an actor answers at once.
        load_options: as `Captioner` takes them.
        generation: the keyword arguments of `FastVLM.generate_batch`.
    """

    source: Sequence[str]
    destination: str
    package: str
    prompt: str | PromptTemplate
    address: str
    resume: bool = False
    id_column: str | None = None
    image_column: str | None = None
    threads: int | None = None
    actors: int | None = None
    rows_per_file: int = 1000
    batch_size: int = 4
    load_options: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """The captions in the destination.

    Attributes:
        total: all rows.
        failed: rows with an error.
    """

    total: int
    failed: int


@dataclass(frozen=True)
class _Folder:
    """The destination in its file system."""

    name: str
    path: str
    filesystem: pyarrow.fs.FileSystem
    is_local: bool

    @classmethod
    def of(cls, name: str) -> "_Folder":
        if "://" not in name:
            return cls(name, os.path.abspath(name), pyarrow.fs.LocalFileSystem(), True)
        try:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(name)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{name}: is no address of a folder ({error}).") from None
        return cls(name, path.rstrip("/"), filesystem, False)

    @property
    def checkpoint(self) -> str:
        """The folder with the ids of answered pictures, beside this one."""
        return f"{self.path}.checkpoint"

    @property
    def format(self) -> str:
        return _FORMATS.get(os.path.splitext(self.path)[1].lower(), "parquet")

    def holds_files(self, path: str) -> bool:
        selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
        return bool(self.filesystem.get_file_info(selector))


def run(job: Job) -> Counts:
    """Run a job to its end.

    Raises:
        InputError: the source, the destination, the cluster or an option cannot be used.
        PackageError: the package is missing or damaged on a machine.
        ProviderError: a provider cannot be used, or Ray ended the job.
    """
    # 1. Check all that can be checked without a cluster.
    folder = _Folder.of(job.destination)
    _check_destination(folder, job.resume)
    source = find_source(job.source)
    source.check_columns(job.id_column, job.image_column)
    with locked(Path(folder.path)) if folder.is_local else nullcontext(), connected(job.address):
        # 2. Place the actors.
        nodes = machines()
        # The actors that the user has limited take the cores between them.
        model_bytes = None if job.actors else _package_bytes(job.package)
        threads = job.threads or default_threads(nodes, model_bytes)
        fitting = fitting_actors([node.cpus for node in nodes], threads)
        actors = min(job.actors or fitting, fitting)

        # 3. Read, answer, write.
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr is not None and sys.stderr.isatty()
        context.checkpoint_config = _checkpoint(folder, job.id_column or PATH)
        with _plain_errors():
            captions = source.dataset(job.id_column, job.image_column, actors=actors).map_batches(
                Captioner,
                fn_constructor_kwargs={
                    "package": job.package,
                    "prompt": job.prompt,
                    "id_column": job.id_column or PATH,
                    "image_column": job.image_column or CONTENT,
                    "batch_size": job.batch_size,
                    "load_options": {**job.load_options, "threads": threads},
                    **job.generation,
                },
                batch_size=(job.batch_size * _BATCHES_AT_ONCE if source.are(PARQUET) else None),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=actors, initial_size=actors
                ),
                num_cpus=threads,
            )
            _write(captions, folder, job.rows_per_file)

        # 4. Count the rows of the folder.
        return _count(folder)


def _package_bytes(package: str) -> int | None:
    """The bytes of a package's files; None where they cannot be read on this machine."""
    try:
        return sum(path.stat().st_size for path in Path(package).iterdir())
    except (OSError, ValueError):
        return None


def _check_destination(folder: _Folder, resume: bool) -> None:
    try:
        is_there = folder.holds_files(folder.path)
        has_checkpoint = folder.holds_files(folder.checkpoint)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{folder.name}: cannot be used as a folder ({error}).") from None
    if not resume and (is_there or has_checkpoint):
        raise InputError(
            f"{folder.name}: exists already; add to it with --resume, or name another folder."
        )
    if is_there and not has_checkpoint:
        raise InputError(
            f"{folder.name}: has files, and {folder.name}.checkpoint has no ids of them; name "
            "another folder."
        )


def _checkpoint(folder: _Folder, id_column: str) -> CheckpointConfig:
    config = CheckpointConfig(
        id_column,
        folder.checkpoint if folder.is_local else f"{folder.name.rstrip('/')}.checkpoint",
        delete_checkpoint_on_success=False,  # pictures that are added later can then be added
        override_filesystem=folder.filesystem,
    )
    config.checkpoint_actor_memory_bytes = _FILTER_BYTES
    config.checkpoint_actor_pool_max_size = 1
    return config


def _write(captions: ray.data.Dataset, folder: _Folder, rows_per_file: int) -> None:
    if folder.format == "json":
        sink = JsonLinesFiles(
            folder.path, rows_per_file=rows_per_file, filesystem=folder.filesystem
        )
        captions.write_datasink(sink, ray_remote_args={"num_cpus": LIGHT_CPUS})
    else:
        captions.write_parquet(
            folder.path,
            filesystem=folder.filesystem,
            min_rows_per_file=rows_per_file,
            ray_remote_args={"num_cpus": LIGHT_CPUS},
        )


def _count(folder: _Folder) -> Counts:
    if not folder.holds_files(folder.path):
        return Counts(0, 0)
    # Only the errors are read; the schema of JSON lines would be that of the first file.
    schema = pa.schema([(ERROR, pa.string())])
    rows = pyarrow.dataset.dataset(
        folder.path, schema, format=folder.format, filesystem=folder.filesystem
    )
    failed = rows.count_rows(filter=pyarrow.dataset.field(ERROR).is_valid())
    return Counts(rows.count_rows(), failed)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the library's own error in the place of Ray's, whose text is a stack of many lines.

    An error of an actor comes as text: Ray pickles it without the errors that it was raised from.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        text = str(error)
        for name, message in reversed(_OWN_ERROR.findall(text)):
            raise getattr(errors, name)(message) from None
        reason = text.strip().splitlines()[-1][:200]
        raise ProviderError(
            f"Ray ended the job ({reason}); see to the machines, then go on with --resume."
        ) from None
