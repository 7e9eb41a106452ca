"""An exported folder is whole or absent, also after errors and interruptions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_disk import export_until_full, on_small_disk

import fastvlm_onnx
from fastvlm_onnx import InputError, PackageError, UnsupportedError
from fastvlm_onnx.export.disk.atomic_folder import unfinished_folder
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.golden import read_golden
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.package_files import check_files
from fastvlm_onnx.signals import Terminated

EXPECTED_FILES = {
    "LICENSE_MODEL",
    "README.md",
    "decoder.fp32.onnx",
    "decoder.fp32.onnx.data",
    "embed_tokens.npy",
    "fastvlm.json",
    "golden.json",
    "projector.fp32.onnx",
    "projector.fp32.onnx.data",
    "tokenizer.json",
    "vision_encoder.256.fp32.onnx",
    "vision_encoder.fp32.onnx.data",
}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_holds_the_format_and_nothing_else(package: Path) -> None:
    assert names_in(package) == EXPECTED_FILES
    manifest = read_manifest(package)
    assert set(manifest.files) == EXPECTED_FILES - {"fastvlm.json"}
    check_files(package, list(manifest.files), manifest)


def test_the_manifest_says_what_was_exported(package: Path) -> None:
    manifest = read_manifest(package)
    assert manifest.source.name == "demo"
    assert manifest.source.exporter == f"fastvlm-onnx {fastvlm_onnx.__version__}"
    assert manifest.image.default_size == 256
    assert manifest.decoder.eos_token_ids == [738]
    assert list(manifest.variants) == ["fp32"]


def test_the_licence_of_the_checkpoint_travels_with_it(
    package: Path, demo_checkpoint: Path
) -> None:
    expected = (demo_checkpoint / "LICENSE_MODEL").read_text()
    assert (package / "LICENSE_MODEL").read_text() == expected


def test_a_checkpoint_without_a_licence_gets_apples_notice(
    checkpoint: Path, tmp_path: Path
) -> None:
    export_package(checkpoint, tmp_path / "onnx")
    assert "non-commercial research" in (tmp_path / "onnx/LICENSE_MODEL").read_text()


def test_two_exports_are_the_same_bytes(package: Path, tmp_path: Path) -> None:
    assert export_package("demo", tmp_path / "again").files == read_manifest(package).files


def test_progress_counts_every_byte_of_the_weights(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    export_package("demo", tmp_path / "onnx", progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == [
        "token embeddings",
        "vision encoder",
        "projector",
        "decoder",
        "checksums",
        "golden values",
    ]
    written = [done for _, done, _ in calls]
    assert written == sorted(written)
    (total,) = {total for _, _, total in calls}
    assert written[-1] == total


def test_an_export_without_golden_values_has_pixels_and_ids_alone(tmp_path: Path) -> None:
    done = run("export", "demo", "-o", "onnx", "--no-golden", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    golden = read_golden(tmp_path / "onnx/golden.json")
    assert golden.variants == {}
    assert golden.missing == {"fp32": "the export was told not to run it"}
    assert golden.pictures
    assert golden.conversations


# --- destinations --------------------------------------------------------------------------------


def test_an_existing_package_is_kept_without_overwrite(copied_package: Path) -> None:
    before = (copied_package / "fastvlm.json").read_bytes()
    with pytest.raises(PackageError, match="already holds a package; give --overwrite"):
        export_package("demo", copied_package)
    assert (copied_package / "fastvlm.json").read_bytes() == before


def test_overwrite_replaces_a_package(copied_package: Path) -> None:
    (copied_package / "left-over.txt").touch()
    export_package("demo", copied_package, overwrite=True)
    assert names_in(copied_package) == EXPECTED_FILES
    assert names_in(copied_package.parent) == {copied_package.name}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_package_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PackageError, match="is no package, so it is not replaced"):
        export_package("demo", tmp_path, overwrite=overwrite)
    assert names_in(tmp_path) == {"thesis.txt"}


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("text")
    with pytest.raises(PackageError, match="is no package"):
        export_package("demo", path, overwrite=True)
    assert path.read_text() == "text"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    export_package("demo", folder)
    assert names_in(folder) == EXPECTED_FILES


def test_folders_above_are_made(tmp_path: Path) -> None:
    export_package("demo", tmp_path / "a/b/onnx")
    assert names_in(tmp_path / "a/b") == {"onnx"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PackageError, match=r"/file: cannot be written \(File exists\)"):
        export_package("demo", tmp_path / "file/onnx")


def test_a_failed_export_keeps_the_package_it_was_to_replace(copied_package: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied_package.iterdir()}

    def fail(stage: str, written_bytes: int, total_bytes: int) -> None:
        if stage == "checksums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_package("demo", copied_package, overwrite=True, progress=fail)
    assert {path.name: path.read_bytes() for path in copied_package.iterdir()} == before
    assert names_in(copied_package.parent) == {copied_package.name}


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'int3' is unknown; expected one of fp32"):
        export_package("demo", tmp_path / "onnx", precisions=["int3"])
    assert not names_in(tmp_path)


@pytest.mark.parametrize("size", [0, -64, 100, 8192])
def test_an_image_size_that_is_not_built_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(UnsupportedError, match=f"image size {size} is not built"):
        export_package("demo", tmp_path / "onnx", image_sizes=[size])
    assert not names_in(tmp_path)


# --- interruptions -------------------------------------------------------------------------------

# An export that is struck by something at its n-th report of progress, which comes before each
# tensor and each stage.
STRUCK = """
import os, resource, signal, sys
from pathlib import Path
from fastvlm_onnx.export.pipeline import export_package
destination, strike_at = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def progress(*call):
    global calls
    calls += 1
    if calls == strike_at:
        strike()
{strike}
export_package("demo", destination, progress=progress)
print(calls)
"""
STRIKES = {
    "SIGINT": "def strike(): os.kill(os.getpid(), signal.SIGINT)",
    "SIGTERM": "def strike(): os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "def strike(): os.kill(os.getpid(), signal.SIGKILL)",
    # No file may grow any more: writing fails as on a full disk, with another errno.
    "no room": (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def strike(): resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    ),
}


def struck_export(strike: str, destination: Path, strike_at: int) -> subprocess.CompletedProcess:
    code = STRUCK.replace("{strike}", STRIKES[strike])
    return subprocess.run(
        [sys.executable, "-c", code, str(destination), str(strike_at)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often an export reports progress."""
    done = struck_export("SIGKILL", tmp_path_factory.mktemp("counted") / "onnx", 10**9)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
