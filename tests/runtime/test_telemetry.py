"""ONNX Runtime's telemetry is off: no file is written for it and no socket is opened."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastvlm_onnx.telemetry import TELEMETRY_VARIABLE

PROMPT = "Describe the image."
# Onnxruntime 1.32 looks its collector up half a minute after it was imported.
SECONDS_UNTIL_FIRST_REPORT = 75

GENERATE_WITH_THE_LIBRARY = """
import sys, time
import fastvlm_onnx
fastvlm_onnx.load(sys.argv[1]).generate(sys.argv[2], "Describe the image.")
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def private_folders(tmp_path: Path) -> dict[str, str]:
    """An environment whose home, temporary and cache folders are empty and belong to the test."""
    environment = {name: text for name, text in os.environ.items() if name != TELEMETRY_VARIABLE}
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        folder = tmp_path / "private" / name
        folder.mkdir(parents=True)
        environment[name] = str(folder)
    return environment


def files_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("way", ["command", "library"])
def test_an_answer_writes_no_telemetry_files(
    way: str, package: Path, picture: Path, private_folders: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", picture, PROMPT]
    command += ["--model", package]
    if way == "library":
        command = [sys.executable, "-c", GENERATE_WITH_THE_LIBRARY, package, picture, "0"]
    subprocess.run(command, env=private_folders, capture_output=True, check=True)
    assert files_in(tmp_path / "private") == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "seconds", [0, pytest.param(SECONDS_UNTIL_FIRST_REPORT, marks=pytest.mark.slow)]
)
def test_an_answer_opens_no_socket(
    seconds: int, package: Path, picture: Path, private_folders: dict[str, str], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    strace = ["strace", "--follow-forks", "--trace=socket,socketpair,connect", "-o", calls]
    program = [sys.executable, "-c", GENERATE_WITH_THE_LIBRARY, package, picture, str(seconds)]
    done = subprocess.run([*strace, *program], env=private_folders, capture_output=True, text=True)
    if "PTRACE_TRACEME" in done.stderr:
        pytest.skip(f"this system does not let strace run: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    assert [line for line in calls.read_text().splitlines() if "socket" in line] == []


def test_a_users_own_setting_is_kept(private_folders: dict[str, str]) -> None:
    code = (
        "import os\n"
        "from fastvlm_onnx.telemetry import disable_telemetry\n"
        "disable_telemetry()\n"
        f"print(os.environ[{TELEMETRY_VARIABLE!r}])\n"
    )

    def variable(**given: str) -> str:
        environment = private_folders | given
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert variable() == "1"
    assert variable(ORT_DISABLE_TELEMETRY="0") == "0"
