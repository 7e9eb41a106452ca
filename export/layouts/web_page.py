"""A package that is also a web page: a browser answers from it, and any file server can serve it.

The page is the page of `fastvlm-onnx serve`. In the place of the module that asks the server stands
a module that runs the package in the browser, with the client of clients/javascript and the
WebAssembly files of onnxruntime-web. Nothing is loaded from elsewhere when the page is used.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from fastvlm_onnx.errors import InputError

INDEX_FILE: Final = "index.html"
FOLDERS: Final = ("page", "fastvlm", "vendor")
ONNXRUNTIME: Final = "onnxruntime-web"
TOKENIZERS: Final = "@huggingface/tokenizers"
# The script and the WebAssembly of each device. A browser loads those of the device that it uses.
ONNXRUNTIME_FILES: Final = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
TOKENIZERS_FILE: Final = "tokenizers.min.mjs"
# Modules of the client's folder `page` that stand in the place of others, or beside them.
PAGE_MODULES: Final = {
    "client.js": "page/client.js",
    "isolate.js": "page/isolate.js",
    "packages.js": "fastvlm/engine/packages.js",
    # A service worker acts on the folder that it is in.
    "service_worker.js": "service_worker.js",
}
_NPM_SECONDS: Final = 600


@dataclass(frozen=True)
class NodeModules:
    """A folder `node_modules` with onnxruntime-web and @huggingface/tokenizers."""

    folder: Path

    def check(self) -> None:
        """Check that every file that a page needs is there.

        Raises:
            InputError: a file is missing.
        """
        for path in self._files():
            if not path.is_file():
                raise InputError(
                    f"{path}: missing; run `npm install {' '.join(_wanted())}` in "
                    f"{self.folder.parent}, or leave --node-modules out."
                )

    def copy(self, vendor: Path) -> None:
        """Copy the files into a page's folder `vendor`."""
        (vendor / ONNXRUNTIME).mkdir(parents=True)
        *onnxruntime, tokenizers = self._files()
        for path in onnxruntime:
            shutil.copyfile(path, vendor / ONNXRUNTIME / path.name)
        shutil.copyfile(tokenizers, vendor / "tokenizers.mjs")

    def _files(self) -> list[Path]:
        onnxruntime = [self.folder / ONNXRUNTIME / "dist" / name for name in ONNXRUNTIME_FILES]
        return [*onnxruntime, self.folder / TOKENIZERS / "dist" / TOKENIZERS_FILE]


@contextmanager
def page_sources(folder: Path | None) -> Iterator[NodeModules]:
    """Find the packages that a page needs, or install them for as long as the context lasts.

    Args:
        folder: a folder `node_modules` that has them; npm installs them when None.

    Raises:
        InputError: a file is missing, or npm is missing or failed.
    """
    with TemporaryDirectory(prefix="fastvlm-onnx-") as temporary:
        found = NodeModules(folder or _install(Path(temporary)))
        found.check()
        yield found


def _install(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            "npm is not installed, and a web page needs onnxruntime-web; install npm, or name a "
            "folder node_modules that has it with --node-modules."
        )
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder))
    try:
        subprocess.run(
            [npm, "install", *options, *_wanted()],
            check=True,
            capture_output=True,
            text=True,
            timeout=_NPM_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        output = " ".join(str(getattr(error, "stderr", "") or error).split())
        raise InputError(
            f"npm cannot install {' and '.join(_wanted())} ({output[-300:]}); check the network, "
            "or name a folder node_modules that has them with --node-modules."
        ) from None
    return folder / "node_modules"


def _wanted() -> list[str]:
    """The packages with the versions that the client is tested with."""
    description = json.loads((client_folder() / "package.json").read_text("utf-8"))
    versions = {**description["dependencies"], **description["devDependencies"]}
    return [f"{name}@{versions[name]}" for name in (ONNXRUNTIME, TOKENIZERS)]


def write_web_page(folder: Path, modules: NodeModules) -> None:
    """Write the page into a package's folder.

    Args:
        folder: a package without a page.
        modules: the packages that the page needs.
    """
    client = client_folder()
    shutil.copytree(page_folder(), folder / "page")
    (folder / "page" / INDEX_FILE).rename(folder / INDEX_FILE)
    shutil.copytree(client / "src", folder / "fastvlm", ignore=_node_only)
    modules.copy(folder / "vendor")
    for name, place in PAGE_MODULES.items():
        shutil.copyfile(client / "page" / name, folder / place)


def has_web_page(folder: Path) -> bool:
    """Return whether a package is also a web page."""
    return (folder / INDEX_FILE).is_file()


def _node_only(_: str, names: list[str]) -> set[str]:
    return {"index.node.js", "node.js", "folder.js", "read_node.js"} & set(names)


def client_folder() -> Path:
    """Return the folder of the JavaScript client: in the wheel, or in the source."""
    installed = _package_folder() / "javascript"
    return installed if installed.is_dir() else _package_folder().parent / "clients" / "javascript"


def page_folder() -> Path:
    """Return the folder of the server's page."""
    return _package_folder() / "server" / "page"


def _package_folder() -> Path:
    return Path(str(files("fastvlm_onnx")))
