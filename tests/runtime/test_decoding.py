"""The loop and its cache, on the real decoder graph."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from fastvlm_onnx import FastVLM
from fastvlm_onnx.package import Manifest, read_manifest
from fastvlm_onnx.runtime.answering.answer import Answer, StageTimes
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.decoding import generate
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer

PROMPT = [5, 17, 80, 200, 31, 9, 254, 100]
# fp32 sums in another order: one row at a time against many.
REORDERED = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def manifest(package: Path) -> Manifest:
    return read_manifest(package)


@pytest.fixture(scope="module")
def embed_tokens(package: Path, manifest: Manifest) -> TokenEmbedding:
    return TokenEmbedding(package / "embed_tokens.npy", manifest.decoder)


@pytest.fixture(scope="module")
def language_model(
    package: Path, manifest: Manifest, embed_tokens: TokenEmbedding
) -> LanguageModel:
    session = GraphSession(package / manifest.variants["fp32"].decoder, ProviderChoice(CPU))
    return LanguageModel(Decoder(session, manifest.decoder), embed_tokens, manifest.decoder)


def run_greedily(
    language_model: LanguageModel, new_tokens: int, *, check: Callable[[], object] = lambda: None
) -> tuple[list[int], KVCache]:
    """The tokens of a greedy answer of this length, and its cache."""
    cache = language_model.new_cache(len(PROMPT) + new_tokens)
    token_ids: list[int] = []

    def accept(logits: np.ndarray) -> int | None:
        check()
        token_ids.append(int(logits.argmax()))
        return token_ids[-1] if len(token_ids) < new_tokens else None

    run = list(generate(language_model, language_model.embed([PROMPT]), cache, accept))
    assert run == token_ids[:-1]
    return token_ids, cache


def test_decode_continues_what_prefill_began(language_model: LanguageModel) -> None:
    at_once = language_model.new_cache(len(PROMPT))
    expected = language_model.prefill(language_model.embed([PROMPT]), at_once).copy()
    for split in range(1, len(PROMPT)):
        cache = language_model.new_cache(len(PROMPT))
        logits = language_model.prefill(language_model.embed([PROMPT[:split]]), cache)
        for token_id in PROMPT[split:]:
            logits = language_model.decode_one_step(token_id, cache)
        np.testing.assert_allclose(logits, expected, **REORDERED)


def test_room_left_in_the_cache_changes_nothing(language_model: LanguageModel) -> None:
    exact, roomy = language_model.new_cache(len(PROMPT)), language_model.new_cache(300)
    embeds = language_model.embed([PROMPT])
    expected = language_model.prefill(embeds, exact)
    np.testing.assert_array_equal(language_model.prefill(embeds, roomy), expected)


def test_a_step_writes_one_position_of_the_same_buffers(
    language_model: LanguageModel, manifest: Manifest
) -> None:
    cache = language_model.new_cache(20)
    language_model.prefill(language_model.embed([PROMPT]), cache)
    binding = cache.binding(language_model.decoder.session)
    _, *before = binding.get_outputs()
    assert len(before) == 2 * manifest.decoder.num_hidden_layers
    addresses = [buffer.data_ptr() for buffer in before]
    contents = [buffer.numpy().copy() for buffer in before]
    language_model.decode_one_step(42, cache)
    _, *after = binding.get_outputs()
    assert [buffer.data_ptr() for buffer in after] == addresses
    end = len(PROMPT)
    for old, buffer in zip(contents, after, strict=True):
        new = buffer.numpy()
        np.testing.assert_array_equal(new[:, :, :end], old[:, :, :end])
        assert new[:, :, end].all()
        np.testing.assert_array_equal(new[:, :, end + 1 :], old[:, :, end + 1 :])


def test_the_cache_keeps_its_memory(language_model: LanguageModel, manifest: Manifest) -> None:
    expected, cache = run_greedily(language_model, 6)
    size = cache.binding(language_model.decoder.session).get_outputs()[1].numpy().size

    def spoil_freed_memory() -> None:
        gc.collect()
        _ = [np.full(size, np.nan, np.float32) for _ in range(200)]

    assert run_greedily(language_model, 6, check=spoil_freed_memory)[0] == expected


def test_the_last_token_costs_no_run_of_the_decoder(language_model: LanguageModel) -> None:
    token_ids, cache = run_greedily(language_model, 3)
    assert len(token_ids) == 3
    assert cache.length == len(PROMPT) + 2


def test_embeddings_of_ids_and_rows_are_joined_in_any_order(
    language_model: LanguageModel, embed_tokens: TokenEmbedding
) -> None:
    rows = np.full((2, language_model.sizes.hidden_size), 0.5, np.float32)
    joined = language_model.embed([rows, [3, 4], rows, [5]])
    expected = np.concatenate([rows, embed_tokens([3, 4]), rows, embed_tokens([5])])
    np.testing.assert_array_equal(joined, expected[None])


# --- the end of an answer ------------------------------------------------------------------------


def new_answer(model: FastVLM, eos: tuple[int, ...], max_new_tokens: int, **options: Any) -> Answer:
    return Answer(
        model.template.tokenizer,
        GenerationConfig(**options),
        eos,
        max_new_tokens,
        StageTimes(0.0, 0.0, 0.0, 0.0),
    )


def logits_for(token_id: int, model: FastVLM) -> np.ndarray:
    logits = np.zeros(model.manifest.decoder.vocab_size, np.float32)
    logits[token_id] = 1
    return logits


def test_an_end_token_ends_the_answer_and_is_not_part_of_it(model: FastVLM) -> None:
    answer = new_answer(model, (7,), 12)
    assert [answer.accept(logits_for(t, model)) for t in (40, 41, 7)] == [40, 41, None]
    assert (answer.token_ids, answer.finish_reason) == ([40, 41], "stop")


def test_an_end_token_in_the_last_place_is_a_stop(model: FastVLM) -> None:
    answer = new_answer(model, (7,), 1)
    assert answer.accept(logits_for(7, model)) is None
    assert (answer.token_ids, answer.finish_reason) == ([], "stop")


def test_an_answer_ends_at_its_length(model: FastVLM) -> None:
    answer = new_answer(model, (7,), 2)
    assert [answer.accept(logits_for(t, model)) for t in (40, 41)] == [40, None]
    assert (answer.token_ids, answer.finish_reason) == ([40, 41], "length")


def test_ignore_eos_counts_end_tokens_as_tokens(model: FastVLM, picture: Path) -> None:
    answer = new_answer(model, (7,), 3, ignore_eos=True)
    assert [answer.accept(logits_for(t, model)) for t in (7, 7, 7)] == [7, 7, None]
    assert (answer.token_ids, answer.finish_reason) == ([7, 7, 7], "length")
    found = model.generate(picture, "Describe the image.", ignore_eos=True, max_new_tokens=40)
    assert (len(found.token_ids), found.finish_reason) == (40, "length")


def test_only_the_end_of_a_turn_ends_an_answer_and_its_text_is_decoded_and_stripped(
    model: FastVLM, picture: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TextTokenizer(package / "tokenizer.json")
    tokens = " \nan <|endoftext|> answer<|im_start|>\n with <tags> \U0001f600<|endoftext|> \n"
    said = tokenizer.encode_template(tokens)
    (end,) = tokenizer.encode_template("<|im_end|>")
    script = iter([*said, end, *said])
    monkeypatch.setattr(Sampler, "__call__", lambda _sample, _logits: next(script))
    generation = model.generate(picture, "Describe the image.")
    assert model.manifest.decoder.eos_token_ids == [end]
    assert (generation.token_ids, generation.finish_reason) == (said, "stop")
    decoded = Tokenizer.from_file(str(package / "tokenizer.json")).decode(said)
    assert generation.text == decoded.strip() == "an  answer\n with <tags> \U0001f600"


def test_a_character_cut_at_max_new_tokens_is_a_replacement(
    model: FastVLM, picture: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter(TextTokenizer(package / "tokenizer.json").encode("a \U0001f600"))
    monkeypatch.setattr(Sampler, "__call__", lambda _sample, _logits: next(script))
    generation = model.generate(picture, "Describe the image.", max_new_tokens=4)
    assert (generation.text, generation.finish_reason) == ("a \ufffd", "length")


def test_embedding_rows_are_read_by_id(embed_tokens: TokenEmbedding, package: Path) -> None:
    matrix = np.load(package / "embed_tokens.npy")
    rows = embed_tokens([3, 3, 200])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, matrix[[3, 3, 200]].astype(np.float32))