@pytest.mark.parametrize("strike", STRIKES)
@pytest.mark.parametrize(
    "place", ["first tensor", "half way", "last tensor", "checksums", "golden values"]
)
def test_an_export_that_is_killed_or_interrupted_leaves_no_package(
    tmp_path: Path, reports: int, strike: str, place: str
) -> None:
    strike_at = {
        "first tensor": 1,
        "half way": reports // 2,
        "last tensor": reports - 4,
        "checksums": reports - 1,
        "golden values": reports,
    }[place]
    done = struck_export(strike, tmp_path / "onnx", strike_at)
    assert done.returncode != 0
    assert not (tmp_path / "onnx").exists()
    if strike in ("SIGINT", "no room"):
        assert not names_in(tmp_path)
    if strike == "no room":
        assert "could not be written" in done.stderr
    for folder in tmp_path.iterdir():
        with pytest.raises(PackageError):
            read_manifest(folder)


def test_what_a_killed_export_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    struck_export("SIGKILL", tmp_path / "onnx", 20)
    assert names_in(tmp_path) != set()
    export_package("demo", tmp_path / "onnx")
    assert names_in(tmp_path) == {"onnx"}


def test_a_package_that_a_killed_export_had_moved_away_gets_its_name_back(
    package: Path, tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    shutil.copytree(package, tmp_path / f".onnx.replaced-{ended.pid}")
    with pytest.raises(PackageError, match="already holds a package"):
        export_package("demo", tmp_path / "onnx")
    assert names_in(tmp_path) == {"onnx"}


def test_an_export_into_the_same_place_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".onnx.unfinished-{os.getppid()}"
    other.mkdir()
    export_package("demo", tmp_path / "onnx")
    assert names_in(tmp_path) == {"onnx", other.name}


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    message, left = export_until_full(tmp_path, 40, "decoder")
    assert "could not be written (the disk is full); nothing was left behind" in message
    assert left == "['filler']"


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    script = f"""
        set -e
        mount -t tmpfs -o size=4m tmpfs "$1"
        cd "$1"
        {sys.executable} -m fastvlm_onnx export demo -o onnx || echo "code $?"
        ls -A
    """
    done = on_small_disk(script, tmp_path)
    assert done.stdout == "code 2\n"
    assert "MB are free, and the package needs" in done.stderr


# --- the command ---------------------------------------------------------------------------------


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastvlm_onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_the_exported_folder_becomes_the_default_model(tmp_path: Path, picture: Path) -> None:
    done = run("export", "demo", "-o", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote mine" in done.stderr
    answer = run("generate", picture, "Describe the image.", cwd=tmp_path)
    assert answer.returncode == 0
    assert answer.stderr == f"model: {tmp_path / 'mine'} (the last export)\n"


def test_without_any_export_the_built_in_model_answers(tmp_path: Path, picture: Path) -> None:
    answer = run("generate", picture, "Describe the image.", cwd=tmp_path)
    assert answer.returncode == 0
    assert "the built-in demo; nothing was exported yet" in answer.stderr
    assert answer.stdout.strip()
    assert not names_in(tmp_path)
    again = run("generate", picture, "Describe the image.", cwd=tmp_path)
    assert len(again.stderr.splitlines()) == 1


def test_the_default_folder_is_named_after_the_checkpoint(tmp_path: Path) -> None:
    assert run("export", cwd=tmp_path).returncode == 0
    assert names_in(tmp_path) == {"demo-onnx"}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["absent"], "absent: no such folder"),
        (["."], "found no config.json"),
        (["demo", "--precision", "int3"], "precision 'int3' is unknown"),
        (["demo", "--image-size", "big"], "--image-size is 'big'"),
        (["demo", "--image-size", "100"], "image size 100 is not built"),
        (["demo", "-o", "."], "is no package, so it is not replaced"),
    ],
)
def test_a_refused_export_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], found: str
) -> None:
    (tmp_path / "mine.txt").touch()
    done = run("export", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert found in line
    assert names_in(tmp_path) == {"mine.txt"}


INTERRUPTED = """
import os, signal, sys
import fastvlm_onnx.export.pipeline as pipeline
from fastvlm_onnx.cli import main
write_card = pipeline.write_card
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    write_card(*arguments)
pipeline.write_card = interrupted
sys.argv = ["fastvlm-onnx", "export", "demo", "-o", "onnx"]
main()
"""


def test_an_interrupted_command_exits_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert not names_in(tmp_path)


def test_the_manifest_is_json_that_people_can_read(package: Path) -> None:
    text = (package / "fastvlm.json").read_text("utf-8")
    assert json.loads(text)["format_version"] == 2
    assert len(text.splitlines()) > 50


def test_a_signal_right_after_the_hidden_folder_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def make_and_be_ended(self: Path, *args: object, **kwargs: object) -> None:
        make(self, *args, **kwargs)
        if ".unfinished-" in self.name:
            raise Terminated

    monkeypatch.setattr(Path, "mkdir", make_and_be_ended)
    with pytest.raises(Terminated), unfinished_folder(tmp_path / "onnx"):
        pass
    assert names_in(tmp_path) == set()


def test_a_second_export_of_this_process_leaves_the_hidden_folder_of_the_first(
    tmp_path: Path,
) -> None:
    with unfinished_folder(tmp_path / "onnx") as first:
        with (
            pytest.raises(PackageError, match="File exists"),
            unfinished_folder(tmp_path / "onnx"),
        ):
            pass
        assert first.is_dir()
