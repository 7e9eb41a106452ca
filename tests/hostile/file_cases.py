"""Cases of damaged files: packages, checkpoints, pictures."""

import dataclasses
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from random import Random

from tests.hostile.case import Command
from tests.hostile.material import DEMO, Material, describe_truly, replace
from tests.hostile.mutations import (
    damaged_bytes,
    damaged_json,
    damaged_value,
    odd_text,
)

PICTURE = str(DEMO / "pictures/shapes.png")


def manifests(random: Random, material: Material, room: Path) -> Command:
    """A damaged fastvlm.json."""
    package = material.linked(material.package, room / "package")
    path = package / "fastvlm.json"
    replace(path, damaged_json(random, json.loads(path.read_text("utf-8"))))
    if random.random() < 0.6:
        return Command(["inspect", str(package), *random.choice(([], ["--json"]))])
    return _generate(package)


def package_files(random: Random, material: Material, room: Path) -> Command:
    """A package of which a file is missing, cut, a link, a folder or a FIFO."""
    package = material.linked(material.package, room / "package")
    path = package / random.choice(sorted(os.listdir(package)))
    content = path.read_bytes()
    path.unlink()
    kind = random.randrange(8)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(random.choice(("/etc/passwd", path, room / "absent", "/dev/zero")))
    elif kind == 3:
        path.write_bytes(content)
        path.chmod(0)
    elif kind < 7:
        path.write_bytes(damaged_bytes(random, content))
    command = random.choice(("inspect", "generate", "doctor", "chat"))
    if command == "generate":
        return dataclasses.replace(_generate(package), is_unprivileged=True)
    if command == "chat":
        arguments = ["chat", "--model", str(package), "--max-new-tokens", "2"]
        return Command(arguments, stdin=b"Hello\n", is_unprivileged=True)
    codes = (0, 1, 2) if command == "doctor" else (0, 2)
    return Command([command, str(package)], codes=codes, is_unprivileged=True)


def arrays(random: Random, material: Material, room: Path) -> Command:
    """A damaged embed_tokens.npy with a manifest that describes it."""
    package = material.linked(material.package, room / "package")
    path = package / "embed_tokens.npy"
    content = path.read_bytes()
    if random.random() < 0.5:
        header = damaged_bytes(random, content[:128])
        content = header + content[128:]
    else:
        text = content[10:128].decode("latin-1")
        old, new = random.choice(
            (
                ("<f4", random.choice(("<f8", "|O", ">f4", "<c8", "|V4", "<f2", "<i4", "|S4"))),
                ("False", random.choice(("True", "None", "1", "[]", "(" * 60))),
                ("(", random.choice(("(-", "(9", "(" * 40, "[", "(1.5, "))),
                (")", random.choice((", 1)", "**9)", ", 'x')", "]"))),
                ("'shape'", random.choice(("'shapes'", "shape", "'descr'"))),
            )
        )
        header = text.replace(old, new, 1).encode("latin-1")
        content = content[:8] + struct.pack("<H", len(header)) + header + content[128:]
    replace(path, content)
    describe_truly(package, path.name)
    return _generate(package)


def graphs(random: Random, material: Material, room: Path) -> Command:
    """A damaged graph with a manifest that describes it."""
    package = material.linked(material.package, room / "package")
    name = random.choice(sorted(path.name for path in package.glob("*.onnx")))
    content = (package / name).read_bytes()
    if random.random() < 0.4:
        # Names and operators are texts in the file; a wrong length would end the parse.
        old, new = random.choice(
            (
                (b".data", b"/data"),
                (b"location", b"locatiom"),
                (b"offset", b"length"),
                (b"length", b"offset"),
                (b"MatMul", b"Matmul"),
                (b"Reshape", b"Squeeze"),
                (b"input", b"imput"),
                (b"float", b"flout"),
                (b"com.microsoft", b"com.micros0ft"),
            )
        )
        content = content.replace(old, new, random.randrange(1, 4))
    else:
        content = damaged_bytes(random, content)
    replace(package / name, content)
    describe_truly(package, name)
    return _generate(package)


def package_tokenizers(random: Random, material: Material, room: Path) -> Command:
    """A damaged tokenizer.json with a manifest that describes it."""
    package = material.linked(material.package, room / "package")
    path = package / "tokenizer.json"
    replace(path, damaged_json(random, json.loads(path.read_text("utf-8"))))
    describe_truly(package, path.name)
    return _generate(package)


