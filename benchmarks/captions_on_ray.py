"""Pictures a second of `fastvlm-onnx caption --ray` on one machine, against plain `caption`.

    python benchmarks/captions_on_ray.py PACKAGE           # about 3 minutes with the built-in model

Each side answers about a few pictures and about many, in a process of its own. The speed is that of
the pictures in between, so that start-up does not count. Ray runs twice: with an actor that has the
threads of plain `caption`, and with an actor for each thread. Run it on an idle machine.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.samples import SAMPLE_PICTURE


def draw(folder: Path, first: int, end: int) -> None:
    """Write pictures that differ in a few pixels, since the features of equal ones are kept."""
    sample = Image.open(SAMPLE_PICTURE).convert("RGB")
    for number in range(first, end):
        picture, numbers = sample.copy(), random.Random(number)
        x, y = numbers.randrange(picture.width - 20), numbers.randrange(picture.height - 20)
        color = tuple(numbers.randrange(256) for _ in range(3))
        ImageDraw.Draw(picture).ellipse((x, y, x + 19, y + 19), fill=color)
        picture.save(folder / f"{number:05}.jpg", quality=90)


def seconds_of(package: str, folder: Path, output: Path, *more: str) -> float:
    """Run the command, and return the seconds of the whole process."""
    command = [sys.executable, "-m", "fastvlm_onnx", "caption", str(folder), "--model", package]
    began = time.perf_counter()
    subprocess.run(
        [*command, "-o", str(output), *more], check=True, stderr=subprocess.DEVNULL, timeout=600
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2, help="of each side, together")
    options = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} logical processors")
    threads = ["--threads", str(options.threads)]
    sides = {
        "plain": threads,
        "ray": ["--ray", "local", "--actors", "1", *threads],
        "ray, an actor for each thread": [
            *("--ray", "local", "--actors", str(options.threads), "--threads", "1")
        ],
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pictures")
        folder.mkdir()
        warm_up = Path(name, "warm-up")
        warm_up.mkdir()
        draw(warm_up, 0, 1)
        seconds_of(options.package, warm_up, Path(name, "warm-up.jsonl"))
        for first, end in ((0, options.few), (options.few, options.many)):
            draw(folder, first, end)
            for number, (side, more) in enumerate(sides.items()):
                output = Path(name, f"{number}-{end}.jsonl")
                seconds[side].append(seconds_of(options.package, folder, output, *more))
                print(f"{side}: {end} pictures in {seconds[side][-1]:.1f} s", flush=True)
    between = options.many - options.few
    speeds = {side: between / (many - few) for side, (few, many) in seconds.items()}
    for side, speed in speeds.items():
        ratio = speed / speeds["plain"]
        print(f"{side}: {speed:.1f} pictures a second, start-up apart, {ratio:.3f} of plain")


if __name__ == "__main__":
    main()
