"""`fastvlm-onnx caption --ray` on Ray on this machine: sources, destinations, errors."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal
from hub import serve_bytes
from PIL import Image
from ray_jobs import caption_on_ray, rows_in

from fastvlm_onnx import FastVLM, InputError

pytest.importorskip("ray", reason="the extra [ray] is not installed")

import pyarrow.fs

from fastvlm_onnx.ray import Captioner, PromptTemplate
from fastvlm_onnx.ray.cluster import Machine, connected, default_threads, fitting_actors
from fastvlm_onnx.ray.sources import (
    CONTENT,
    ERROR,
    PATH,
    PictureFiles,
    Source,
    SourceFile,
    find_source,
)

PROMPT = "Describe the image."


def rows_of(*given: object) -> list[dict[str, Any]]:
    """The rows that Ray's read tasks give, without Ray."""
    tasks = PictureFiles(find_source(list(map(str, given))), actors=1).get_read_tasks()
    return [row for task in tasks for table in task() for row in table.to_pylist()]


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# --- sources --------------------------------------------------------------------------------------


def test_files_become_rows_and_a_missing_file_an_error(picture: Path, tmp_path: Path) -> None:
    found, missing = rows_of(picture, tmp_path / "gone.png")
    assert found == {PATH: str(picture), CONTENT: picture.read_bytes(), ERROR: None}
    assert missing[CONTENT] is None
    assert "gone.png: no such picture" in missing[ERROR]


@pytest.mark.parametrize(
    ("suffix", "files", "actors", "tasks"),
    [
        (".jpg", 2_000, 1, 16),  # of 128 files, the most
        (".jpg", 2_000, 4, 33),  # 62 files: 8 tasks for an actor
        (".jpg", 2_000, 100, 63),  # of 32 files, the least
        (".jpg", 10_000_000, 1, 20_000),
        (".tar", 20, 1, 20),
    ],
)
def test_a_task_reads_many_pictures_or_a_tar_file(
    suffix: str, files: int, actors: int, tasks: int
) -> None:
    named = [SourceFile(f"a{suffix}", f"a{suffix}")] * files
    source = Source(named, pyarrow.fs.LocalFileSystem())
    assert len(PictureFiles(source, actors).get_read_tasks()) == tasks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own options
def test_ray_does_not_cut_what_a_task_reads(many: Path) -> None:
    with connected("local"):
        pictures = find_source([str(many)]).dataset(None, None, actors=1).materialize()
        assert pictures.num_blocks() == 192 // 32


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_pictures_in_tar_files_have_unique_ids(tmp_path: Path, picture: Path, suffix: str) -> None:
    path = tmp_path / f"000{suffix}"
    with tarfile.open(path, "w:gz" if suffix == ".tar.gz" else "w") as tar:
        for name in ("a/1.png", "a/1.json", "a/1.png", "b/1.png"):
            add_member(tar, name, picture.read_bytes())
    rows = rows_of(tmp_path)
    assert [row[PATH] for row in rows] == [
        f"{path}/{name}" for name in ("a/1.png", "a/1.png#2", "b/1.png")
    ]
    assert all(row[CONTENT] == picture.read_bytes() for row in rows)


def test_a_tar_file_that_is_cut_off_gives_its_pictures_and_an_error(
    tmp_path: Path, picture: Path
) -> None:
    path = tmp_path / "000.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("1.png", "2.png"):
            add_member(tar, name, picture.read_bytes())
    path.write_bytes(path.read_bytes()[: 1024 + len(picture.read_bytes()) + 700])
    first, *_, last = rows_of(path)
    assert first[CONTENT] == picture.read_bytes()
    assert "ends in the middle" in last[ERROR]


def test_an_address_of_a_file_system_is_searched(many: Path) -> None:
    rows = rows_of(f"file://{many}")
    assert [row[PATH] for row in rows] == [f"file://{path}" for path in sorted(many.iterdir())]


def test_a_source_of_two_kinds_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="found pictures and tar files; expected files of one"):
        find_source([str(tmp_path)])
    with pytest.raises(InputError, match="cannot be read"):
        find_source(["nowhere://bucket"])


# --- the actor ------------------------------------------------------------------------------------


