"""Cases of the library: a public function with an odd argument.

A child opens the package once and makes many calls, since a call takes a millisecond and opening
takes a hundred. The number of the call is written down before each, so that a crash has a name.
"""

import io
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from PIL import Image

import fastvlm_onnx
from fastvlm_onnx import FastVLMError, GenerationConfig, ImageFeatures, Request, Scheduler
from fastvlm_onnx.errors import LONGEST_MESSAGE
from tests.hostile.file_cases import PICTURE
from tests.hostile.material import Material
from tests.hostile.mutations import ODD_TEXTS, damaged_bytes

PROMPT: Final = "Describe the image."
Call = tuple[str, Callable[[], Any]]
"""The name of the argument that is odd, and the call."""


class Unprintable:
    """A value whose methods all fail."""

    def __repr__(self) -> str:
        raise RuntimeError("no representation")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __iter__(self) -> Iterator[object]:
        raise RuntimeError("no items")


class FailingFile(io.BytesIO):
    """A file that cannot be read."""

    def read(self, *_: Any) -> bytes:
        raise OSError("the disk is gone")


def odd_value(random: Random) -> Any:
    """A value of any type, made anew, since some are used up."""
    return random.choice(_VALUES)(random)


def _half_used(_: Random) -> Any:
    items = iter(["a", "b", "c"])
    next(items)
    return items


def _read_only(_: Random) -> Any:
    array = np.zeros((8, 8, 3), np.uint8)
    array.flags.writeable = False
    return array


_VALUES: Final[tuple[Callable[[Random], Any], ...]] = (
    lambda _: None,
    lambda _: True,
    lambda _: False,
    lambda _: 0,
    lambda _: -1,
    lambda _: 1,
    lambda _: 1.5,
    lambda _: 10**5000,
    lambda _: -(10**30),
    lambda _: 2**63,
    lambda _: float("nan"),
    lambda _: float("inf"),
    lambda _: -float("inf"),
    lambda _: 1j,
    lambda _: np.int64(2),
    lambda _: np.float32(0.5),
    lambda _: np.float64("nan"),
    lambda _: np.bool_(True),
    lambda _: np.array(3),
    lambda _: np.array([1, 2]),
    lambda _: np.zeros(0),
    lambda _: np.zeros((0, 0, 3), np.uint8),
    lambda _: np.zeros((4, 4, 3), np.float32),
    lambda _: np.zeros((4, 4), np.uint8),
    lambda _: np.zeros((4, 4, 4), np.uint8),
    lambda _: np.zeros((1, 4, 4, 3), np.uint8),
    lambda _: np.full((4, 4, 3), np.nan),
    lambda _: np.zeros((8, 8, 3), np.uint8)[::2, ::-1],
    lambda _: np.zeros((3, 8, 8), np.uint8).transpose(1, 2, 0),
    lambda _: np.array(["a", "b"]),
    lambda _: np.array([object()]),
    _read_only,
    lambda random: random.choice(ODD_TEXTS),
    lambda random: random.choice(ODD_TEXTS).encode("utf-8", "surrogatepass"),
    lambda random: bytearray(random.randbytes(20)),
    lambda random: memoryview(random.randbytes(20)),
    lambda random: Path(random.choice(ODD_TEXTS)),
    lambda _: [],
    lambda _: (),
    lambda _: {},
    lambda _: set(),
    lambda _: [None],
    lambda _: ["x"] * 1000,
    lambda _: [""],
    lambda _: [1, "a"],
    lambda _: {"type": "string"},
    lambda _: {"type": "nothing"},
    lambda _: {"$ref": "#"},
    lambda _: {1: 2},
    lambda _: range(3),
    _half_used,
    lambda _: (letter for letter in "abc"),
    lambda _: object(),
    lambda _: Unprintable(),
    lambda _: int,
    lambda _: print,
    lambda _: Exception("an error"),
    lambda _: io.BytesIO(b""),
    lambda _: io.StringIO("text"),
    lambda _: FailingFile(),
    lambda _: Image.new("RGB", (3, 3)),
    lambda _: Image.new("P", (0, 0)),
    lambda _: ImageFeatures(np.zeros((1, 2, 3), np.float32), 256),
    lambda _: GenerationConfig(max_new_tokens=1),
    lambda random: damaged_bytes(random, Path(PICTURE).read_bytes()[:3000]),
    lambda _: open(os.devnull, "rb"),  # noqa: SIM115  closed with its last reference
)

_OPTIONS: Final = (*fastvlm_onnx.GenerationOptions.__annotations__,)
_LOAD: Final = (
    "precision",
    "providers",
    "provider_options",
    "image_size",
    "threads",
    "image_cache_bytes",
    "prefix_cache_bytes",
    "lazy_vision",
    "record_placement",
)
_EXPORT: Final = (
    "precisions",
    "image_sizes",
    "operators",
    "base",
    "allow_nonfinite",
    "overwrite",
    "calibrate",
    "split_decoder",
    "target",
    "progress",
    "verify",
)


