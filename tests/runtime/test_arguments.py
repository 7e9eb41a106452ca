"""Arguments of public functions: another type or range is an InputError that names the argument."""

import math
from typing import Any

import numpy as np
import pytest

from fastvlm_onnx import FastVLM, InputError, Request, Scheduler
from fastvlm_onnx.arguments import ARGUMENTS, checks_arguments
from fastvlm_onnx.runtime.text.prompt import ImagePlace


@pytest.mark.parametrize(
    ("name", "value", "python"),
    [
        ("threads", np.int64(2), 2),
        ("threads", None, None),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 1, 1.0),
        ("max_time", math.inf, math.inf),
        ("orient", np.bool_(True), True),
        ("stop", ["a", "b"], ("a", "b")),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("prompts", "one", "one"),
    ],
)
def test_a_right_value_becomes_plain_python(name: str, value: Any, python: Any) -> None:
    found = ARGUMENTS[name](name, value)
    assert found == python
    assert type(found) is type(python)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError

    def __iter__(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(
    "value",
    [1j, b"bytes", Unprintable(), np.array([[1.5]]), object()],
    ids=lambda value: type(value).__name__,
)
def test_every_check_names_its_argument(name: str, value: Any) -> None:
    if name == "prompts" and isinstance(value, np.ndarray):
        pytest.skip("an array may be a list of prompts")
    with pytest.raises(InputError, match=rf"^{name}\b"):
        ARGUMENTS[name](name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", True),
        ("threads", 10**30),
        ("threads", 1.0),
        ("max_new_tokens", 0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", False),
        ("temperature", "1"),
        ("top_p", 0),
        ("orient", 1),
        ("folder", "a\0b"),
        ("folder", "d/" * 5000),
        ("choices", []),
        ("stop", [""]),
        ("stop", "end"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name}\b"):
        ARGUMENTS[name](name, value)


def test_a_decorated_function_keeps_its_defaults_and_other_arguments() -> None:
    @checks_arguments
    def function(other: str, *, threads: int = 1, **options: int) -> tuple[Any, ...]:
        return other, threads, options

    assert function("a", x=1) == ("a", 1, {"x": 1})
    with pytest.raises(InputError, match="threads is 'two'"):
        function("a", threads="two")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="other"):
        function()  # type: ignore[call-arg]


def test_a_scheduler_refuses_other_objects(model: FastVLM) -> None:
    with pytest.raises(InputError, match="model is 5"):
        Scheduler(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="config is None"):
        Request([[1]], (), None)  # type: ignore[arg-type]
    for parts in ([], [[]], [[-1]], [[1.5]], ["text"], [ImagePlace(0)]):
        with pytest.raises(InputError, match=r"^parts"):
            Request(parts)  # type: ignore[arg-type]
    with Scheduler(model) as scheduler:
        with pytest.raises(InputError, match="parts has the token id 1000000"):
            scheduler.submit(Request([[10**6]]))
        with pytest.raises(InputError, match="request is None"):
            scheduler.submit(None)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="id is 5"):
            scheduler.seen(5)  # type: ignore[arg-type]


def test_a_prompt_template_refuses_other_content(model: FastVLM) -> None:
    with pytest.raises(InputError, match="content has a int; expected texts and ImagePlaces"):
        model.template.prompt([5])  # type: ignore[list-item]
    with pytest.raises(InputError, match="Unicode"):
        model.template.prompt(["\udcff"])
