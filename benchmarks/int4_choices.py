"""Measure the choices of int4: search for scales, block size, zero points, and kinds of layers.

    python benchmarks/int4_choices.py -o docs/benchmarks    # about 15 minutes, 12 GB of disk

Only the decoder is measured. Each trial gets the same image features and tokens as fp32, on two
checkpoints:

- The built-in model, whose weights are trained, with held-out pictures and every step of fp32's
  answers. The model is so small that figures vary by chance. Its channels are therefore put into
  --draws other orders, which changes the blocks only, and figures are means over these orders.
- A random model of the 0.5B's size with outlier tokens (quantisation_error.py), with one picture
  and --steps greedy tokens.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import onnx_ir as ir
import onnxruntime
from demo_data.answers import KINDS
from demo_data.questions import held_out
from int4_layers import (
    Mixture,
    TrialLinear,
    TrialProduct,
    WeightError,
    exported_product,
    float_head,
    int4,
    int4_head,
    int8,
    parts,
)
from int4_scales import WAYS
from numpy.typing import NDArray
from onnxscript import nn
from quantisation_error import CHECKPOINT, NAMES, PICTURES, answer, make_package, prompt_embeds

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.architecture.tensor_names import LM_HEAD
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.decoder import build_decoder
from fastvlm_onnx.export.graphs.decoder_precisions import DECODER_PRECISIONS, DecoderPrecision
from fastvlm_onnx.export.graphs.linear import (
    FloatLinear,
)
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.external_data import write_tensors
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, INT8_BLOCK
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.verification.metrics import kl_divergences, relative_error
from fastvlm_onnx.export.writing.package_writer import INLINE_BYTES
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.text.prompt import question as content
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

FloatArray = NDArray[np.float32]

BLOCK_SIZES = (32, 64, 128)
LANGUAGE = ("model.embed_tokens.", "model.layers.", "model.norm.")


# --- prompts and checkpoints ---------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The inputs_embeds of a prompt, and the tokens and logits of the answer of fp32."""

    inputs_embeds: FloatArray
    tokens: list[int]
    logits: FloatArray


