"""`fastvlm-onnx generate`."""

import json
import sys
from dataclasses import asdict

import click

from fastvlm_onnx.commands.load_options import Opening, opening_options
from fastvlm_onnx.errors import InputError


@click.command()
@click.argument("image")
@click.argument("prompt")
@click.option("--model", help="An exported folder, or the hub id of a package.")
@opening_options
@click.option("--max-new-tokens", default=256, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=50, show_default=True, help="0 is off.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--min-p", default=0.0, show_default=True)
@click.option("--repetition-penalty", default=1.0, show_default=True)
@click.option("--seed", type=int, help="Repeat a drawn answer.")
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@click.option("--max-time", type=float, help="Seconds, after which the answer is what it has.")
@click.option("--orient", is_flag=True, help="Turn the picture as its EXIF data say.")
@click.option("--stats", is_flag=True, help="Where the time went, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the text.")
def generate(
    image: str,
    prompt: str,
    model: str | None,
    opening: Opening,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: tuple[str, ...],
    max_time: float | None,
    orient: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Ask PROMPT about IMAGE; the answer streams to stdout.

    IMAGE is a file, or `-` for standard input.
    """
    picture = _standard_input() if image == "-" else image
    loaded = opening.load(model)
    pieces = loaded.stream(
        picture,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        max_time=max_time,
        orient=orient,
    )
    generation = None
    for piece in pieces:
        if not as_json:
            click.echo(piece.text, nl=False)
            sys.stdout.flush()
        generation = piece.generation
    assert generation is not None
    fields = asdict(generation)
    del fields["logprobs"]  # nobody can ask for them here
    click.echo(json.dumps(fields, ensure_ascii=False) if as_json else "")
    if stats:
        timings = generation.timings
        click.echo(
            f"load {timings.load:.3f} s, preprocess {timings.preprocess:.3f} s, "
            f"vision {timings.vision:.3f} s, prefill {timings.prefill:.3f} s "
            f"({generation.prompt_tokens} tokens), first token {timings.first_token:.3f} s, "
            f"decode {timings.decode:.3f} s ({len(generation.token_ids)} tokens, "
            f"{timings.tokens_per_second:.1f} a second), finish_reason {generation.finish_reason}",
            err=True,
        )


def _standard_input() -> bytes:
    # A process started without standard input has None there.
    content = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content:
        raise InputError("standard input holds no picture; pipe one in, or give a file's path.")
    return content
