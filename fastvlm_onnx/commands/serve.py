"""`fastvlm-onnx serve`."""

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.commands.server_options import server_options
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.server.settings import LOOPBACK, MEGABYTE, Settings
from fastvlm_onnx.untrusted_files import regular_file_size

if TYPE_CHECKING:
    from fastvlm_onnx.server.service import Service

KEY_VARIABLE = "FASTVLM_ONNX_API_KEY"


@click.command()
@click.option("--model", help="An exported folder, or the hub id of a package.")
@load_options
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help=f"File with the key that requests must carry; else ${KEY_VARIABLE}.",
)
@click.option("--no-key", is_flag=True, help="Answer other machines without a key.")
@server_options
def serve(
    model: str | None,
    options: LoadOptions,
    api_key_file: Path | None,
    no_key: bool,
    settings: dict[str, Any],
) -> None:
    """Answer questions over HTTP, as OpenAI's API does; a page for browsers is at /.

    SIGTERM stops the server: running answers get the time of --grace to end.
    """
    from fastvlm_onnx.package import read_manifest
    from fastvlm_onnx.runtime.hub import package_folder

    with optional_packages("serving", "serve"):
        from fastvlm_onnx.server.running import run

    chosen = Settings(api_key=_key(api_key_file, no_key, settings["host"]), **settings)
    _check(chosen)
    options.register_libraries()
    folder = package_folder(package_or_default(model), shows_progress=True)
    read_manifest(folder)  # a folder that is no package is refused before the server listens
    run(chosen, lambda: _open(folder, options, chosen))


def _open(folder: Path, options: LoadOptions, settings: Settings) -> "Service":
    from fastvlm_onnx.runtime.serving.scheduler import Scheduler
    from fastvlm_onnx.server.service import Service

    model = options.load(
        folder,
        image_cache_bytes=int(settings.image_cache_mb * MEGABYTE),
        prefix_cache_bytes=int(settings.prefix_cache_mb * MEGABYTE),
    )
    scheduler = Scheduler(
        model,
        max_rows=settings.max_running,
        max_waiting=settings.max_waiting,
        see_seconds=settings.see_seconds,
        max_seen=settings.max_seen,
    )
    return Service(model, scheduler, settings.model_name or model.manifest.source.name)


def _key(file: Path | None, no_key: bool, host: str) -> str | None:
    """The key that requests must carry, or None.

    Raises:
        InputError: the file holds no key, --no-key comes with a key, or other machines could ask
            without a key.
    """
    key = os.environ.get(KEY_VARIABLE)
    if file is not None:
        try:
            regular_file_size(file, InputError)
            key = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {file} cannot be read ({error}).") from None
        if not key:
            raise InputError(f"--api-key-file {file} is empty; put a key on its first line.")
    if key and no_key:
        raise InputError(f"--no-key comes with a key; drop it, or unset ${KEY_VARIABLE}.")
    if not key and not no_key and host not in LOOPBACK:
        raise InputError(
            f"--host {host} answers other machines, and there is no key; set ${KEY_VARIABLE} or "
            "--api-key-file, or say --no-key."
        )
    return key or None


def _check(settings: Settings) -> None:
    """Refuse files that cannot be used before the model is loaded.

    Raises:
        InputError: a file or folder is missing, or the certificate cannot be used.
    """
    if (settings.ssl_certfile is None) != (settings.ssl_keyfile is None):
        raise InputError("--ssl-certfile and --ssl-keyfile go together; give both or neither.")
    for name, path, is_there in (
        ("--ssl-certfile", settings.ssl_certfile, Path.is_file),
        ("--ssl-keyfile", settings.ssl_keyfile, Path.is_file),
        ("--media-root", settings.media_root, Path.is_dir),
    ):
        if path is not None and not is_there(path):
            raise InputError(f"{name} is {path}, which does not exist; give an existing path.")
    if settings.ssl_certfile is not None:
        try:
            ssl.create_default_context().load_cert_chain(
                settings.ssl_certfile, settings.ssl_keyfile
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{settings.ssl_certfile} and {settings.ssl_keyfile} are no certificate with its "
                f"key ({error}); expected PEM files without a password."
            ) from None
