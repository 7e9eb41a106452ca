"""Many callers of one model: the answers that each gets alone, and nothing of the others."""

import asyncio
import itertools
import os
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx import (
    BusyError,
    ClosedError,
    FastVLM,
    GenerationConfig,
    InputError,
    PromptTooLongError,
    ProviderError,
    Request,
    RunningAnswer,
    Scheduler,
)
from fastvlm_onnx.runtime.answering.batch import RunningBatch
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.serving import loop
from fastvlm_onnx.runtime.serving.queue import RequestQueue
from fastvlm_onnx.runtime.serving.request import AnswerJob, RequestImages
from fastvlm_onnx.runtime.text.prompt import ImagePlace, question
from fastvlm_onnx.variants import CPU_VARIANTS, VARIANTS

PROMPT = "Describe the image."
ENDLESS = {"ignore_eos": True, "max_new_tokens": 100_000}


@pytest.fixture
def scheduler(model: FastVLM) -> Iterator[Scheduler]:
    with Scheduler(model, max_rows=4) as scheduler:
        yield scheduler
        scheduler.close(grace=0)


@pytest.fixture(scope="module")
def asked(questions: dict, picture: Path) -> list[tuple[Path, str]]:
    """Every sample question."""
    return [(picture.with_name(name), prompt) for name in questions for prompt in questions[name]]


# --- answers -------------------------------------------------------------------------------------


def test_greedy_answers_are_those_given_alone(
    model: FastVLM, scheduler: Scheduler, asked: list[tuple[Path, str]]
) -> None:
    alone = [model.generate(*asking) for asking in asked]
    with ThreadPoolExecutor(8) as callers:
        running = list(callers.map(lambda asking: scheduler.ask(*asking), asked))
        texts = list(callers.map(lambda one: "".join(p.text for p in one), running))
    found = [one.result() for one in running]
    assert [g.token_ids for g in found] == [g.token_ids for g in alone]
    assert [g.finish_reason for g in found] == [g.finish_reason for g in alone]
    assert [g.prompt_tokens for g in found] == [g.prompt_tokens for g in alone]
    assert [g.text for g in found] == texts == [g.text for g in alone]


def test_eight_threads_ask_at_once(
    model: FastVLM, scheduler: Scheduler, asked: list[tuple[Path, str]]
) -> None:
    alone = {asking: model.generate(*asking).token_ids for asking in asked}

    def ask_all(seed: int) -> bool:
        shuffled = random.Random(seed).sample(asked, len(asked))
        return all(scheduler.ask(*a).result().token_ids == alone[a] for a in shuffled[:12])

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(ask_all, range(8)))
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.finished) == (0, 0, {"stop": 96})


