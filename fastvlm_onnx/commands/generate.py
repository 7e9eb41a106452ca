"""`fastvlm-onnx generate`."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.generation_options import generation_options
from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.console import encodable_json, say
from fastvlm_onnx.errors import InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.engine.options import GenerationOptions


@click.command()
@click.argument("image")
@click.argument("prompt")
@click.option("--model", help="An exported folder, or the hub id of a package.")
@load_options
@generation_options(
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "max_time",
    "orient",
    "schema",
    "regex",
    "choices",
)
@click.option("--stats", is_flag=True, help="Print times on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def generate(
    image: str,
    prompt: str,
    model: str | None,
    options: LoadOptions,
    generation: "GenerationOptions",
    stats: bool,
    as_json: bool,
) -> None:
    """Ask PROMPT about IMAGE; the answer streams to stdout.

    IMAGE is a file, or `-` for standard input.
    """
    picture = _standard_input() if image == "-" else image
    options.register_libraries()
    loaded = options.load(package_or_default(model))
    final = None
    for piece in loaded.stream(picture, prompt, **generation):
        if not as_json:
            click.echo(piece.text, nl=False)
            sys.stdout.flush()
        final = piece.generation
    assert final is not None
    fields = asdict(final)
    for name in ("logprobs", "top_logprobs", "cached_tokens"):
        del fields[name]  # no option of this command asks for them
    del fields["timings"]["waiting"]  # here no other answer is waited for
    if final.parsed is None:
        del fields["parsed"]
    click.echo(encodable_json(json.dumps(fields, ensure_ascii=False)) if as_json else "")
    if stats:
        timings = final.timings
        say(
            f"load {timings.load:.3f} s, preprocess {timings.preprocess:.3f} s, "
            f"vision {timings.vision:.3f} s, prefill {timings.prefill:.3f} s "
            f"({final.prompt_tokens} tokens), first token {timings.first_token:.3f} s, "
            f"decode {timings.decode:.3f} s ({len(final.token_ids)} tokens, "
            f"{timings.tokens_per_second:.1f} a second), finish_reason {final.finish_reason}"
        )


def _standard_input() -> bytes:
    # sys.stdin is None in a process that was started without standard input.
    content = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content:
        raise InputError(
            "standard input holds no picture; pipe a picture in, or give a file's path."
        )
    return content