class Calls:
    """Makes calls of one open model."""

    def __init__(self, material: Material, room: Path) -> None:
        self._package, self._room = material.package, room
        self._model = fastvlm_onnx.load(self._package, threads=1)
        self._scheduler = Scheduler(self._model, max_rows=2)
        self._chat = self._model.chat(drop_oldest=True)
        self._makers = (
            (8, self._ask),
            (5, self._option),
            (3, self._chat_call),
            (3, self._schedule),
            (2, self._configure),
            (1, self._load),
            (1, self._export),
            (2, self._part),
            (1, self._order),
        )

    def make(self, random: Random) -> Call:
        """A call with an odd argument."""
        (maker,) = random.choices(
            [maker for _, maker in self._makers], [share for share, _ in self._makers]
        )
        return maker(random)

    def close(self) -> None:
        """End the threads."""
        self._scheduler.close(0.0)
        self._model.close()

    def _ask(self, random: Random) -> Call:
        model, odd = self._model, odd_value(random)
        few = {"max_new_tokens": 1}
        return random.choice(
            (
                ("image", lambda: model.generate(odd, PROMPT, **few)),
                ("image", lambda: list(model.stream(odd, PROMPT, **few))),
                ("prompt", lambda: model.generate(None, odd, **few)),
                ("image", lambda: model.encode_image(odd)),
                ("image", lambda: model.see(odd)),
                ("images", lambda: model.generate_batch(odd, PROMPT, **few)),
                ("images", lambda: model.generate_batch([odd], PROMPT, **few)),
                ("prompts", lambda: model.generate_batch([PICTURE], odd, **few)),
                ("prompts", lambda: model.generate_batch([PICTURE], [odd], **few)),
                ("orient", lambda: model.encode_image(PICTURE, orient=odd)),
            )
        )

    def _option(self, random: Random) -> Call:
        name, odd = random.choice(_OPTIONS), odd_value(random)
        options = {"max_new_tokens": 2, name: odd}
        if name == "max_new_tokens" and isinstance(odd, int) and odd > 2:
            options["max_time"] = 0.05
        return name, lambda: self._model.generate(None, PROMPT, **options)

    def _configure(self, random: Random) -> Call:
        name, odd = random.choice(_OPTIONS), odd_value(random)
        return name, lambda: GenerationConfig(**{name: odd})

    def _chat_call(self, random: Random) -> Call:
        chat, odd = self._chat, odd_value(random)
        return random.choice(
            (
                ("prompt", lambda: chat.ask(odd, max_new_tokens=1)),
                ("image", lambda: chat.ask(PROMPT, odd, max_new_tokens=1)),
                ("drop_oldest", lambda: self._model.chat(drop_oldest=odd)),
                ("on_token", lambda: chat.ask(PROMPT, max_new_tokens=1, on_token=_raise_value)),
            )
        )

    def _schedule(self, random: Random) -> Call:
        scheduler, odd = self._scheduler, odd_value(random)
        config = GenerationConfig(max_new_tokens=1)
        return random.choice(
            (
                ("image", lambda: scheduler.ask(odd, PROMPT, max_new_tokens=1).result(20)),
                ("prompt", lambda: scheduler.ask(None, odd, max_new_tokens=1).result(20)),
                ("image", lambda: scheduler.see(odd)),
                ("id", lambda: scheduler.seen(odd)),
                ("request", lambda: scheduler.submit(odd)),
                ("parts", lambda: scheduler.submit(Request(odd, (), config)).result(20)),
                ("parts", lambda: scheduler.submit(Request([odd], (), config)).result(20)),
                ("images", lambda: scheduler.submit(Request([[1]], odd, config)).result(20)),
                ("config", lambda: scheduler.submit(Request([[1]], (), odd))),
                ("count", lambda: scheduler.submit_many(Request([[1]], (), config), odd)),
                ("model", lambda: Scheduler(odd)),
                ("max_rows", lambda: Scheduler(self._model, max_rows=_small(odd)).close(0)),
                ("max_waiting", lambda: Scheduler(self._model, max_waiting=odd).close(0)),
                ("see_seconds", lambda: Scheduler(self._model, see_seconds=odd).close(0)),
                ("max_seen", lambda: Scheduler(self._model, max_seen=odd).close(0)),
                ("grace", lambda: _close(Scheduler(self._model), odd)),
                ("timeout", lambda: scheduler.ask(None, PROMPT, max_new_tokens=1).result(odd)),
            )
        )

    def _load(self, random: Random) -> Call:
        odd = odd_value(random)
        if random.random() < 0.2:
            return "folder", lambda: fastvlm_onnx.load(odd)
        name = random.choice(_LOAD)
        return name, lambda: fastvlm_onnx.load(self._package, **{name: odd}).close()

    def _export(self, random: Random) -> Call:
        from fastvlm_onnx.export import export_package

        odd, destination = odd_value(random), self._room / "work/exported"
        kind = random.random()
        if kind < 0.2:
            return "source", lambda: export_package(odd, destination)
        if kind < 0.3:
            return "destination", lambda: export_package("/nonexistent/checkpoint", odd)
        name = random.choice(_EXPORT)
        # The source is refused after the options, so no call writes a package.
        return name, lambda: export_package("/nonexistent/checkpoint", destination, **{name: odd})

    def _part(self, random: Random) -> Call:
        model, odd = self._model, odd_value(random)
        from fastvlm_onnx.runtime.vision.image import read_picture

        return random.choice(
            (
                ("picture", lambda: read_picture(odd)),
                ("pixel_values", lambda: model.image_encoder.encode_pixel_values(odd)),
                ("content", lambda: model.template.prompt([odd])),
            )
        )

    def _order(self, random: Random) -> Call:
        """Right arguments in a wrong order of calls."""
        return random.choice(
            (
                ("closed", self._closed_model),
                ("closed", self._closed_twice),
                ("closed", self._closed_chat),
                ("closed", self._closed_scheduler),
                ("forked", self._forked),
                ("on_token", lambda: self._model.generate(None, PROMPT, on_token=_raise_value)),
                ("stream", self._left_stream),
            )
        )

    def _closed_model(self) -> Any:
        model = fastvlm_onnx.load(self._package, threads=1)
        pieces = model.stream(None, PROMPT, max_new_tokens=3)
        model.close()
        model.close()
        return list(pieces)

    def _closed_twice(self) -> Any:
        model = fastvlm_onnx.load(self._package, threads=1)
        threads = [threading.Thread(target=model.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return model.generate(None, PROMPT)

    def _closed_chat(self) -> Any:
        chat = self._model.chat()
        chat.close()
        return chat.ask(PROMPT)

    def _closed_scheduler(self) -> Any:
        scheduler = Scheduler(self._model)
        running = scheduler.ask(None, PROMPT, max_new_tokens=1000)
        threads = [threading.Thread(target=scheduler.close, args=(0.0,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        running.result(20)
        return scheduler.ask(None, PROMPT)

    def _forked(self) -> Any:
        pid = os.fork()
        if pid == 0:
            try:
                self._model.generate(None, PROMPT)
            except FastVLMError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def _left_stream(self) -> Any:
        pieces = self._model.stream(PICTURE, PROMPT, max_new_tokens=8)
        next(pieces)
        pieces.close()
        return list(pieces)


def judge(call: Call) -> str | None:
    """Make a call; return its problem, or None where it was refused well or was right."""
    name, make = call
    try:
        make()
    except CallbackError:
        return None  # the caller's own exception comes back to the caller
    except TimeoutError:
        return None if name == "timeout" else "hang"
    except (FastVLMError, TypeError, ValueError) as error:
        message = str(error)
        if "\n" in message or len(message) > LONGEST_MESSAGE:
            return f"a long message: {message[:80]!r}"
        # Python itself names no argument of a class that has none.
        if not isinstance(error, FastVLMError) and name.rstrip("s") not in message:
            return f"{type(error).__name__} without {name}: {message[:80]!r}"
        return None
    except Exception as error:
        return f"{type(error).__name__} for {name}: {str(error)[:80]!r}"
    return None


class CallbackError(Exception):
    """An exception of the caller's own callback."""


def _raise_value(_token: int) -> None:
    raise CallbackError


def _small(value: Any) -> Any:
    return min(value, 64) if type(value) is int else value


def _close(scheduler: Scheduler, grace: Any) -> None:
    try:
        scheduler.close(grace)
    finally:
        scheduler.close(0.0)


def run_calls(material: Material, room: Path, seed: int, numbers: range, found: Path) -> None:
    """Make calls, and write a line with the number and the problem of each; for a child.

    A line with a number alone is written before a call, and is the last one if the call crashes.
    """
    # Some calls name hub ids.
    os.environ.update({"HF_HUB_OFFLINE": "1", "HOME": str(room), "TMPDIR": str(room)})
    os.chdir(room)
    warnings.simplefilter("ignore")
    with found.open("w", buffering=1) as lines:
        lines.write("null\n")
        calls = Calls(material, room)
        expected = calls._model.generate(PICTURE, PROMPT, max_new_tokens=4).token_ids
        for number in numbers:
            lines.write(json.dumps([number, None]) + "\n")
            problem = judge(calls.make(Random(f"{seed} API {number}")))
            if number % 100 == 0 and problem is None:
                again = calls._model.generate(PICTURE, PROMPT, max_new_tokens=4).token_ids
                problem = None if again == expected else "the model answers otherwise now"
            if problem:
                lines.write(json.dumps([number, problem]) + "\n")
        calls.close()
        lines.write("done\n")
