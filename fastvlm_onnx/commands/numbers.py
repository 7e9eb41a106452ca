"""Options that take several numbers."""

from fastvlm_onnx.errors import InputError


def numbers(text: str, option: str) -> list[int]:
    """Numbers separated by commas.

    Raises:
        InputError: something else stands between them.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}; expected numbers separated by commas.") from None
