"""Cases of command lines, of surroundings and of signals."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import click

from fastvlm_onnx.cli import cli
from tests.hostile.case import Command, Limits
from tests.hostile.file_cases import PICTURE
from tests.hostile.material import Material
from tests.hostile.mutations import ODD_NUMBERS, damaged_bytes, odd_text

# How often a command is drawn. `verify` imports PyTorch, `bench` measures.
WEIGHTS = {
    "generate": 8,
    "export": 8,
    "caption": 6,
    "chat": 5,
    "inspect": 4,
    "doctor": 2,
    "download": 2,
    "serve": 4,
    "cache": 2,
    "demo": 1,
    "bench": 1,
    "verify": 0.05,
}


def command_lines(random: Random, material: Material, room: Path) -> Command:
    """A command with odd arguments and options."""
    (name,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    command = cli.commands[name]
    arguments: list[str] = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            count = random.choice((0, 1, 1, 1, 1, 1, 1, 2))
            arguments += [_value(random, parameter, material, room) for _ in range(count)]
    options = [
        parameter
        for parameter in command.params
        # `export --verify` runs PyTorch, which takes longer than a case may.
        if isinstance(parameter, click.Option) and parameter.name != "verify"
    ]
    for option in random.sample(options, min(len(options), random.choice((0, 1, 1, 2, 3, 5)))):
        arguments += _option(random, option, material, room)
    if name in ("generate", "chat", "caption", "demo") and "--model" not in arguments:
        arguments += ["--model", str(material.package)]
    if name in ("generate", "chat", "caption") and "--max-new-tokens" not in arguments:
        arguments += ["--max-new-tokens", "2"]
    if name == "serve":
        # A server that starts would not end.
        arguments += ["--model", str(room / "absent")]
    if name == "download":
        arguments += ["--base-url", "http://127.0.0.1:9"]
    if name in ("bench", "verify") and random.random() < 0.95:
        arguments += ["--precision", "abacus"]
    if name == "export" and "--output" not in arguments:
        arguments += ["-o", str(room / "work/exported")]
    if random.random() < 0.05:
        random.shuffle(arguments)
    if random.random() < 0.02:
        name = odd_text(random)
    codes = (
        (0, 1, 2) if name in ("doctor", "verify") else (0, 2, 3) if name == "caption" else (0, 2)
    )
    return Command(
        [name, *arguments],
        stdin=_stdin(random),
        destination=room / "work/exported",
        codes=codes,
    )


def surroundings(random: Random, material: Material, room: Path) -> Command:
    """A right command in a new interpreter in wrong surroundings."""
    command = _right_command(random, material, room)
    kind = random.randrange(12)
    if kind == 0:
        return replace(command, environment={"HOME": None, "FASTVLM_ONNX_HOME": None})
    if kind == 1:
        absent = str(room / "absent")
        return replace(command, environment={"TMPDIR": absent, "HOME": absent})
    if kind == 2:
        closed = random.choice(((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)))
        return replace(command, closed=closed, codes=(0, 1, 2, 3))
    if kind == 3:
        return replace(command, full=random.choice(((1,), (2,), (1, 2))), codes=(0, 1, 2, 3))
    if kind == 4:
        megabytes = random.choice((100, 200, 300, 400, 500, 600, 700, 800, 1000, 1500, 2000))
        return replace(command, limits=Limits(memory_bytes=megabytes << 20))
    if kind == 5:
        return replace(command, limits=Limits(files=random.randrange(5, 40)))
    if kind == 6:
        return replace(command, limits=Limits(file_bytes=random.choice((0, 1000, 10**5, 10**7))))
    if kind == 7:
        for name in ("home", "tmp"):
            (room / name).mkdir(mode=0o555)
        return replace(command, is_unprivileged=True)
    if kind == 8:
        (room / "work").mkdir(mode=0o555)
        return replace(command, is_unprivileged=True)
    if kind == 9:
        variables = ("LANG", "LC_ALL", "PYTHONIOENCODING", "COLUMNS", "TERM", "NO_COLOR")
        chosen = {name: random.choice(("", "C", "ascii", "0", "x" * 300)) for name in variables}
        chosen["PYTHONIOENCODING"] = random.choice(("ascii", "utf-8", "latin-1"))
        return replace(command, environment=chosen)
    variable = random.choice(
        (
            "FASTVLM_ONNX_MODEL",
            "FASTVLM_ONNX_HOME",
            "FASTVLM_ONNX_CACHE_MB",
            "FASTVLM_ONNX_API_KEY",
            "HF_HOME",
            "XDG_CACHE_HOME",
            "OMP_NUM_THREADS",
            "HF_ENDPOINT",
            "HTTPS_PROXY",
        )
    )
    value = odd_text(random).replace("\0", "")
    return replace(command, environment={variable: value})


def signals(random: Random, material: Material, room: Path) -> Command:
    """SIGINT or SIGTERM at a random time."""
    command = _right_command(random, material, room)
    kind = random.choice((signal.SIGINT, signal.SIGTERM))
    return replace(command, signal=(kind, random.uniform(0.0, 0.9)), is_fresh=True)


def _right_command(random: Random, material: Material, room: Path) -> Command:
    package = ["--model", str(material.package)]
    few = ["--max-new-tokens", "2"]
    destination = room / "work/exported"
    name = random.choice(("generate", "chat", "caption", "export", "zip", "inspect", "doctor"))
    if name == "generate":
        arguments = ["generate", PICTURE, "Describe the image.", *package, *few]
    elif name == "chat":
        arguments = ["chat", PICTURE, *package, *few]
    elif name == "caption":
        arguments = ["caption", PICTURE, *package, *few]
        if random.random() < 0.5:
            arguments += ["-o", str(room / "work/captions.jsonl")]
    elif name == "export":
        arguments = ["export", "demo", "-o", str(destination)]
    elif name == "zip":
        arguments = ["export", str(material.zipped), "-o", str(destination)]
    elif name == "inspect":
        arguments = ["inspect", str(material.package)]
    else:
        arguments = ["doctor"]
    codes = (0, 1, 2) if name == "doctor" else (0, 2, 3) if name == "caption" else (0, 2)
    return Command(
        arguments,
        stdin=b"Hello\n/stats\nAnd now?\n",
        is_fresh=True,
        destination=destination if name in ("export", "zip") else None,
        codes=codes,
    )


def _option(random: Random, option: click.Option, material: Material, room: Path) -> list[str]:
    flag = option.opts[-1]
    if option.is_flag and random.random() < 0.95:
        return [flag]
    value = _value(random, option, material, room)
    return [f"{flag}={value}"] if random.random() < 0.3 else [flag, value]


def _value(random: Random, parameter: click.Parameter, material: Material, room: Path) -> str:
    """A value for a parameter: right, odd, or a path of the wrong kind."""
    chance = random.random()
    if chance < 0.35:
        return _right_value(random, parameter, material, room)
    if chance < 0.55:
        return random.choice(ODD_NUMBERS)
    if chance < 0.75:
        return str(_odd_path(random, material, room))
    return odd_text(random)


def _right_value(random: Random, parameter: click.Parameter, material: Material, room: Path) -> str:
    name, kind = parameter.name, parameter.type
    if isinstance(kind, click.Choice):
        return str(random.choice(list(kind.choices)))
    if kind.name in ("integer", "float"):
        return random.choice(("1", "2", "256"))
    if name == "paths":
        shutil.copyfile(PICTURE, room / "picture.png")
    right: dict[str | None, Any] = {
        "folder": material.package,
        "model": material.package,
        "image": PICTURE,
        "paths": room / "picture.png",  # `caption --txt` writes beside it
        "prompt": "Describe the image.",
        "checkpoint": "demo",
        "precision": "fp32",
        "providers": "cpu",
        "output": room / "work/out",
        "size": "0.5b",
    }
    return str(right.get(name, "x"))


def _odd_path(random: Random, material: Material, room: Path) -> Path | str:
    kind = random.randrange(10)
    path = room / "odd"
    if kind == 0 and not os.path.lexists(path):
        os.mkfifo(path)
    elif kind == 1 and not os.path.lexists(path):
        path.mkdir()
    elif kind == 2 and not os.path.lexists(path):
        path.symlink_to(path)
    elif kind == 3 and not os.path.lexists(path):
        path.write_bytes(damaged_bytes(random, b'{"type": "object"}'))
    elif kind == 4:
        return room / ("n" * 300)
    elif kind == 5:
        return "/" + "d/" * 3000
    elif kind == 6:
        return material.package
    elif kind == 7:
        return room / "absent" / "file"
    elif kind == 8:
        return material.checkpoint / "model.safetensors"
    return path


def _stdin(random: Random) -> bytes:
    kind = random.randrange(5)
    if kind == 0:
        return b""
    if kind == 1:
        return random.randbytes(200)
    if kind == 2:
        return Path(PICTURE).read_bytes()
    lines = [odd_text(random).replace("\n", " ") for _ in range(3)]
    commands = (
        "/image",
        f"/image {PICTURE}",
        "/reset",
        "/stats",
        "/what",
        "/exit",
        "Hello",
        *lines,
    )
    chosen = random.sample(commands, 3)
    return "\n".join(chosen).encode("utf-8", "surrogateescape" if kind == 3 else "replace")
