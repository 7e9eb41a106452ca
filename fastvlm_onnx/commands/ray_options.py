"""The options of `fastvlm-onnx caption --ray`, and the job that they describe."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import click

from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.load_options import LoadOptions
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.optional_packages import optional_packages

if TYPE_CHECKING:
    from fastvlm_onnx.ray.job import Counts
    from fastvlm_onnx.runtime.captions.prompts import PromptTemplate

_LOCAL: Final = "local"
# A word after --ray that is no address is the first of the paths.
_ADDRESS: Final = re.compile(r"local|auto|ray://.+|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


@dataclass(frozen=True)
class RayOptions:
    """How the user wants a job to run on Ray.

    Attributes:
        address: the cluster's address; a cluster on this machine for `local`.
        actors: the largest number of actors; as many as fit when None.
        rows_per_file: the smallest number of rows in a file, but for the last.
        id_column: the column of parquet files with a unique id; `path` when None.
        image_column: the column of parquet files with pictures; `bytes` when None.
    """

    address: str
    actors: int | None
    rows_per_file: int
    id_column: str | None
    image_column: str | None


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as a `RayOptions` or None named `cluster`.

    The command has an argument `paths`.
    """

    @wraps(command)
    def with_ray(*args: Any, ray: str | None, paths: tuple[str, ...], **given: Any) -> Any:
        names = ("actors", "rows_per_file", "id_column", "image_column")
        values = {name: given.pop(name) for name in names}
        cluster = None
        if ray is not None:
            if not _ADDRESS.fullmatch(ray):
                paths, ray = (ray, *paths), _LOCAL
            for name in ("actors", "rows_per_file"):
                if values[name] is not None and values[name] < 1:
                    flag = f"--{name.replace('_', '-')}"
                    raise InputError(f"{flag} is {values[name]}; expected 1 or more.")
            values["rows_per_file"] = values["rows_per_file"] or _ROWS_PER_FILE
            cluster = RayOptions(ray, **values)
        else:
            for name, value in values.items():
                if value is not None:
                    raise InputError(f"found --{name.replace('_', '-')} without --ray; add --ray.")
        return command(*args, paths=paths, cluster=cluster, **given)

    decorated: Callable[..., Any] = with_ray
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def run_on_ray(
    cluster: RayOptions,
    source: list[str],
    output: str | None,
    prompt: "str | PromptTemplate",
    *,
    resume: bool,
    model: str | None,
    options: LoadOptions,
    batch_size: int,
    generation: dict[str, Any],
) -> "Counts":
    """Run the job to its end.

    Returns:
        The captions in the destination.

    Raises:
        FastVLMError: an option, the source, the destination or the cluster cannot be used.
    """
    from fastvlm_onnx.package import read_manifest
    from fastvlm_onnx.runtime.engine.options import GenerationConfig
    from fastvlm_onnx.runtime.hub import package_folder

    if output is None:
        raise InputError("--ray needs -o DEST, a folder that every machine can write to.")
    if options.provider_libraries:
        raise InputError("found --provider-library and --ray; install the provider's package.")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads is {options.threads}; expected 1 or more.")
    GenerationConfig(**generation)
    with optional_packages("captions on Ray", "ray"):
        from fastvlm_onnx.ray.job import Job, run
    package = package_or_default(model)
    folder = package_folder(package, shows_progress=True)
    read_manifest(folder)  # a folder that is no package is refused before the cluster is asked
    job = Job(
        source=source,
        destination=output,
        # Each machine fetches a package of the hub for itself.
        package=os.path.abspath(folder) if os.path.exists(package) else package,
        prompt=prompt,
        address=cluster.address,
        resume=resume,
        id_column=cluster.id_column,
        image_column=cluster.image_column,
        threads=options.threads,
        actors=cluster.actors,
        rows_per_file=cluster.rows_per_file,
        batch_size=batch_size,
        load_options={
            "precision": options.precision,
            "providers": options.providers,
            "provider_options": options.provider_options,
            "image_size": options.image_size,
        },
        generation=generation,
    )
    return run(job)


_ROWS_PER_FILE: Final = 1000
_OPTIONS = (
    click.option(
        "--ray",
        is_flag=False,
        flag_value=_LOCAL,
        metavar="[ADDRESS]",
        help="Run on a Ray cluster (auto, host:port, ray://host:port), or on Ray on this machine. "
        "DEST is then a folder of files.",
    ),
    click.option("--actors", type=int, help="With --ray: models at the most; by default as fit."),
    click.option(
        "--rows-per-file",
        type=int,
        help=f"With --ray: rows in a file of DEST, or more.  [default: {_ROWS_PER_FILE}]",
    ),
    click.option("--id-column", help="With --ray and parquet: the column of ids.  [default: path]"),
    click.option(
        "--image-column", help="With --ray and parquet: the column of files.  [default: bytes]"
    ),
)
