"""The benchmark on a real language model: prompts, checkpoint, and a run on a small model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
from quality.job import Job, write_sequences
from quality.ours import language_files
from quality.prompts import Prompt, read_prompts, tokenize
from quality.wheels import LAYER_TENSORS, write_checkpoint
from quality.worker import WorkerError, read_json, worker
from random_checkpoint import DEMO_CHECKPOINT, LanguageSize
from tokenizers import Tokenizer

from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.export.architecture.tensor_names import VISION_PREFIX
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.names import TOKENIZER_FILE
from fastvlm_onnx.package import read_manifest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARK = ROOT / "benchmarks/real_language_model.py"
CALIBRATION = ROOT / "export/calibration/texts.json"
KINDS = {"question", "image", "conversation", "code", "list", "json", "table", "long"}
LANGUAGES = {"en", "fr", "de", "es", "zh", "ru"}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_the_files_of_a_language_model_are_all_that_a_greedy_answer_reads(
    variants_package: Path, tmp_path: Path
) -> None:
    job = Job("ours-fast", tmp_path, variants_package, threads=1)
    variant = read_manifest(variants_package).variants["fast"]
    files = set(language_files(job))
    assert variant.split_decoder is not None
    assert files >= {variant.prefill, variant.decoder, variant.embed_tokens}
    assert files >= set(variant.split_decoder.graph_files().values())
    assert not files & {*variant.vision_encoder.values(), variant.projector}


def decode(package: Path, token_ids: list[int]) -> str:
    """The text of token ids, special tokens included."""
    tokenizer = Tokenizer.from_file(str(package / TOKENIZER_FILE))
    return tokenizer.decode(token_ids, skip_special_tokens=False)


# --- prompts -------------------------------------------------------------------------------------


def test_there_are_200_distinct_prompts_of_all_kinds_and_languages() -> None:
    prompts = read_prompts()
    assert len({prompt.id for prompt in prompts}) == 200
    assert len({(prompt.image, *prompt.turns) for prompt in prompts}) == 200
    assert {prompt.kind for prompt in prompts} == KINDS
    assert {prompt.language for prompt in prompts} == LANGUAGES
    assert all(
        len(prompt.turns) == (5 if prompt.kind == "conversation" else 1) for prompt in prompts
    )
    assert all((prompt.image is not None) == (prompt.kind == "image") for prompt in prompts)


def test_a_subset_of_the_prompts_has_all_kinds_and_languages() -> None:
    prompts = read_prompts(24)
    assert len(prompts) == 24
    assert {prompt.kind for prompt in prompts} == KINDS
    assert {prompt.language for prompt in prompts} == LANGUAGES


@pytest.mark.parametrize("count", [0, 201])
def test_a_subset_of_an_impossible_size_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"^{count} prompts were asked for; expected 1 to 200"):
        read_prompts(count)


def test_no_calibration_text_shares_a_passage_with_a_prompt() -> None:
    def passages(text: str) -> Iterator[str]:
        return (text[i : i + 30] for i in range(len(text) - 29))

    seen = {
        passage
        for prompt in read_prompts()
        for text in (*prompt.turns, prompt.image or "")
        for passage in passages(text)
    }
    texts = json.loads(CALIBRATION.read_text("utf-8"))
    assert len(set(texts)) == 64
    shared = [passage for text in texts for passage in passages(text) if passage in seen]
    # Table rules and runs of blanks are in both.
    assert [passage for passage in shared if len(set(passage)) > 5] == []


def test_a_conversation_is_tokenised_as_the_template_has_it(model: FastVLM, package: Path) -> None:
    turns = ["What is it?", "A star.", "Red?", "No, it is blue.", "How many?"]
    before, image, after = tokenize(model, Prompt("en-0", "en", "conversation", turns))
    assert before == image == []
    text = model.manifest.prompt
    expected = text.system
    for asked, answer in zip(turns[::2], [*turns[1::2], ""], strict=True):
        expected += text.user + asked + text.end_of_turn + text.assistant + answer
        expected += text.end_of_turn if answer else ""
    assert decode(package, after) == expected


def test_an_image_text_stands_between_the_parts_of_the_prompt(
    model: FastVLM, package: Path
) -> None:
    prompt = Prompt("en-0", "en", "image", ["What is it?"], "A red star.")
    before, image, after = tokenize(model, prompt)
    assert image == model.template.tokenizer.encode("A red star.")
    text = model.manifest.prompt
    assert (
        decode(package, [*before, *after])
        == text.before_image + text.before_prompt + "What is it?" + text.after_prompt
    )


# --- the checkpoint ------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_tensors_and_tokens_of_the_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is a development dependency")
    size = LanguageSize(64, 96, 2, 4, 2, 429, 429, is_tied=True)
    demo = open_checkpoint("demo")
    vision = {
        name.removeprefix(VISION_PREFIX): tensor.shape
        for name, tensor in demo.tensors.items()
        if name.startswith(VISION_PREFIX)
    }
    vocab = json.loads((DEMO_CHECKPOINT / "vocab.json").read_text("utf-8"))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # 1: ordinary, 3: control, 4: user-defined, 5: unused rows at the end
    types = [1] * len(vocab) + [3, 3, 3, 4, 5]
    merges = (DEMO_CHECKPOINT / "merges.txt").read_text("utf-8").split("\n")[1:]
    shapes = {
        "attn_q.weight": (64, 64),
        "attn_k.weight": (32, 64),
        "attn_v.weight": (32, 64),
        "attn_output.weight": (64, 64),
        "ffn_gate.weight": (96, 64),
        "ffn_up.weight": (96, 64),
        "ffn_down.weight": (64, 96),
        "attn_q.bias": (64,),
        "attn_k.bias": (32,),
        "attn_v.bias": (32,),
        "attn_norm.weight": (64,),
        "ffn_norm.weight": (64,),
    }
    assert shapes.keys() == LAYER_TENSORS.keys()
    tensors = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    tensors |= {"output.weight": (len(types), 64), "output_norm.weight": (64,)}
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in tensors.items()}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    writer.add_token_list([*vocab, *special, "<tool_call>", "[PAD0]"])
    writer.add_token_types(types)
    writer.add_token_merges([merge for merge in merges if merge])
    writer.add_eos_token_id(len(vocab) + 2)
    writer.add_bos_token_id(len(vocab))
    for name, array in values.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    write_checkpoint(tmp_path / "model.gguf", tmp_path / "checkpoint", size, vision)

    made = open_checkpoint(tmp_path / "checkpoint")
    assert made.config.decoder.eos_token_ids == (len(vocab) + 2,)
    assert made.config.decoder.vocab_size == len(vocab) + 4  # no unused rows
    assert json.loads(made.tokenizer)["model"]["vocab"] == vocab
    added = {
        item["content"]: item["special"] for item in json.loads(made.tokenizer)["added_tokens"]
    }
    assert added == dict.fromkeys(special, True) | {"<tool_call>": False}
    for name, source in LAYER_TENSORS.items():
        found = made.tensors[f"model.layers.1.{source}"].read()
        np.testing.assert_array_equal(found, values[f"blk.1.{name}"].astype(ml_dtypes.bfloat16))
    rows = made.tensors["model.embed_tokens.weight"].read()
    np.testing.assert_array_equal(rows, values["output.weight"].astype(ml_dtypes.bfloat16))


def test_a_registry_without_the_wheels_skips_the_benchmark(tmp_path: Path) -> None:
    done = run(
        *("--out", tmp_path / "out", "--work", tmp_path / "work"),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("skipped: the language model's wheels cannot be had (ERROR: No ")
    assert not (tmp_path / "out").exists()


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_measures_every_variant_and_pytorch(variants_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        *("--checkpoint", DEMO_CHECKPOINT, "--package", variants_package, "--out", out),
        *("--prompts", 9, "--steps", 3, "--rounds", 1, "--threads", 1, "--work", tmp_path),
        *("--variants", "int8", "--peers", "pytorch"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "real-language-model.json").read_text("utf-8"))
    assert found["failures"] == {}
    fp32, int8, pytorch = (found["systems"][n] for n in ("ours-fp32", "ours-int8", "pytorch"))
    assert fp32["steps"] == int8["steps"] == pytorch["steps"] > 9
    assert (fp32["kl_divergence"], fp32["agreeing_steps"]) == (0, fp32["steps"])
    assert pytorch["kl_divergence"] < 1e-6 < int8["kl_divergence"] < 0.1
    assert pytorch["text_perplexity"] == pytest.approx(fp32["text_perplexity"], rel=1e-3)
    assert int8["language_bytes"] < fp32["language_bytes"] < fp32["package_bytes"]
    assert set(found["groups"]) <= KINDS | LANGUAGES
    page = (out / "real-language-model.md").read_text("utf-8")
    assert done.stdout.strip() == page.strip()
    assert (
        "| system | same first choice | KL divergence, mean | 99th percentile | largest |" in page
    )
    assert f"ours-int8 changed no first choice of {int8['steps']}." in page or (
        "ours-int8 changes 1 first choice in " in page
    )
    texts = ElementTree.parse(out / "real-language-model.svg").iter(
        "{http://www.w3.org/2000/svg}text"
    )
    shown = {"".join(element.itertext()).strip() for element in texts}
    assert {"ours-int8", "ms a token", "language model, MB"} <= shown
    assert "pytorch" not in shown  # it would flatten the other points


def test_files_of_another_checkpoint_are_not_mixed(variants_package: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.txt").write_text("/elsewhere")
    done = run(
        *("--checkpoint", DEMO_CHECKPOINT, "--package", variants_package),
        *("--out", tmp_path / "out", "--work", tmp_path, "--prompts", 1),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"holds files made from /elsewhere, not from {DEMO_CHECKPOINT}" in done.stderr


def test_a_package_without_fp32_is_refused(tmp_path: Path) -> None:
    export_package("demo", tmp_path / "onnx", precisions=["int8"])
    done = run(
        *("--package", tmp_path / "onnx", "--out", tmp_path / "out", "--work", tmp_path / "work"),
        *("--prompts", 1),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{tmp_path / 'onnx'}: has no fp32 variant, which the others are compared with.\n"
    )


def test_a_failed_worker_gives_its_last_lines(tmp_path: Path) -> None:
    write_sequences(tmp_path / "sequences.json", [])
    job = Job("ours-int8", tmp_path, tmp_path / "nowhere", threads=1)
    with pytest.raises(WorkerError, match=r"nowhere: no such folder"), worker("time", job) as pipe:
        read_json(pipe)


def test_an_unknown_variant_or_system_is_refused() -> None:
    for option, known in (("--variants", "fp32, fp16"), ("--peers", "pytorch, genai")):
        done = run("--out", "nowhere", option, "int3")
        assert done.returncode == 2
        assert f"{option}: int3 unknown; expected some of {known}" in done.stderr