def test_a_prompt_in_parts_gives_the_same_answer(
    model: FastVLM, scheduler: Scheduler, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PART_POSITIONS", 7)
    parts: list[int] = []
    run = LanguageModel.prefill_part
    monkeypatch.setattr(
        LanguageModel,
        "prefill_part",
        lambda self, embeds, cache: parts.append(embeds.shape[1]) or run(self, embeds, cache),
    )
    prompt = "Describe the image. " * 20
    assert scheduler.ask(picture, prompt).result().token_ids == (
        model.generate(picture, prompt).token_ids
    )
    assert len(parts) > 5
    assert set(parts) == {7}


def test_the_options_are_each_answers_own(
    model: FastVLM, scheduler: Scheduler, picture: Path
) -> None:
    options = [
        {"temperature": 1.5, "seed": 3, "max_new_tokens": 10, "logprobs": True},
        {"temperature": 0.7, "top_p": 0.8, "seed": 4, "max_new_tokens": 12},
        {"stop": ["green", "star", "circle", "square"]},
        {"repetition_penalty": 1.5, "max_new_tokens": 9, "top_logprobs": 2},
    ]
    running = [scheduler.ask(picture, PROMPT, **one) for one in options]
    for one, answer in zip(options, running, strict=True):
        alone, found = model.generate(picture, PROMPT, **one), answer.result()
        assert (found.token_ids, found.text) == (alone.token_ids, alone.text)
        assert found.finish_reason == alone.finish_reason
        assert (found.logprobs is None) == (alone.logprobs is None)
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_pieces_carry_the_tokens_and_their_logprobs(scheduler: Scheduler, picture: Path) -> None:
    running = scheduler.ask(picture, PROMPT, logprobs=True, top_logprobs=3)
    pieces = list(running)
    found = running.result()
    assert pieces[-1].generation == found
    assert [i for piece in pieces for i in piece.token_ids] == found.token_ids
    assert [p for piece in pieces for p in piece.logprobs or []] == found.logprobs
    assert [t for piece in pieces for t in piece.top_logprobs or []] == found.top_logprobs
    assert found.top_logprobs is not None
    assert found.logprobs is not None
    for token_id, logprob, most in zip(
        found.token_ids, found.logprobs, found.top_logprobs, strict=True
    ):
        assert len(most) == 3
        assert most[0] == (token_id, pytest.approx(logprob))  # a greedy answer
        assert sorted(most, key=lambda pair: -pair[1]) == most
    assert list(running) == pieces  # an iteration begins with the first piece


def test_structured_answers_are_held_to_their_own_schema(
    scheduler: Scheduler, picture: Path
) -> None:
    pytest.importorskip("llguidance", reason="the extra [structured] is not installed")
    choices = [["red", "blue"], ["one", "two", "three"], ["yes"]]
    options = [{"choices": one, "temperature": 2.0, "seed": 1} for one in choices]
    held = [scheduler.ask(picture, PROMPT, **one) for one in options]
    free = scheduler.ask(picture, PROMPT)
    for one, allowed in zip(held, choices, strict=True):
        assert one.result().text in allowed
    assert all(free.result().text not in allowed for allowed in choices)
    with pytest.raises(InputError, match="schema"):
        scheduler.ask(picture, PROMPT, schema={"type": "nothing"})


def test_an_event_loop_reads_many_answers(
    model: FastVLM, scheduler: Scheduler, asked: list[tuple[Path, str]]
) -> None:
    async def read(asking: tuple[Path, str]) -> list[int]:
        pieces = [piece async for piece in scheduler.ask(*asking)]
        assert pieces[-1].generation is not None
        return pieces[-1].generation.token_ids

    async def read_all() -> list[list[int]]:
        return await asyncio.gather(*map(read, asked))

    assert asyncio.run(read_all()) == [model.generate(*asking).token_ids for asking in asked]


def test_answers_from_one_prompt_share_its_prefill(
    model: FastVLM, scheduler: Scheduler, picture: Path
) -> None:
    parts = model.template.prompt(question(PROMPT, num_images=1))
    config = GenerationConfig(temperature=1.2, seed=10, max_new_tokens=8)
    content = picture.read_bytes()
    found = [one.result() for one in scheduler.submit_many(Request(parts, [content], config), 6)]
    alone = [
        model.generate(picture, PROMPT, temperature=1.2, seed=10 + i, max_new_tokens=8)
        for i in range(6)
    ]
    assert [g.token_ids for g in found] == [g.token_ids for g in alone]
    assert all(g.cached_tokens == g.prompt_tokens - 1 for g in found[1:])


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_company_and_the_prefix_cache_hardly_change_the_logits(
    variants_package: Path, asked: list[tuple[Path, str]], variant: str
) -> None:
    try:
        model = fastvlm_onnx.load(variants_package, precision=variant, providers="cpu")
    except ProviderError as error:
        pytest.skip(str(error))
    with model:
        components, lm = model.components(), model.language_model
        batch, prompts, forced = lm.new_batch(), [], []
        for path, prompt in asked[:6]:
            features = [model.encode_image(path)]
            parts = model.template.prompt(question(prompt, num_images=1))
            prompts.append(components.embed(parts, features))
            forced.append(model.generate(features[0], prompt, ignore_eos=True).token_ids[:12])
            # The second question about an image starts at its own words.
            key = components.key(parts, features)
            cache = lm.new_cache(len(key))
            known = lm.start_from_prefix(cache, key, components.prefixes)
            lm.prefill(prompts[-1][:, known:], cache)
            components.prefixes.add(key, cache.read)
            row = batch.new_row(len(key) + 12)
            row.append(cache.read(0, cache.length))
            batch.admit(row)
        together = [
            lm.decode_one_batch_step([tokens[step] for tokens in forced], batch).copy()
            for step in range(11)
        ]
        divergences = [
            divergence(alone, together[step][row])
            for row, (embeds, tokens) in enumerate(zip(prompts, forced, strict=True))
            for step, alone in enumerate(list(_copies(lm, embeds, tokens))[1:])
        ]
    assert components.prefixes.figures.hits > 0
    assert max(divergences) < VARIANTS[variant].tolerance.kl_divergence / 10


def _copies(lm: LanguageModel, embeds: np.ndarray, tokens: list[int]) -> Iterator[np.ndarray]:
    for logits in lm.teacher_forced_logits(embeds, tokens):
        yield logits.copy()


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Kullback-Leibler divergence of two distributions, in nats."""
    p, q = (logits.astype(np.float64) - logits.max() for logits in (expected, found))
    p, q = p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())
    return float((np.exp(p) * (p - q)).sum())


def test_newcomers_that_wait_join_before_the_next_step(
    model: FastVLM, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A newcomer takes a millisecond by this clock, on a slow machine too.
    clock = SimpleNamespace(perf_counter=itertools.count(0, 0.001).__next__)
    monkeypatch.setattr(loop, "time", clock)
    rows: list[int] = []
    step = RunningBatch.step

    def counted(batch: RunningBatch) -> object:
        rows.append(len(batch.answers))
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", counted)
    all_wait = threading.Event()
    first = scheduler.ask(None, PROMPT, on_token=lambda _: all_wait.wait(60), **ENDLESS)
    others = [scheduler.ask(None, PROMPT, **ENDLESS) for _ in range(3)]
    all_wait.set()
    pieces = iter(others[-1])
    next(pieces), next(pieces)
    found = set(rows)
    for running in (first, *others):
        running.cancel()
    assert found == {4}


# --- ends ----------------------------------------------------------------------------------------


def test_a_cancelled_answer_ends_as_far_as_it_came(
    model: FastVLM, scheduler: Scheduler, picture: Path
) -> None:
    running = scheduler.ask(picture, PROMPT, **ENDLESS)
    pieces = iter(running)
    shown = next(pieces).text + next(pieces).text
    running.cancel()
    found = running.result()
    assert found.finish_reason == "cancelled"
    assert found.text.startswith(shown.strip())
    whole = model.generate(picture, PROMPT, ignore_eos=True, max_new_tokens=200)
    assert found.token_ids[:200] == whole.token_ids[: len(found.token_ids)]
    assert scheduler.stats().finished == {"cancelled": 1}


def test_an_answer_is_cancelled_while_it_waits(scheduler: Scheduler, picture: Path) -> None:
    running = [scheduler.ask(picture, PROMPT, **ENDLESS) for _ in range(4)]
    waiting = scheduler.ask(picture, PROMPT)
    next(iter(running[-1]))
    waiting.cancel()
    found = waiting.result()
    assert (found.finish_reason, found.token_ids, found.text) == ("cancelled", [], "")
    assert (found.timings.prefill, found.timings.first_token) == (0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory of Linux")
def test_a_hundred_cancelled_answers_leave_neither_rows_nor_memory(
    model: FastVLM, questions: dict, picture: Path
) -> None:
    rng = random.Random(0)
    pictures = [picture.with_name(name) for name in questions]

    def ask_and_leave(scheduler: Scheduler, seed: int) -> None:
        running = scheduler.ask(rng.choice(pictures), PROMPT, **ENDLESS)
        for count, _ in enumerate(running):
            if count == seed % 7:
                running.cancel()

    used = []
    with Scheduler(model, max_rows=8, max_waiting=100) as scheduler:
        for _ in range(3):
            with ThreadPoolExecutor(20) as callers:
                list(callers.map(lambda seed: ask_and_leave(scheduler, seed), range(100)))
            assert scheduler.stats().running == scheduler.stats().waiting == 0
            used.append(resident_bytes())
        assert scheduler.stats().finished == {"cancelled": 300}
        assert scheduler.ask(pictures[0], PROMPT).result().finish_reason == "stop"
    assert used[2] - used[1] < 20_000_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_time_limit_ends_answers_that_run_and_answers_that_wait(
    scheduler: Scheduler, picture: Path
) -> None:
    running = [scheduler.ask(picture, PROMPT, **ENDLESS) for _ in range(4)]
    waiting = scheduler.ask(picture, PROMPT, max_time=0.05)
    assert waiting.result().finish_reason == "time"
    assert waiting.result().token_ids == []
    for one in running:
        one.cancel()
    assert scheduler.ask(picture, PROMPT, max_time=0.1, **ENDLESS).result().finish_reason == "time"


def test_an_error_is_its_own_answers_alone(
    model: FastVLM, scheduler: Scheduler, picture: Path
) -> None:
    def fail(token_id: int) -> None:
        raise ZeroDivisionError

    good = [scheduler.ask(picture, PROMPT) for _ in range(2)]
    bad = [
        scheduler.ask(b"no picture", PROMPT),
        scheduler.ask(picture, PROMPT, on_token=fail),
        scheduler.ask(Path("nowhere.png"), PROMPT),
    ]
    good += [scheduler.ask(picture, PROMPT) for _ in range(2)]
    with pytest.raises(InputError, match="not a picture in a known format"):
        bad[0].result()
    with pytest.raises(ZeroDivisionError):
        list(bad[1])
    with pytest.raises(InputError, match=r"nowhere\.png: no such picture"):
        bad[2].result()
    alone = model.generate(picture, PROMPT).token_ids
    assert [one.result().token_ids for one in good] == [alone] * 4
    assert scheduler.stats().finished == {"error": 3, "stop": 4}


def test_a_failed_step_ends_the_answers_that_ran_and_the_scheduler_goes_on(
    model: FastVLM, scheduler: Scheduler, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = scheduler.ask(picture, PROMPT, **ENDLESS)
    next(iter(running))
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "run_batch", _out_of_memory)
        with pytest.raises(ProviderError, match="no memory"):
            running.result()
    assert scheduler.ask(picture, PROMPT).result().token_ids == (
        model.generate(picture, PROMPT).token_ids
    )


def _out_of_memory(*_: object) -> None:
    raise ProviderError("no memory")


def test_the_queue_has_a_limit(model: FastVLM, picture: Path) -> None:
    with Scheduler(model, max_rows=1, max_waiting=2) as scheduler:
        running = scheduler.ask(picture, PROMPT, **ENDLESS)
        next(iter(running))
        waiting = [scheduler.ask(picture, PROMPT) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests wait, and at most 2 may"):
            scheduler.ask(picture, PROMPT)
        with pytest.raises(BusyError):
            scheduler.see(picture)
        running.cancel()
        assert [one.result().finish_reason for one in waiting] == ["stop"] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_rows": 0}, "max_rows is 0; expected 1 or more"),
        ({"max_waiting": 0}, "max_waiting is 0"),
        ({"max_seen": 0}, "max_seen is 0"),
        ({"see_seconds": 0}, "see_seconds is 0; expected seconds above 0"),
    ],
)
def test_limits_out_of_range_are_refused(model: FastVLM, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Scheduler(model, **options)


def test_bad_requests_are_refused_at_once(scheduler: Scheduler, picture: Path) -> None:
    with pytest.raises(PromptTooLongError):
        scheduler.ask(picture, "word " * 10_000)
    with pytest.raises(InputError, match="the prompt is empty"):
        scheduler.ask(picture, " ")
    with pytest.raises(InputError, match="temperature is -1"):
        scheduler.ask(picture, PROMPT, temperature=-1)
    features = fastvlm_onnx.ImageFeatures(np.zeros((1, 2, 3), np.float32), 64)
    with pytest.raises(InputError, match="image features are"):
        scheduler.ask(features, PROMPT)
    assert scheduler.stats().waiting == 0


def test_closing_lets_answers_end_and_takes_no_more(model: FastVLM, picture: Path) -> None:
    scheduler = Scheduler(model, max_rows=2)
    running = [scheduler.ask(picture, PROMPT) for _ in range(5)]
    scheduler.close()
    assert [one.result(timeout=0).finish_reason for one in running] == ["stop"] * 5
    with pytest.raises(ClosedError, match="takes no more requests"):
        scheduler.ask(picture, PROMPT)
    scheduler.close()


def test_a_queue_whose_last_job_was_taken_is_not_idle(model: FastVLM) -> None:
    components, queue = model.components(), RequestQueue(max_waiting=1, max_rows=1)
    request = Request(components.template.prompt(question(PROMPT, 0)))
    images, running = RequestImages([], orient=False), RunningAnswer(queue.wake)
    queue.add([AnswerJob(components, request, images, running, called=0.0)])
    with queue.changed:
        assert queue.take_ready() is not None
        assert not queue.is_idle


def test_closing_cuts_off_what_outlasts_the_grace(model: FastVLM, picture: Path) -> None:
    scheduler = Scheduler(model, max_rows=1)
    running = scheduler.ask(picture, PROMPT, **ENDLESS)
    waiting = scheduler.ask(picture, PROMPT)
    next(iter(running))
    threads = threading.active_count()
    scheduler.close(grace=0.01)
    assert running.result(timeout=0).finish_reason == "cancelled"
    assert waiting.result(timeout=0).finish_reason == "cancelled"
    assert threading.active_count() == threads - 2


def test_a_result_may_be_waited_for_with_a_limit(scheduler: Scheduler, picture: Path) -> None:
    running = scheduler.ask(picture, PROMPT, **ENDLESS)
    with pytest.raises(TimeoutError, match=r"not ended within 0\.01 seconds"):
        running.result(timeout=0.01)
    assert not running.has_ended


# --- what is known already -----------------------------------------------------------------------


@pytest.fixture
def fresh(package: Path) -> Iterator[FastVLM]:
    """A model with empty caches."""
    with fastvlm_onnx.load(package) as model:
        yield model


def test_a_second_question_starts_at_its_own_words(fresh: FastVLM, picture: Path) -> None:
    content = picture.read_bytes()
    with Scheduler(fresh) as scheduler:
        first = scheduler.ask(content, PROMPT).result()
        second = scheduler.ask(picture, "How many shapes do you see?").result()
        stats = scheduler.stats()
    assert first.cached_tokens == 0
    before, image, _ = fresh.template.prompt([ImagePlace(0), "x"])
    assert image == ImagePlace(0)
    assert second.cached_tokens >= len(before) + fresh.num_image_tokens
    assert second.timings.vision < first.timings.vision
    assert stats.prompt_tokens == first.prompt_tokens + second.prompt_tokens
    assert stats.cached_tokens == second.cached_tokens == stats.prefixes.hits
    assert stats.generated_tokens == len(first.token_ids) + len(second.token_ids)
    assert (stats.image_features.queries, stats.image_features.hits) == (2, 1)
    alone = fresh.generate(picture, "How many shapes do you see?")
    assert second.token_ids == alone.token_ids


def test_a_conversation_starts_after_its_last_answer(fresh: FastVLM, picture: Path) -> None:
    template = fresh.template
    first_turn = template.prompt([ImagePlace(0), PROMPT])
    with Scheduler(fresh) as scheduler:
        first = scheduler.submit(Request(first_turn, [picture])).result()
        (user,) = template.user_turn(["How many shapes do you see?"])
        assert isinstance(user, list)
        parts = [*first_turn, [*first.token_ids, *template.end_of_turn(), *user]]
        second = scheduler.submit(Request(parts, [picture])).result()
    assert second.cached_tokens >= first.prompt_tokens + len(first.token_ids)
    with fresh.chat() as chat:
        assert chat.ask(PROMPT, picture).token_ids == first.token_ids
        assert chat.ask("How many shapes do you see?").token_ids == second.token_ids


def test_the_caches_hold_their_limits(package: Path, questions: dict, picture: Path) -> None:
    limits = {"image_cache_bytes": 20_000, "prefix_cache_bytes": 300_000}
    with fastvlm_onnx.load(package, **limits) as model, Scheduler(model) as scheduler:
        for name in questions:
            asked = picture.with_name(name)
            assert scheduler.ask(asked, PROMPT).result().token_ids == (
                model.generate(asked, PROMPT).token_ids
            )
            stats = scheduler.stats()
            assert 0 < stats.prefixes.size_bytes <= stats.prefixes.max_bytes == 300_000
            assert 0 < stats.image_features.size_bytes <= stats.image_features.max_bytes == 20_000


def test_without_caches_answers_are_the_same(package: Path, picture: Path) -> None:
    options = {"image_cache_bytes": 0, "prefix_cache_bytes": 0}
    with fastvlm_onnx.load(package, **options) as model, Scheduler(model) as scheduler:
        found = [scheduler.ask(picture, PROMPT).result() for _ in range(2)]
        assert [g.token_ids for g in found] == [model.generate(picture, PROMPT).token_ids] * 2
        assert [g.cached_tokens for g in found] == [0, 0]
        stats = scheduler.stats()
        assert stats.prefixes.size_bytes == stats.image_features.size_bytes == 0
