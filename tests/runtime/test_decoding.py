"""The loop and its cache, on the real decoder graph."""

import gc
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fastvlm_onnx import FastVLM
from fastvlm_onnx.package import Manifest, read_manifest
from fastvlm_onnx.runtime.engine.decoding import decode, decode_one_token, prefill
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import DecoderSession, GraphSession
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer

PROMPT = [5, 17, 80, 200, 31, 9, 254, 100]
# fp32 sums in another order: one row at a time against many.
REORDERED = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def manifest(package: Path) -> Manifest:
    return read_manifest(package)


@pytest.fixture(scope="module")
def decoder(package: Path, manifest: Manifest) -> DecoderSession:
    path = package / manifest.variants["fp32"].decoder
    return DecoderSession(GraphSession(path, ProviderChoice(CPU)), manifest.decoder)


@pytest.fixture(scope="module")
def embed_tokens(package: Path, manifest: Manifest) -> TokenEmbedding:
    return TokenEmbedding(package / "embed_tokens.npy", manifest.decoder)


def greedy(logits: np.ndarray) -> int:
    return int(logits.argmax())


def run_loop(
    decoder: DecoderSession,
    embed_tokens: TokenEmbedding,
    max_new_tokens: int,
    eos_token_ids: tuple[int, ...] = (),
) -> tuple[list[int], str, KVCache]:
    cache = decoder.new_cache(len(PROMPT) + max_new_tokens)
    logits = prefill(decoder, embed_tokens(PROMPT)[None], cache)
    tokens = decode(decoder, embed_tokens, greedy, logits, cache, max_new_tokens, eos_token_ids)
    token_ids = []
    while True:
        try:
            token_ids.append(next(tokens))
        except StopIteration as end:
            return token_ids, end.value, cache


def test_decode_continues_what_prefill_began(
    decoder: DecoderSession, embed_tokens: TokenEmbedding
) -> None:
    at_once = decoder.new_cache(len(PROMPT))
    expected = prefill(decoder, embed_tokens(PROMPT)[None], at_once).copy()
    for split in range(1, len(PROMPT)):
        cache = decoder.new_cache(len(PROMPT))
        logits = prefill(decoder, embed_tokens(PROMPT[:split])[None], cache)
        for token_id in PROMPT[split:]:
            logits = decode_one_token(decoder, embed_tokens, token_id, cache)
        np.testing.assert_allclose(logits, expected, **REORDERED)


def test_room_left_in_the_cache_changes_nothing(
    decoder: DecoderSession, embed_tokens: TokenEmbedding
) -> None:
    exact, roomy = decoder.new_cache(len(PROMPT)), decoder.new_cache(300)
    expected = prefill(decoder, embed_tokens(PROMPT)[None], exact)
    np.testing.assert_array_equal(prefill(decoder, embed_tokens(PROMPT)[None], roomy), expected)


def test_a_step_writes_one_position_of_the_same_buffers(
    decoder: DecoderSession, embed_tokens: TokenEmbedding, manifest: Manifest
) -> None:
    cache = decoder.new_cache(20)
    prefill(decoder, embed_tokens(PROMPT)[None], cache)
    _, *before = cache.bindings[0].get_outputs()
    assert len(before) == 2 * manifest.decoder.num_hidden_layers
    addresses = [buffer.data_ptr() for buffer in before]
    contents = [buffer.numpy().copy() for buffer in before]
    decode_one_token(decoder, embed_tokens, 42, cache)
    _, *after = cache.bindings[0].get_outputs()
    assert [buffer.data_ptr() for buffer in after] == addresses
    end = len(PROMPT)
    for old, buffer in zip(contents, after, strict=True):
        new = buffer.numpy()
        np.testing.assert_array_equal(new[:, :, :end], old[:, :, :end])
        assert new[:, :, end].all()
        np.testing.assert_array_equal(new[:, :, end + 1 :], old[:, :, end + 1 :])


def test_the_cache_keeps_its_memory(
    decoder: DecoderSession, embed_tokens: TokenEmbedding, manifest: Manifest
) -> None:
    expected = run_loop(decoder, embed_tokens, 6)[0]
    cache = decoder.new_cache(len(PROMPT) + 6)
    logits = prefill(decoder, embed_tokens(PROMPT)[None], cache)
    tokens = decode(decoder, embed_tokens, greedy, logits, cache, 6, ())
    size = cache.bindings[0].get_outputs()[1].numpy().size
    token_ids = []
    for token_id in tokens:
        token_ids.append(token_id)
        gc.collect()
        # Whatever was freed by mistake is taken, and spoiled.
        _ = [np.full(size, np.nan, np.float32) for _ in range(200)]
    assert token_ids == expected


def test_an_eos_ends_the_answer_and_is_not_part_of_it(
    decoder: DecoderSession, embed_tokens: TokenEmbedding
) -> None:
    free, reason, _ = run_loop(decoder, embed_tokens, 12)
    assert (len(free), reason) == (12, "length")
    eos = free[-1]
    stopped, reason, _ = run_loop(decoder, embed_tokens, 12, (eos,))
    assert (stopped, reason) == (free[: free.index(eos)], "stop")


def test_an_eos_as_the_very_last_token_is_a_stop(
    decoder: DecoderSession, embed_tokens: TokenEmbedding
) -> None:
    first = run_loop(decoder, embed_tokens, 1)[0][0]
    token_ids, reason, _ = run_loop(decoder, embed_tokens, 1, (first,))
    assert (token_ids, reason) == ([], "stop")


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


def test_the_last_token_costs_no_run_of_the_decoder(
    decoder: DecoderSession, embed_tokens: TokenEmbedding
) -> None:
    token_ids, _, cache = run_loop(decoder, embed_tokens, 3)
    assert len(token_ids) == 3
    assert cache.length == len(PROMPT) + 2


def test_embedding_rows_are_read_by_id(embed_tokens: TokenEmbedding, package: Path) -> None:
    matrix = np.load(package / "embed_tokens.npy")
    rows = embed_tokens([3, 3, 200])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, matrix[[3, 3, 200]].astype(np.float32))
