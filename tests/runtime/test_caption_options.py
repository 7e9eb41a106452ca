"""The pictures and prompts of `fastvlm-onnx caption`: shards, prompt files, templates."""

import json
from pathlib import Path, PurePosixPath

import pytest
from command_line import refusal, run

from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.runtime.captions.asking import NamedPicture, caption
from fastvlm_onnx.runtime.captions.pictures import Shard
from fastvlm_onnx.runtime.captions.prompts import FIELDS, PromptTemplate

# --- shards ---------------------------------------------------------------------------------------


def test_each_picture_is_in_one_shard_which_its_path_alone_decides() -> None:
    paths = [f"photos/{number}.png" for number in range(1000)]
    shards = [Shard(number, 8) for number in range(1, 9)]
    sizes = [sum(shard.holds(path) for path in paths) for shard in shards]
    assert sum(sizes) == len(paths)
    assert all(sum(shard.holds(path) for shard in shards) == 1 for path in paths)
    assert min(sizes) > 80
    # Pinned, since the machines of a job may run different versions.
    assert [next(s.number for s in shards if s.holds(path)) for path in paths[:6]] == [
        *(4, 2, 6, 8, 6, 8)
    ]


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "1", "1/0", "a/b", "1/8/2", "-1/8", "1/" + "9" * 5000]
)
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a number of all, from 1/8 to 8/8"):
        Shard.parse(text)


def test_shards_share_the_pictures_of_a_command(
    tmp_path: Path, package: Path, picture: Path
) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(picture.read_bytes())
    found = []
    for number in (1, 2):
        done = run(
            *("caption", tmp_path, "--model", package, "--max-new-tokens", 1),
            *("--shard", f"{number}/2"),
        )
        assert done.returncode == 0, done.stderr
        found += [json.loads(line)["path"] for line in done.stdout.splitlines()]
    assert sorted(found) == sorted(map(str, tmp_path.iterdir()))
    alone = tmp_path / "0.png"
    other = next(n for n in range(1, 1000) if not Shard(n, 999).holds(str(alone)))
    done = run("caption", alone, "--model", package, "--shard", f"{other}/999")
    assert (done.returncode, done.stdout) == (0, "")
    assert "has none of the 1 pictures" in done.stderr


# --- prompts --------------------------------------------------------------------------------------


def test_a_template_is_filled_with_parts_of_the_path() -> None:
    template = PromptTemplate("{parent}/{stem}{suffix} = {name}, {{{stem}}} of {path}")
    path = str(PurePosixPath("photos/cats/tom.1.png"))
    assert template.fill(path) == f"cats/tom.1.png = tom.1.png, {{tom.1}} of {path}"
    assert PromptTemplate("{name}").fill("{stem}") == "{stem}"  # filled once


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{stem.__class__}", r"has the field \{stem.__class__\}"),
        ("{stem[0]}", r"has the field \{stem\[0\]\}"),
        ("{stem!r}", r"has the field \{stem!r\}"),
        ("{stem:>1000000000}", r"has the field \{stem:>1000000000\}"),
        ("{}", r"has the field \{\}"),
        ("{0}", r"has the field \{0\}"),
        ("{file}", r"expected \{name\}, \{stem\}"),
        ("{stem", "cannot be read"),
        ("stem}", "cannot be read"),
        (" ", "the prompt is empty"),
    ],
)
def test_a_template_with_anything_but_fields_of_the_path_is_refused(
    template: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        PromptTemplate(template)


def test_every_field_is_in_the_help() -> None:
    text = run("caption", "--help").stdout
    assert all(f"{{{field}}}" in text for field in FIELDS)


def test_a_template_asks_about_each_picture_in_its_own_words(
    model: FastVLM, questions: dict, picture: Path
) -> None:
    name = picture.name
    prompt, answer = next(iter(questions[name].items()))
    template = PromptTemplate("{parent}")
    pictures = [
        NamedPicture(f"{prompt}/a", picture.read_bytes()),
        NamedPicture(" /no prompt", picture.read_bytes()),
        NamedPicture(f"{'long ' * 5000}/b", picture.read_bytes()),
        NamedPicture("\udce9/no text", picture.read_bytes()),
        NamedPicture("a/b", InputError("it is gone")),
    ]
    first, empty, long, odd, gone = caption(model, pictures, template, batch_size=5)
    assert first.generation is not None
    assert first.generation.text == answer
    assert "the prompt is empty" in str(empty.error)
    assert "shorten the prompt" in str(long.error)
    assert "the name is not valid Unicode" in str(odd.error)
    assert gone.error == "it is gone"


def test_a_prompt_file_is_the_question(
    tmp_path: Path, package: Path, questions: dict, picture: Path
) -> None:
    prompt, answer = next(iter(questions[picture.name].items()))
    file = tmp_path / "prompt.txt"
    file.write_text(f"\ufeff{prompt}\n", encoding="utf-8")
    done = run("caption", picture, "--model", package, "--prompt-file", file)
    assert json.loads(done.stdout)["text"] == answer, done.stderr
    assert "pictures: 1 in" in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "prompt is empty"), (b"\xff", "not UTF-8"), (None, "cannot be read")],
)
def test_a_prompt_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    assert words in refusal("caption", "x.png", "--prompt-file", file)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a", "--template", "b"], "found --prompt and --template"),
        (["--txt", "-o", "x"], "found --txt and -o"),
        (["-o", ""], "-o is ''; expected a file"),
        (["--shard", "2/1"], "--shard is '2/1'"),
        (["--top-p", "3"], "top_p is 3.0"),
    ],
)
def test_options_of_caption_that_exclude_each_other_are_refused(
    package: Path, options: list[str], words: str
) -> None:
    assert words in refusal("caption", "x.png", "--model", package, *options)
