"""Compiled graphs on disk: what is kept, checked and deleted. A fake provider writes them."""

import logging
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refusal, run

from fastvlm_onnx import InputError
from fastvlm_onnx.names import DECODER
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort import compiled_cache, compiled_graphs
from fastvlm_onnx.runtime.ort.compiled_graphs import CompiledGraph
from fastvlm_onnx.runtime.ort.graph_sessions import graph_files, weights_in
from fastvlm_onnx.runtime.ort.providers import CPU, OPENVINO
from fastvlm_onnx.user_data import HOME_VARIABLE, cache_folder

PLACEMENT = {OPENVINO: Counter(Conv=3, MatMul=2)}
BYTES = 100_000


def place(digest: str = "a" * 64, **options: str) -> CompiledGraph:
    return CompiledGraph("vision_encoder.256.fp32.onnx", digest, OPENVINO, options)


def keep(compiled: CompiledGraph, size: int = BYTES) -> CompiledGraph:
    """Compile as a fake provider does: the context model and a file beside it."""
    unfinished = compiled.begin()
    assert unfinished is not None
    (unfinished / "graph.onnx").write_bytes(b"context")
    (unfinished / "graph_fake.bin").write_bytes(os.urandom(size))
    compiled.finish(unfinished, PLACEMENT)
    return compiled


def test_a_compiled_graph_is_read_back_with_its_placement(user_folder: Path) -> None:
    assert place().read() is None
    assert not place().exists()
    keep(place())
    assert place().exists()
    assert place().read() == PLACEMENT
    assert user_folder / "cache" in place().folder.parents
    (entry,) = compiled_cache.entries()
    assert entry.record is not None
    assert entry.record.graph == "vision_encoder.256.fp32.onnx"
    assert entry.size_bytes > BYTES


def test_the_graph_the_options_the_versions_and_the_processor_name_the_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {place().folder, place("b" * 64).folder, place(load_config="{}").folder}
    monkeypatch.setattr(compiled_graphs, "provider_version", lambda ep: "9.9")
    folders.add(place().folder)
    monkeypatch.setattr(compiled_graphs, "processor", lambda: "another processor")
    folders.add(place().folder)
    assert len(folders) == 5
    assert place().folder == place().folder


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "record"])
def test_a_damaged_compiled_graph_is_deleted_and_made_anew(damage: str) -> None:
    file = keep(place()).folder / "graph_fake.bin"
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "cut":
        file.write_bytes(content[:500])
    elif damage == "missing":
        file.unlink()
    else:
        (place().folder / compiled_cache.RECORD_FILE).write_text('{"graph": 3')
    assert place().read() is None
    assert not place().folder.exists()
    assert keep(place()).read() == PLACEMENT


@pytest.mark.parametrize(
    "placement", [None, {CPU: Counter(Conv=5)}, {OPENVINO: Counter(Conv=4), CPU: Counter(Scan=1)}]
)
def test_a_graph_that_the_provider_did_not_take_whole_is_not_kept(
    placement: dict[str, Counter[str]] | None,
) -> None:
    unfinished = place().begin()
    assert unfinished is not None
    (unfinished / "graph.onnx").write_bytes(b"context")
    place().finish(unfinished, placement)
    assert place().read() is None
    assert not unfinished.exists()


def test_the_least_recently_used_graphs_are_deleted_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(compiled_cache.LIMIT_VARIABLE, "1")
    graphs = [keep(place(letter * 64), 400_000) for letter in "ab"]
    for age, graph in zip((200, 100), graphs, strict=True):
        used = (graph.folder / compiled_cache.RECORD_FILE).stat().st_mtime - age
        os.utime(graph.folder / compiled_cache.RECORD_FILE, (used, used))
    assert graphs[0].read() == PLACEMENT  # used again, so the other is the older
    keep(place("c" * 64), 400_000)
    assert [graph.exists() for graph in graphs] == [True, False]
    assert place("c" * 64).exists()


def test_a_limit_of_0_keeps_nothing_and_a_wrong_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(compiled_cache.LIMIT_VARIABLE, "0")
    assert place().begin() is None
    monkeypatch.setenv(compiled_cache.LIMIT_VARIABLE, "2 GB")
    with pytest.raises(InputError, match=r"FASTVLM_ONNX_CACHE_MB is '2 GB'; expected a number"):
        place().begin()
    assert "FASTVLM_ONNX_CACHE_MB is '2 GB'" in refusal("cache")


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        assert place().begin() is None
    (record,) = caplog.records
    assert "compiled graphs cannot be kept there (Not a directory)" in record.getMessage()


def test_the_cache_command_lists_and_clears_compiled_graphs(user_folder: Path) -> None:
    keep(place())
    listed = run("cache").stdout
    assert "0.1 MB in 1 compiled graphs, of 2,000 MB at most" in listed
    assert "vision_encoder.256.fp32.onnx for openvino" in listed
    (user_folder / "last-export").write_text("x")
    assert "deleted 0.1 MB" in run("cache", "--clear").stdout
    assert not place().exists()
    assert (user_folder / "last-export").exists()
    assert "0.0 MB in 0 compiled graphs" in run("cache").stdout


def test_an_unfinished_folder_of_a_killed_process_is_deleted_after_a_day() -> None:
    unfinished = place().begin()
    assert unfinished is not None
    keep(place("b" * 64))
    assert unfinished.exists()
    yesterday = unfinished.stat().st_mtime - 2 * compiled_cache.OLD_SECONDS
    os.utime(unfinished, (yesterday, yesterday))
    keep(place("c" * 64))
    assert not unfinished.exists()


def test_two_processes_that_compile_the_same_graph_at_once_both_go_on() -> None:
    first = place().begin()
    assert first is not None
    first = first.rename(first.with_name(f"{first.name}0"))  # as another process names it
    second = place().begin()
    assert second is not None
    for unfinished in (first, second):
        (unfinished / "graph.onnx").write_bytes(b"context")
        place().finish(unfinished, PLACEMENT)
    assert place().read() == PLACEMENT
    assert [path.name for path in place().folder.parent.iterdir()] == [place().folder.name]


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("linux", ("XDG_CACHE_HOME", "/x"), "/x/fastvlm-onnx"),
        ("linux", ("XDG_CACHE_HOME", ""), "~/.cache/fastvlm-onnx"),
        ("darwin", ("XDG_CACHE_HOME", "/x"), "~/Library/Caches/fastvlm-onnx"),
        ("win32", ("LOCALAPPDATA", "/x"), "/x/fastvlm-onnx/Cache"),
        ("win32", ("LOCALAPPDATA", ""), "~/AppData/Local/fastvlm-onnx/Cache"),
    ],
)
def test_the_cache_folder_is_that_of_the_system(
    monkeypatch: pytest.MonkeyPatch, system: str, variable: tuple[str, str], expected: str
) -> None:
    monkeypatch.delenv(HOME_VARIABLE)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv(*variable)
    assert cache_folder() == Path(expected).expanduser()


def test_shared_token_embeddings_are_checked_beside_a_compiled_decoder(
    variants_package: Path,
) -> None:
    manifest = read_manifest(variants_package)
    variant = manifest.variants["int4"]
    files = graph_files(manifest, "int4", manifest.image.default_size, {})
    decoder = manifest.graphs[variant.decoder]
    # A checkpoint with tied embeddings gives a decoder that reads them too.
    tied = replace(decoder, weights=[*decoder.weights, *variant.embedding_files])
    manifest = replace(manifest, graphs={**manifest.graphs, variant.decoder: tied})
    unread = weights_in(manifest, files, [DECODER], variant.embedding_files)
    assert unread == set(decoder.weights)
