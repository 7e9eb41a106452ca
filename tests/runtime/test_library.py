"""A library that behaves: options, threads, processes, memory, and the end."""

import gc
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.names import VISION_ENCODER
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.ort import session
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.text.prompt import question
from fastvlm_onnx.runtime.vision.feature_cache import FeatureCache

PROMPT = "Describe the image."


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_a_stop_string_ends_the_answer_before_it_whatever_the_tokens(
    model: FastVLM, picture: Path, size: int
) -> None:
    whole = model.generate(picture, PROMPT)
    for start in range(1, len(whole.text) - size):
        stop = whole.text[start : start + size]
        found = model.generate(picture, PROMPT, stop=["never there", stop])
        assert found.text == whole.text[: whole.text.index(stop)].strip()
        assert found.finish_reason == "stop"
        assert len(found.token_ids) <= len(whole.token_ids)


def test_no_piece_shows_what_a_stop_string_takes_back(model: FastVLM, picture: Path) -> None:
    whole = model.generate(picture, PROMPT).text
    stop = whole[6:14]
    pieces = "".join(piece.text for piece in model.stream(picture, PROMPT, stop=[stop]))
    assert pieces == whole[: whole.index(stop)].strip()


def test_a_stop_string_that_never_comes_holds_nothing_back(model: FastVLM, picture: Path) -> None:
    whole = model.generate(picture, PROMPT).text
    assert model.generate(picture, PROMPT, stop=[whole + "!", whole[-1] + "?"]).text == whole


def test_max_time_ends_an_answer_with_what_it_has(model: FastVLM, picture: Path) -> None:
    found = model.generate(picture, PROMPT, max_time=1e-6)
    assert (found.finish_reason, len(found.token_ids)) == ("time", 1)
    assert model.generate(picture, PROMPT, max_time=600).finish_reason == "stop"


def test_tokens_are_told_as_they_come(model: FastVLM, picture: Path) -> None:
    told: list[int] = []
    found = model.generate(picture, PROMPT, on_token=told.append)
    assert told == found.token_ids


def test_what_a_callback_raises_ends_the_answer(model: FastVLM, picture: Path) -> None:
    def refuse(token_id: int) -> None:
        raise KeyError(token_id)

    with pytest.raises(KeyError):
        model.generate(picture, PROMPT, on_token=refuse)
    assert model.generate(picture, PROMPT).text


def test_logprobs_are_those_of_the_tokens(model: FastVLM, picture: Path) -> None:
    found = model.generate(picture, PROMPT, logprobs=True)
    assert found.logprobs is not None
    assert len(found.logprobs) == len(found.token_ids)
    assert all(-20 < logprob <= 0 for logprob in found.logprobs)
    components = model.components()
    parts = model.template.prompt(question(PROMPT, num_images=1))
    embeds = components.embed(parts, [model.encode_image(picture)])
    for logits, token, logprob in zip(
        model.language_model.teacher_forced_logits(embeds, found.token_ids),
        found.token_ids,
        found.logprobs,
        strict=True,
    ):
        shifted = logits.astype(np.float64) - logits.max()
        assert logprob == pytest.approx(shifted[token] - np.log(np.exp(shifted).sum()), abs=1e-4)
    assert model.generate(picture, PROMPT).logprobs is None


