"""`fastvlm-onnx bench`: the figures of this machine, each row from a process of its own."""

import json
from pathlib import Path

import pytest
from command_line import refusal, run

FEW = ("--warmup", 0, "--repeats", 2, "--new-tokens", 8)


def test_json_holds_every_answer_of_every_case(package: Path) -> None:
    done = run("bench", package, "--json", "--threads", "1,2", *FEW)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["onnxruntime"]
    assert (found["warmup"], found["repeats"]) == (0, 2)
    assert [case["threads"] for case in found["cases"]] == [1, 2]
    for case in found["cases"]:
        assert (case["precision"], case["image_size"]) == ("fp32", 256)
        # Answers go on past the model's own end.
        assert case["new_tokens"] == 8
        assert case["prompt_tokens"] > 16
        assert 30e6 < case["peak_rss_bytes"] < 2e9
        assert case["load"] > 0
        for answer in case["answers"]:
            parts = answer["preprocess"] + answer["vision"] + answer["prefill"]
            assert 0 < parts < answer["first_token"]
            assert 0 < answer["outside"] < 1
            seconds = answer["decode_one_token"]
            assert answer["tokens_per_second"] == pytest.approx(1 / seconds)
        assert len(case["answers"]) == 2


def test_the_table_states_its_conditions_and_has_a_row_for_each_case(package: Path) -> None:
    done = run("bench", package, "--precision", "all", "--image-size", "all", *FEW)
    assert done.returncode == 0
    text, _, header, rule, *rows = done.stdout.splitlines()
    assert "2 answers after 0 to warm up" in text
    assert "8 of answer at 256 pixels" in text
    assert header.count("|") == rule.count("|") == 14
    (row,) = rows
    assert row.startswith("| fp32 | 256 |")
    assert row.count("|") == 14


def test_a_case_that_fails_says_why_and_the_others_are_measured(copied_package: Path) -> None:
    weights = copied_package / "decoder.fp32.onnx.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    done = run("bench", copied_package, "--json", "--threads", "1,2", *FEW)
    assert done.returncode == 1
    cases = json.loads(done.stdout)["cases"]
    assert len(cases) == 2
    assert all(case["error"].startswith(f"{weights}: sha256 is") for case in cases)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeats", "0"], "--repeats is 0; expected 1 or more."),
        (["--new-tokens", "1"], "--new-tokens is 1; expected 2 or more."),
        (["--threads", "two"], "--threads is 'two'; expected numbers"),
        (["--provider", "abacus"], "'abacus' is unknown"),
        (["--precision", "int3"], "has no int3 variant"),
        (["--image-size", "99"], "was not exported for 99 pixels"),
        (["--picture", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    package: Path, arguments: list[str], words: str
) -> None:
    assert words in refusal("bench", package, *arguments)
