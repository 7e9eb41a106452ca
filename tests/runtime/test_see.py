"""Images that are prefilled before the question comes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError, NotSeenError, Request, Scheduler
from fastvlm_onnx.runtime.text.prompt import ImagePlace

PROMPT = "Describe the image."


@pytest.fixture
def fresh(package: Path) -> Iterator[FastVLM]:
    """A model with empty caches."""
    with fastvlm_onnx.load(package) as model:
        yield model


def prefix_positions(model: FastVLM) -> int:
    """Positions of a prompt up to the end of its first image."""
    before, _ = model.template.prompt([ImagePlace(0)])[:2]
    assert isinstance(before, list)
    return len(before) + model.num_image_tokens


def test_a_question_after_see_starts_at_its_own_words(fresh: FastVLM, picture: Path) -> None:
    expected = fresh.generate(picture, PROMPT)
    seen = fresh.see(picture)
    found = fresh.generate(seen, PROMPT)
    assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
    assert (expected.cached_tokens, found.cached_tokens) == (0, prefix_positions(fresh))
    assert found.prompt_tokens == expected.prompt_tokens
    assert "".join(piece.text for piece in fresh.stream(seen, PROMPT)) == expected.text


def test_a_chat_about_a_seen_image_starts_at_its_own_words(fresh: FastVLM, picture: Path) -> None:
    with fresh.chat() as chat:
        expected = [chat.ask(PROMPT, picture), chat.ask("How many shapes do you see?")]
    seen = fresh.see(picture)
    with fresh.chat() as chat:
        found = [chat.ask(PROMPT, seen), chat.ask("How many shapes do you see?")]
    assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    assert found[0].cached_tokens == prefix_positions(fresh)
    assert [g.prompt_tokens for g in found] == [g.prompt_tokens for g in expected]


def test_a_batch_takes_seen_images(fresh: FastVLM, picture: Path) -> None:
    found = fresh.generate_batch([fresh.see(picture), picture], PROMPT)
    assert found[0].token_ids == found[1].token_ids


def test_keys_and_values_that_made_room_leave_the_features(package: Path, picture: Path) -> None:
    with fastvlm_onnx.load(package, prefix_cache_bytes=0) as model:
        found = model.generate(model.see(picture), PROMPT)
        assert found.cached_tokens == 0
        assert found.token_ids == model.generate(picture, PROMPT).token_ids


def test_a_scheduler_finds_a_seen_image_by_its_id(fresh: FastVLM, picture: Path) -> None:
    expected = fresh.generate(picture, PROMPT)
    with Scheduler(fresh) as scheduler:
        seen = scheduler.see(picture)
        assert seen.id is not None
        assert seen.expires_at is not None
        assert time.time() < seen.expires_at <= time.time() + 600
        found = scheduler.ask(scheduler.seen(seen.id), PROMPT).result()
        assert scheduler.stats().seen_images == 1
    assert found.token_ids == expected.token_ids
    assert found.cached_tokens == prefix_positions(fresh)
    assert found.timings.vision < expected.timings.vision


def test_text_before_a_seen_image_leaves_the_features(fresh: FastVLM, picture: Path) -> None:
    content = ["Look here.", ImagePlace(0), PROMPT]
    with Scheduler(fresh) as scheduler:
        parts = fresh.template.prompt(content)
        seen = scheduler.see(picture)
        found = scheduler.submit(Request(parts, [seen])).result()
        alone = scheduler.submit(Request(parts, [picture])).result()
    assert 0 < found.cached_tokens < prefix_positions(fresh)
    assert found.token_ids == alone.token_ids


def test_an_image_that_cannot_be_read_is_not_seen(fresh: FastVLM) -> None:
    with pytest.raises(InputError, match="not a picture"):
        fresh.see(b"no picture")
    with Scheduler(fresh) as scheduler:
        with pytest.raises(InputError, match="not a picture"):
            scheduler.see(b"no picture")
        assert scheduler.stats().seen_images == 0


def test_an_unknown_id_is_refused(fresh: FastVLM) -> None:
    with (
        Scheduler(fresh) as scheduler,
        pytest.raises(NotSeenError, match="'see:nothing' names no image that was seen in the last"),
    ):
        scheduler.seen("see:nothing")


def test_an_id_expires(fresh: FastVLM, picture: Path) -> None:
    with Scheduler(fresh, see_seconds=0.2) as scheduler:
        seen = scheduler.see(picture)
        assert seen.id is not None
        assert seen.expires_at is not None
        while time.time() <= seen.expires_at:
            time.sleep(0.01)
        with pytest.raises(NotSeenError, match=r"in the last 0\.2 seconds"):
            scheduler.seen(seen.id)
        assert scheduler.stats().seen_images == 0
        # The object itself is good as long as it is held.
        assert scheduler.ask(seen, PROMPT).result().cached_tokens > 0


def test_the_oldest_seen_image_makes_room(fresh: FastVLM, picture: Path) -> None:
    with Scheduler(fresh, max_seen=2) as scheduler:
        ids = [scheduler.see(picture).id or "" for _ in range(3)]
        assert len(set(ids)) == 3
        with pytest.raises(NotSeenError):
            scheduler.seen(ids[0])
        assert scheduler.seen(ids[1]).id == ids[1]
        assert scheduler.seen(ids[2]).id == ids[2]