def checkpoints(random: Random, material: Material, room: Path) -> Command:
    """A checkpoint with a damaged JSON or text file."""
    good = random.choice((material.checkpoint, material.native))
    checkpoint = material.linked(good, room / "checkpoint")
    names = [path.name for path in checkpoint.iterdir() if path.suffix in (".json", ".txt")]
    path = checkpoint / random.choice(sorted([*names, *["config.json"] * 4]))
    content = path.read_bytes()
    if path.suffix == ".json" and random.random() < 0.8:
        replace(path, damaged_json(random, json.loads(content)))
    else:
        replace(path, damaged_bytes(random, content))
    return _export(checkpoint, room)


def templates(random: Random, material: Material, room: Path) -> Command:
    """A checkpoint with a hostile chat template."""
    checkpoint = material.linked(material.native, room / "checkpoint")
    template = random.choice(_TEMPLATES)
    if random.random() < 0.3:
        template = damaged_bytes(random, template.encode()).decode("utf-8", "replace")
    if random.random() < 0.8:
        content = template.encode("utf-8", "surrogateescape")
        replace(checkpoint / "chat_template.jinja", content)
    else:
        (checkpoint / "chat_template.jinja").unlink()
        replace(checkpoint / "chat_template.json", json.dumps({"chat_template": template}).encode())
    return _export(checkpoint, room)


def safetensors(random: Random, material: Material, room: Path) -> Command:
    """A checkpoint with damaged weights."""
    checkpoint = material.linked(material.checkpoint, room / "checkpoint")
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if random.random() < 0.6:
        header = json.dumps(damaged_value(random, json.loads(content[8 : 8 + size]))).encode()
        content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    else:
        content = damaged_bytes(random, content[: 8 + size]) + content[8 + size :]
    replace(path, content)
    return _export(checkpoint, room)


def zips(random: Random, material: Material, room: Path) -> Command:
    """A damaged or hostile zip of a checkpoint."""
    path = room / "checkpoint.zip"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", random.choice((0, 8, 12, 14))) as archive:
        for file in sorted(material.checkpoint.iterdir()):
            # Weights would only take time.
            if file.suffix == ".safetensors" and random.random() < 0.9:
                archive.writestr("top/" + file.name, file.read_bytes()[:2000])
            else:
                archive.write(file, "top/" + file.name)
        for _ in range(random.randrange(3)):
            name = odd_text(random).encode("utf-8", "replace").decode() or "x"
            entry = zipfile.ZipInfo(name)
            entry.external_attr = random.choice((0, 0o120777, 0o100644, 0o010644)) << 16
            archive.writestr(entry, b"content")
    content = packed.getvalue()
    if random.random() < 0.8:
        # The directory is at the end.
        at = random.choice((0, max(0, len(content) - 1200)))
        content = content[:at] + damaged_bytes(random, content[at:])
    path.write_bytes(content)
    return _export(path, room)


def pictures(random: Random, material: Material, room: Path) -> Command:
    """A damaged picture that a command reads."""
    suffix, content = random.choice(material.pictures)
    content = damaged_bytes(random, content)
    if random.random() < 0.3:
        return dataclasses.replace(_generate(material.package, "-"), stdin=content)
    path = room / f"picture.{suffix}"
    path.write_bytes(content)
    if random.random() < 0.5:
        output = ["-o", str(room / "captions.jsonl")] if random.random() < 0.5 else []
        arguments = ["caption", str(path), "--model", str(material.package)]
        return Command([*arguments, "--max-new-tokens", "1", *output], codes=(0, 2, 3))
    return _generate(material.package, str(path))


def _generate(package: Path, picture: str = PICTURE) -> Command:
    question = [picture, "Describe the image.", "--max-new-tokens", "1"]
    return Command(["generate", *question, "--model", str(package)])


def _export(checkpoint: Path, room: Path) -> Command:
    destination = room / "work/exported"
    return Command(["export", str(checkpoint), "-o", str(destination)], destination=destination)


_PART = "{{ m['content'] if m['content'] is string else '' }}"
_TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% for m in messages %}" + _PART + "{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{{ 'x' * 10**12 }}",
    "{{ 9**9**9 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends x %}",
    "{{ undefined.name }}",
    "{{ messages[9] }}",
    "{{ 1/0 }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ raise_exception('two\nlines') }}",
    "{{ strftime_now('%') }}",
    "{% if",
    "{{ '%s' % messages }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ ['a'] * 10**9 }}",
    "{{ '\\ud800' }}",
    "<image>",
    "",
    "((" * 5000,
    "{{ " + "(" * 3000 + ")" * 3000 + " }}",
)