def test_a_penalty_keeps_tokens_from_coming_again(model: FastVLM, picture: Path) -> None:
    shapes = picture.with_name("shapes.png")
    plain = model.generate(shapes, PROMPT).token_ids
    assert len(set(plain)) < len(plain)
    penalised = model.generate(shapes, PROMPT, repetition_penalty=1e6, max_new_tokens=len(plain))
    assert len(set(penalised.token_ids)) == len(penalised.token_ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": "end"}, r"stop is a text; expected a list of them, like \['end'\]"),
        ({"stop": ["end", ""]}, r"stop\[1\] is ''; expected a text that is not empty"),
        ({"stop": [3]}, r"stop\[0\] is 3 \(int\); expected a text"),
        ({"max_time": 0}, "max_time is 0; expected seconds above 0"),
        ({"max_time": float("nan")}, "max_time is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_the_call(
    model: FastVLM, picture: Path, options: dict, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        model.stream(picture, PROMPT, **options)


def test_an_unknown_option_is_a_type_error(model: FastVLM, picture: Path) -> None:
    with pytest.raises(TypeError, match="colour"):
        model.generate(picture, PROMPT, colour="blue")  # type: ignore[call-arg]


# --- threads and processes -----------------------------------------------------------------------


def test_eight_threads_get_their_own_answers(
    model: FastVLM, questions: dict, picture: Path
) -> None:
    asked = [(picture.with_name(n), p, a) for n in questions for p, a in questions[n].items()]
    wrong: list[str] = []

    def ask(offset: int) -> None:
        for i in range(len(asked)):
            path, prompt, answer = asked[(i + offset) % len(asked)]
            found = model.generate(path, prompt).text
            if found != answer:
                wrong.append(f"{path.name}, {prompt}: {found}")

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_chat_in_each_thread_remembers_its_own(model: FastVLM, picture: Path) -> None:
    def converse() -> list[list[int]]:
        with model.chat() as chat:
            for prompt in (PROMPT, "How many?", "And?"):
                chat.ask(prompt, picture if not chat.turns else None, max_new_tokens=6)
            return [turn.token_ids for turn in chat.turns]

    expected, found = converse(), []
    threads = [threading.Thread(target=lambda: found.append(converse())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_instead_of_hanging(model: FastVLM, picture: Path) -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)

    def ask() -> None:
        try:
            model.generate(picture, PROMPT)
        except InputError as error:
            writer.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=ask)
    process.start()
    assert reader.poll(30), "the child hangs"
    assert "was loaded before this process forked" in reader.recv()
    process.join()


def test_pickling_says_what_to_do_instead(model: FastVLM, package: Path) -> None:
    with pytest.raises(TypeError, match=f"cannot be pickled; load {package} in the process"):
        pickle.dumps(model)


# --- memory --------------------------------------------------------------------------------------


def test_an_iterator_closed_early_holds_no_cache(
    model: FastVLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref] = []
    new_cache = Decoder.new_cache

    def note(self: Decoder, capacity: int) -> object:
        cache = new_cache(self, capacity)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(Decoder, "new_cache", note)
    pieces = model.stream(picture, PROMPT)
    next(pieces)
    assert made[0]() is not None
    pieces.close()
    gc.collect()
    assert made[0]() is None
    never_begun = model.stream(picture, PROMPT)
    never_begun.close()
    assert len(made) == 1


def test_the_feature_cache_stays_under_its_limit() -> None:
    made: list[int] = []

    def get(cache: FeatureCache, number: int) -> np.ndarray:
        def encode() -> np.ndarray:
            made.append(number)
            return np.full((1, 10), number, np.float32)

        return cache.get(str(number), encode)

    cache = FeatureCache(100)  # two of 40 bytes
    for number in (1, 2, 1, 3, 1, 2):
        found = get(cache, number)
        assert found[0, 0] == number
        assert cache.size_bytes <= 100
    assert made == [1, 2, 3, 2]  # 2 was the least recently used when 3 came
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 5
    for _ in range(2):
        get(FeatureCache(0), 7)
    assert made[-2:] == [7, 7]


def test_a_lazy_vision_encoder_is_open_while_it_runs(
    package: Path, model: FastVLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref] = []
    init = session.GraphSession.__init__

    def note(self: session.GraphSession, path: Path, *arguments: object, **named: object) -> None:
        init(self, path, *arguments, **named)
        if path.name.startswith(VISION_ENCODER):
            opened.append(weakref.ref(self))

    monkeypatch.setattr(session.GraphSession, "__init__", note)
    lazy = fastvlm_onnx.load(package, lazy_vision=True)
    assert not opened
    for _ in range(2):
        assert lazy.generate(picture, PROMPT).text == model.generate(picture, PROMPT).text
        gc.collect()
        assert opened[-1]() is None
    assert len(opened) == 2


def test_a_lazy_vision_encoder_tells_its_placement_when_asked(package: Path) -> None:
    with fastvlm_onnx.load(package, lazy_vision=True, record_placement=True) as lazy:
        vision_encoder = lazy.sessions[VISION_ENCODER]
        assert not isinstance(vision_encoder, session.GraphSession)
        # ONNX Runtime tells no placement before 1.23.
        on_cpu = ProviderChoice(CPU)
        opened = session.GraphSession(vision_encoder.path, on_cpu, record_placement=True)
        assert vision_encoder.placement == opened.placement


# --- the end -------------------------------------------------------------------------------------


def test_a_closed_model_says_so_everywhere(package: Path, picture: Path) -> None:
    with fastvlm_onnx.load(package) as model:
        chat = model.chat()
        assert chat.ask("Hi", max_new_tokens=1)
        running = model.stream(picture, PROMPT)
        next(running)
        not_begun = model.stream(picture, PROMPT)
    for ask in (
        lambda: model.generate(picture, PROMPT),
        lambda: model.generate_batch([picture], PROMPT),
        lambda: model.encode_image(picture),
        lambda: model.image_encoder,
        lambda: model.language_model,
        lambda: model.chat(),
        lambda: chat.ask("Hi"),
        lambda: next(not_begun),
    ):
        with pytest.raises(InputError, match="is closed; load it again"):
            ask()
    assert list(running)[-1].generation is not None
    model.close()


def test_an_answer_finishes_while_another_thread_closes_the_model(
    package: Path, picture: Path
) -> None:
    expected = fastvlm_onnx.load(package).generate(picture, PROMPT).token_ids
    model = fastvlm_onnx.load(package)
    closer = threading.Thread(target=model.close)

    def close_after_the_first(token_id: int) -> None:
        if not model.sessions:
            return
        closer.start()
        closer.join()

    found = model.generate(picture, PROMPT, on_token=close_after_the_first)
    assert found.token_ids == expected
    with pytest.raises(InputError, match="is closed"):
        model.generate(picture, PROMPT)


def test_an_encoder_that_was_taken_before_closing_goes_on(package: Path) -> None:
    model = fastvlm_onnx.load(package)
    encoder = model.image_encoder
    model.close()
    pixel_values = np.zeros((1, 3, 256, 256), np.float32)
    assert encoder.run_vision_encoder(pixel_values).shape == (1, 16, 512)


def test_results_do_not_change(model: FastVLM, picture: Path) -> None:
    found = model.generate(picture, PROMPT, max_new_tokens=2)
    with pytest.raises(AttributeError):
        found.text = "other"  # type: ignore[misc]


def test_the_library_says_nothing_by_itself(package: Path, picture: Path) -> None:
    code = (
        "import fastvlm_onnx, logging\n"
        f"model = fastvlm_onnx.load({str(package)!r})\n"
        f"model.generate({str(picture)!r}, 'Hi', max_new_tokens=2)\n"
        "logging.getLogger('fastvlm_onnx').warning('something')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert logging.getLogger("fastvlm_onnx").handlers


def test_no_environment_variable_changes_an_answer(
    package: Path, picture: Path, model: FastVLM
) -> None:
    code = (
        "import fastvlm_onnx, json\n"
        f"model = fastvlm_onnx.load({str(package)!r})\n"
        f"print(json.dumps(model.generate({str(picture)!r}, {PROMPT!r}).token_ids))\n"
    )
    odd = {
        "OMP_NUM_THREADS": "1",
        "FASTVLM_ONNX_MODEL": "/nowhere",
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | odd
    )
    assert json.loads(done.stdout) == model.generate(picture, PROMPT).token_ids


def test_load_seconds_are_measured(package: Path) -> None:
    began = time.perf_counter()
    model = fastvlm_onnx.load(package)
    assert 0 < model.load_seconds <= time.perf_counter() - began