@dataclass(frozen=True)
class Draw:
    """A decoder's tensors, and the order of the channels of the residual stream."""

    tensors: Mapping[str, LazyArray]
    order: NDArray[np.intp]


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and the answers of its fp32 decoder.

    Attributes:
        name: the heading of the results.
        config: the decoder's sizes for the exporter.
        decoder: the decoder's sizes for the runtime.
        embed_tokens: the token embeddings of fp32, which every trial uses.
        asked: prompts with fp32's answers.
        draws: the same decoder with channels in several orders.
    """

    name: str
    config: DecoderConfig
    decoder: DecoderFormat
    embed_tokens: TokenEmbedding
    asked: list[Asked]
    draws: list[Draw]


def reordered(checkpoint: Checkpoint, seed: int) -> Draw:
    """Put the channels of the residual stream, and those inside the MLPs, into a random order."""
    rng, decoder = np.random.default_rng(seed), checkpoint.config.decoder
    order, inner = map(rng.permutation, (decoder.hidden_size, decoder.intermediate_size))

    def change(name: str, tensor: LazyArray) -> LazyArray:
        def read() -> FloatArray:
            values = tensor.read()
            if name.endswith(("norm.weight", "o_proj.weight", "down_proj.weight")):
                values = values[order]
            elif values.ndim == 2:
                values = values[:, order]
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                values = values[inner]
            return values[:, inner] if name.endswith("down_proj.weight") else values

        return LazyArray(tensor.shape, read)

    language = (n for n in checkpoint.tensors if n == LM_HEAD or n.startswith(LANGUAGE))
    return Draw({name: change(name, checkpoint.tensors[name]) for name in language}, order)


def trained(folder: Path, number: int, draws: int, threads: int) -> Subject:
    """The built-in model and `number` held-out questions of each kind."""
    export_package("demo", folder / "demo-package", overwrite=True)
    model = fastvlm_onnx.load(folder / "demo-package", providers="cpu", threads=threads)
    asked = []
    for kind in KINDS:
        for sample, question in held_out(kind, number):
            pixel_values = preprocess(read_picture(sample.picture), model.image_size)
            features = model.image_encoder.encode_pixel_values(pixel_values)
            before, _, after = model.template.prompt(content(question.prompt, num_images=1))
            inputs_embeds = model.language_model.embed([before, features[0], after])
            tokens = model.generate(sample.picture, question.prompt).token_ids
            tokens += model.manifest.decoder.eos_token_ids[:1]
            asked.append(ask(model, inputs_embeds, len(tokens), tokens))
    steps = sum(len(a.tokens) for a in asked)
    name = f"Built-in model, trained; {len(asked):,} answers, {steps:,} steps"
    checkpoint = open_checkpoint("demo")
    orders = [reordered(checkpoint, seed) for seed in range(draws)]
    return subject(f"{name}, {draws} draws", checkpoint, model, asked, orders)


def full_size(folder: Path, steps: int, threads: int) -> Subject:
    """The random 0.5B and one picture."""
    package = make_package(folder)
    model = fastvlm_onnx.load(package, precision="fp32", providers="cpu", threads=threads)
    pixel_values = preprocess(read_picture(PICTURES / NAMES[0]), model.image_size)
    inputs_embeds = prompt_embeds(model, model.image_encoder.encode_pixel_values(pixel_values))
    checkpoint = open_checkpoint(folder / CHECKPOINT)
    asked = [ask(model, inputs_embeds, steps)]
    draw = Draw(checkpoint.tensors, np.arange(checkpoint.config.decoder.hidden_size))
    return subject(f"Random 0.5B, outlier tokens; {steps} steps", checkpoint, model, asked, [draw])


def ask(
    model: FastVLM, inputs_embeds: FloatArray, steps: int, forced: list[int] | None = None
) -> Asked:
    logits, tokens = answer(model.language_model, inputs_embeds, steps, forced)
    return Asked(inputs_embeds, tokens, logits)


def subject(
    name: str, checkpoint: Checkpoint, model: FastVLM, asked: list[Asked], draws: list[Draw]
) -> Subject:
    config, decoder = checkpoint.config.decoder, model.manifest.decoder
    return Subject(name, config, decoder, model.language_model.embed_tokens, asked, draws)


# --- trials --------------------------------------------------------------------------------------


def open_decoder(
    subject: Subject, draw: Draw, precision: DecoderPrecision, threads: int
) -> tuple[Decoder, int]:
    """Open the decoder in a precision, and return the size of its weights in bytes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(DECODER_PRECISIONS, trial=precision),
    ):
        graph = build_decoder(Weights(draw.tensors), subject.config, "trial")
        initializers = graph.graph.initializers
        tensors = {
            name: value.const_value
            for name, value in initializers.items()
            if value.const_value.nbytes > INLINE_BYTES
        }
        written = write_tensors(tensors, Path(folder), "weights", lambda _: None)
        for name, tensor in written.items():
            initializers[name].const_value = tensor
        path = Path(folder) / "decoder.onnx"
        ir.save(graph, path)
        session = GraphSession(path, ProviderChoice(CPU), threads)
        return Decoder(session, subject.decoder), path.with_name("weights").stat().st_size


FIGURES = (
    "MB",
    "logits: relative error",
    "KL divergence, mean",
    "largest",
    "argmax agreement",
)


def figures(
    subject: Subject, make_precision: Callable[[], DecoderPrecision], threads: int
) -> list[str]:
    """Return the cells under FIGURES; a precision is made anew for each draw."""
    errors, divergences, agreeing = [], [], []
    expected = np.concatenate([asked.logits for asked in subject.asked])
    for draw in subject.draws:
        decoder, size_bytes = open_decoder(subject, draw, make_precision(), threads)
        found = np.concatenate(
            [logits_of(subject, draw, decoder, asked) for asked in subject.asked]
        )
        errors.append(relative_error(found, expected))
        divergences.append(kl_divergences(found, expected))
        agreeing.append((found.argmax(-1) == expected.argmax(-1)).mean())
    means = [divergence.mean() for divergence in divergences]
    spread = f" ± {np.std(means, ddof=1) / len(means) ** 0.5:.0e}" if len(means) > 1 else ""
    return [
        f"{size_bytes / 1e6:,.1f}",
        f"{np.mean(errors):.4f}",
        f"{np.mean(means):.1e}{spread}",
        f"{np.max(divergences):.1e}",
        f"{np.mean(agreeing):.2%}",
    ]


