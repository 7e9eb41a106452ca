import subprocess
import sys
from pathlib import Path

from fastvlm_onnx import FastVLM

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_ask_prints_the_answer(package: Path, picture: Path, model: FastVLM) -> None:
    question = "Describe the image."
    command = [sys.executable, str(EXAMPLES / "ask.py"), str(package), str(picture), question]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == model.generate(picture, question).text + "\n"
    assert "first token after" in done.stderr