def test_a_captioner_answers_about_each_form_of_a_picture(
    package: Path, model: FastVLM, picture: Path
) -> None:
    captioner = Captioner(str(package), PROMPT, id_column="id", max_new_tokens=3)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    contents = [picture.read_bytes(), {"bytes": picture.read_bytes()}, pixels, b"none", None, b""]
    batch = {"id": np.arange(6), "bytes": np.array([None] * 6, object)}
    batch["bytes"][:] = contents
    batch["error"] = np.array([None] * 5 + ["it is gone"], object)
    rows = captioner(batch).to_pylist()
    text = model.generate(picture, PROMPT, max_new_tokens=3).text
    assert [row["id"] for row in rows] == list(range(6))
    assert [row["text"] for row in rows] == [text] * 3 + [None] * 3
    assert all(row["finish_reason"] == "length" and row["seconds"] >= 0 for row in rows[:3])
    errors = [row["error"] for row in rows]
    assert errors[:3] == [None] * 3
    assert "not a picture" in errors[3]
    assert "there is no picture" in errors[4]
    assert errors[5] == "it is gone"


def test_a_captioner_fills_a_template_and_follows_a_schema(
    package: Path, picture: Path, questions: dict
) -> None:
    prompt, answer = next(iter(questions[picture.name].items()))
    batch = {"path": np.array([f"{prompt}/x.png"]), "bytes": np.array([picture.read_bytes()])}
    (row,) = Captioner(str(package), PromptTemplate("{parent}"))(batch).to_pylist()
    assert (row["path"], row["text"]) == (f"{prompt}/x.png", answer)
    pytest.importorskip("llguidance", reason="llguidance (extra [structured]) is not installed")
    schema = {"type": "object", "properties": {"n": {"enum": [3]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    (row,) = Captioner(str(package), PROMPT, schema=schema)(batch).to_pylist()
    assert json.loads(row["parsed"]) == {"n": 3}


def test_a_captioner_names_a_column_that_is_missing(package: Path) -> None:
    with pytest.raises(InputError, match="has the columns url; expected path"):
        Captioner(str(package), PROMPT)({"url": np.array(["x"])})


# --- the cluster ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "threads", "actors"),
    [([1, 2, 2], 1, 2), ([2, 2], 1, 1), ([4], 2, 1), ([17, 17, 4], 4, 8), ([16], 4, 3)],
)
def test_actors_leave_cpus_for_reading_and_writing(
    nodes: list[float], threads: int, actors: int
) -> None:
    assert fitting_actors(nodes, threads) == actors


@pytest.mark.parametrize(
    ("cpus", "model_bytes", "threads"),
    [
        ([4, 64], 1e6, 1),
        ([64], 1e9, 4),  # one thread each: 64 GB of models in 64 GB
        ([4, 64], 1e9, 2),
        ([4], 1e9, 1),
        ([8], 3e9, 4),
        ([4], 2e10, 2),
        ([2], 2e10, 1),
        ([4, 64], None, 2),
        ([], 1e6, 1),
    ],
)
def test_actors_of_small_models_have_one_thread(
    cpus: list[float], model_bytes: int | None, threads: int
) -> None:
    cluster = [Machine(number, memory=64e9) for number in cpus]
    assert default_threads([Machine(0, memory=1e9), *cluster], model_bytes) == threads


@pytest.mark.parametrize("nodes", [[], [2], [1, 1], [4]])
def test_a_cluster_without_room_for_an_actor_is_refused(nodes: list[float]) -> None:
    with pytest.raises(InputError, match="expected 4 for an actor and 2 more"):
        fitting_actors(nodes, 4)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 No\r\n\r\n", b""])
def test_an_address_where_another_program_listens_is_refused(answer: bytes) -> None:
    refused = pytest.raises(InputError, match="another program listens")
    with serve_bytes(answer) as address, refused, connected(address):
        pass


def test_a_machine_on_which_ray_does_not_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nSome processes failed.")

    monkeypatch.setattr("ray.init", fail)  # as Ray 2.60 does on a machine that is very busy
    words = r"not be started .* \(The current .* failed\); let"
    with pytest.raises(InputError, match=words), connected("local"):
        pass


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ray", "x.png"], "--ray needs -o DEST"),
        (["--ray", "auto", "x.png", "--txt"], "found --txt and --ray"),
        (["x.png", "--ray", "--shard", "1/2"], "found --shard and --ray"),
        (["x.png", "--actors", "1"], "found --actors without --ray"),
        (["x.png", "--ray", "--actors", "0", "-o", "{empty}/out"], "--actors is 0"),
        (["{empty}", "--ray", "-o", "{empty}/out"], "found no pictures"),
        (["x.png", "--ray", "-o", "{empty}/no/out"], "cannot be written"),
        (["x.png", "--ray", "-o", "{full}"], "exists already"),
        (["x.png", "--ray", "-o", "{full}", "--resume"], "has no ids of them"),
        (["x.png", "--ray", "127.0.0.1:1", "-o", "{empty}/out"], "no Ray cluster was found"),
        # Before the cluster is asked for, of which there is none at this address.
        (
            ["{picture}", "--ray", "127.0.0.1:1", "-o", "{empty}/out", "--id-column", "x"],
            "drop them",
        ),
    ],
)
def test_bad_arguments_of_a_job_are_refused_in_one_line(
    tmp_path: Path, package: Path, picture: Path, arguments: list[str], words: str
) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for folder in (empty, full):
        folder.mkdir()
    (full / "mine.txt").write_text("mine")
    places = {"empty": empty, "full": full, "picture": picture}
    filled = [argument.format(**places) for argument in arguments]
    options = ["--model", package] if "--ray" in arguments else []
    assert words in refusal("caption", *filled, *options)
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_a_job_on_this_machine_is_resumed_with_more_pictures(
    many: Path,
    package: Path,
    model: FastVLM,
    tmp_path: Path,
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_folder))
    (many / "bad.png").write_bytes(b"no picture")
    output = tmp_path / "captions.jsonl"
    command = ("--ray", many, "-o", output, "--model", package, "--max-new-tokens", 3)
    first = caption_on_ray(*command)
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 3, errors
    assert "1 of 193 pictures could not be read" in errors
    assert not list(short_folder.iterdir())  # the cluster's sockets and logs are gone
    before = {row["path"]: row for row in rows_in(output)}
    assert sorted(before) == sorted(map(str, many.iterdir()))
    one = str(many / "007.png")
    assert before[one]["text"] == model.generate(one, PROMPT, max_new_tokens=3).text
    assert list(before[one]) == ["path", "text", "finish_reason", "seconds"]
    assert "not a picture" in before[str(many / "bad.png")]["error"]

    (many / "new.png").write_bytes((many / "007.png").read_bytes())
    second = caption_on_ray(*command, "--resume")
    _, errors = second.communicate(timeout=240)
    assert second.returncode == 3, errors
    rows = rows_in(output)
    assert sorted(row["path"] for row in rows) == sorted(map(str, many.iterdir()))
    assert all(row == before[row["path"]] for row in rows if row["path"] in before)