def logits_of(subject: Subject, draw: Draw, decoder: Decoder, asked: Asked) -> FloatArray:
    def reorder(embeds: FloatArray) -> FloatArray:
        return np.take(embeds, draw.order, axis=-1)

    model = LanguageModel(decoder, lambda ids: reorder(subject.embed_tokens(ids)), subject.decoder)
    return answer(
        model,
        reorder(asked.inputs_embeds),
        len(asked.tokens),
        asked.tokens,
    )[0]


def scales_table(subject: Subject, threads: int) -> str:
    """Compare ways to find scales, by block size; lm_head is in int8, as in an export."""
    head, rows = DECODER_PRECISIONS["int4"].lm_head, []
    ways: dict[tuple[str, int], Callable[..., nn.Module]] = {
        (name, block_size): partial(
            TrialProduct, quantise=quantise, block_size=block_size, has_zeros=has_zeros
        )
        for block_size in BLOCK_SIZES
        for name, quantise, has_zeros in WAYS
    }
    ways["as exported", INT4_BLOCK] = exported_product
    for (name, block_size), product in ways.items():
        error = WeightError()
        linear = partial(TrialLinear, product=partial(product, error=error))
        cells = figures(subject, lambda make=linear: DecoderPrecision(make, head), threads)
        rows.append([name, str(block_size), f"{error.relative:.4f}", *cells])
        print(rows[-1], flush=True)
    cells = figures(subject, lambda: DecoderPrecision(int8, head), threads)
    rows.append(["int8", str(INT8_BLOCK), "", *cells])
    return table(["scales", "block", "weights: relative error", *FIGURES], rows)


def parts_table(subject: Subject, threads: int) -> str:
    """Compare each part alone in int8 among int4, and alone in int4 among float32."""
    head = DECODER_PRECISIONS["int4"].lm_head
    trials: dict[str, Callable[[], DecoderPrecision]] = {
        "as exported": lambda: DECODER_PRECISIONS["int4"],
        "all in int4": lambda: DecoderPrecision(int4, head),
    }
    for name, is_in in parts(subject.config.num_hidden_layers).items():
        trials[f"{name} in int8"] = lambda is_in=is_in: DecoderPrecision(
            Mixture(is_in, int8, int4), head
        )
    trials["lm_head in int4 too"] = lambda: DecoderPrecision(int4, int4_head)
    for name, is_in in parts(subject.config.num_hidden_layers).items():
        trials[f"float32, {name} in int4"] = lambda is_in=is_in: DecoderPrecision(
            Mixture(is_in, int4, FloatLinear), float_head
        )
    trials["float32, lm_head in int4"] = lambda: DecoderPrecision(FloatLinear, int4_head)
    rows = []
    for name, make_precision in trials.items():
        rows.append([name, *figures(subject, make_precision, threads)])
        print(rows[-1], flush=True)
    return table(["decoder", *FIGURES], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="keeps checkpoint and packages, and reuses them")
    parser.add_argument("--only", choices=("trained", "random"), help="one of the checkpoints")
    parser.add_argument("--number", type=int, default=50, help="held-out pictures of each kind")
    parser.add_argument("--draws", type=int, default=16, help="orders of the trained channels")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    text = f"""# int4's choices

{processor()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}. The decoder alone,
fed what fp32 is fed.
"""
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        if args.only != "random":
            text += section(trained(work, args.number, args.draws, args.threads), args.threads)
        if args.only != "trained":
            text += section(full_size(work, args.steps, args.threads), args.threads)
    (args.output / "int4-choices.md").write_text(text, encoding="utf-8")
    print(text)


def section(subject: Subject, threads: int) -> str:
    print(subject.name, flush=True)
    scales, parts = scales_table(subject, threads), parts_table(subject, threads)
    return f"\n## {subject.name}\n\n{scales}\n\n{parts}\n"


if __name__ == "__main__":
    main()
