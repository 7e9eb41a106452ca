"""Damage bytes, JSON and texts, by a random generator with a seed."""

import copy
import json
from random import Random
from typing import Any, Final

ODD_TEXTS: Final = (
    "",
    " ",
    "-",
    "--",
    "=",
    ",",
    ".",
    "..",
    "/",
    "../../etc/passwd",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "/nonexistent/folder",
    "nul\0byte",
    "two\nlines",
    "\x1b[31mred\x1b[0m",
    "\udcff\udcfe",  # a file's name that is not UTF-8
    "é" * 300,
    "x" * 5000,
    "‮right to left",
    "🖼️",
    "owner/name",
    "owner/name@main",
    "a=b",
    "~",
    "$HOME",
    "%s%n",
    "{0}",
    "[abc",
    "*",
    "None",
    "true",
    "http://127.0.0.1:9/x",
)
ODD_NUMBERS: Final = (
    "0",
    "-1",
    "1",
    "1.5",
    "1e999",
    "-0",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "1_000",
    "٣",
    "9" * 20,
    "9" * 5000,
    "2147483648",
    "18446744073709551616",
    "1e-400",
    " 5 ",
    "five",
)
ODD_VALUES: Final = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    1.5,
    -0.0,
    1e308,
    "",
    "x",
    "1",
    "../x",
    "/etc/passwd",
    "two\nlines",
    "\x1b[31m",
    "nul\0byte",
    "x" * 3000,
    [],
    {},
    [[]],
    {"": ""},
    [0] * 300,
    [None],
    {"x": 1},
)


def odd_text(random: Random) -> str:
    """A text that is hard to read."""
    if random.random() < 0.3:
        return random.choice(ODD_NUMBERS)
    if random.random() < 0.2:
        return "".join(chr(random.randrange(1, 0xD800)) for _ in range(random.randrange(1, 40)))
    return random.choice(ODD_TEXTS)


def damaged_bytes(random: Random, content: bytes, start: int = 0) -> bytes:
    """Damage a file's bytes at or after `start` in one to four places."""
    if random.random() < 0.05:
        return random.choice((b"", b"\0", b"\xff" * 100, random.randbytes(300), content * 2))
    damaged = bytearray(content)
    for _ in range(random.randrange(1, 5)):
        if len(damaged) <= start:
            break
        # Most formats have their structure at the beginning.
        reach = len(damaged) if random.random() < 0.4 else min(len(damaged), start + 400)
        at = random.randrange(start, reach)
        kind = random.randrange(7)
        if kind == 0:
            damaged[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            damaged[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            del damaged[at : at + random.randrange(1, 40)]
        elif kind == 4:
            damaged[at:at] = random.randbytes(random.randrange(1, 40))
        elif kind == 5:
            number = random.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, 1 << 40))
            damaged[at : at + 8] = number.to_bytes(8, random.choice(("little", "big")))
        else:
            length = random.randrange(1, 60)
            damaged[at : at + length] = random.choice((b"\0", b"\xff", b"A")) * length
    return bytes(damaged)


def damaged_value(random: Random, value: Any) -> Any:
    """Damage one to three places of a JSON value."""
    damaged = copy.deepcopy(value)
    for _ in range(random.randrange(1, 4)):
        places = list(_places(damaged))
        if not places:
            return random.choice(ODD_VALUES)
        holder, key = random.choice(places)
        kind = random.random()
        if kind < 0.15:
            del holder[key]
        elif kind < 0.25 and isinstance(holder, dict):
            holder[odd_text(random)] = holder.pop(key)
        elif kind < 0.35 and isinstance(holder, list):
            holder.insert(0, random.choice(ODD_VALUES))
        elif kind < 0.5 and isinstance(holder[key], (int, float)):
            holder[key] += random.choice((-1, 1, 10**6, -(10**6), 0.5))
        elif kind < 0.6 and isinstance(holder[key], str):
            holder[key] += odd_text(random)
        else:
            holder[key] = copy.deepcopy(random.choice(ODD_VALUES))
    return damaged


def damaged_json(random: Random, value: Any) -> bytes:
    """Damage a JSON value, or the text that it is written as."""
    if random.random() < 0.75:
        return json.dumps(damaged_value(random, value), ensure_ascii=True).encode()
    text = json.dumps(value)
    whole = text.encode()
    kind = random.randrange(9)
    if kind == 0:
        return b"\xef\xbb\xbf" + whole
    if kind == 1:
        return text.encode("utf-16")
    if kind == 2:
        return b"[" * 100_000
    if kind == 3:
        return b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    if kind == 4:
        return text.replace(":", ': NaN, "x":', 1).encode()
    if kind == 5:
        return b'{"format_version": ' + b"9" * 10**6 + b"}"
    if kind == 6 and isinstance(value, dict) and value:
        key = json.dumps(random.choice(list(value)))
        return (text[:-1] + f", {key}: 1}}").encode()
    if kind == 7:
        return whole.replace(b'"', b'"\xff', random.randrange(1, 4))
    return damaged_bytes(random, whole)


def _places(value: Any) -> Any:
    """Every container in a value with each of its keys; long lists by their first few items."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)[:200]
    elif isinstance(value, list):
        keys = list(range(len(value)))[:20]
    for key in keys:
        yield value, key
        yield from _places(value[key])