@pytest.mark.slow
def test_a_job_reads_parquet_with_a_schema_for_the_answers(
    package: Path, picture: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": picture.read_bytes(), "path": None}] * 5 + [None]
    source, output = tmp_path / "source.parquet", tmp_path / "captions.parquet"
    pq.write_table(pa.table({"key": range(6), "image": images, "more": range(6)}), source)
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [["a", 1]]}')
    command = ("--ray", source, "-o", output, "--model", package, "--schema", schema)
    assert "expected path. Name another with --id-column" in refusal("caption", *command)
    columns = ("--id-column", "key", "--image-column", "image")
    process = caption_on_ray(*command, *columns)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 3, errors
    rows = sorted(rows_in(output), key=lambda row: row["key"])
    assert [row["key"] for row in rows] == list(range(6))
    assert [row["parsed"] for row in rows] == ['["a", 1]'] * 5 + [None]
    assert "there is no picture" in rows[5]["error"]


@pytest.mark.slow
def test_an_error_of_an_actor_is_one_line(many: Path, package: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("long " * 40_000)
    command = ("--ray", many, "-o", tmp_path / "captions.parquet", "--model", package)
    process = caption_on_ray(*command, "--prompt-file", prompt)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "shorten the prompt" in errors.splitlines()[-1]
    assert "Traceback" not in errors
