"""How far each variant is from fp32 at the 0.5B's true size, with outlier tokens planted.

    python benchmarks/quantisation_error.py -o docs/benchmarks    # about 10 minutes, 8 GB of disk

Greedy answers of --steps tokens by the fp32 package, whose tokens are then forced on every variant;
no token comes twice, since random weights would soon go round in a circle of a dozen. fp32 stands
for PyTorch, from which it is 2e-6 away (`fastvlm-onnx verify`), so no PyTorch is needed. Tokens
with activations a thousand times the others' stand in every prompt. lm_head is no copy of the
embeddings, as it is in the published 0.5B: the planted rows would be the only tokens ever chosen.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from random_checkpoint import PUBLISHED, write_random_checkpoint

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.agreement import StageAgreement, VariantAgreement, summary_table
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.verification.comparison import (
    compare_answers,
    compare_stage,
    worst_of,
)
from fastvlm_onnx.export.verification.metrics import top_2_gap
from fastvlm_onnx.names import IMAGE_FEATURES, IMAGE_HIDDEN_STATES, LOGITS
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.engine.decoding import decode_one_token, prefill
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.runtime.ort.session import DecoderSession
from fastvlm_onnx.runtime.text.prompt import PromptIds, tokenize_prompt
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.variants import CPU_VARIANTS, VARIANTS

FloatArray = NDArray[np.float32]

PICTURES = Path(fastvlm_onnx.__file__).parent / "demo/pictures"
NAMES = ("shapes.png", "word.png")
PROMPT = "Describe the image."
# No word of a prompt is one of these: they are put between its tokens.
OUTLIERS = (1000, 1001, 1002, 1003)
CHECKPOINT = "random-checkpoint"


def make_package(folder: Path) -> Path:
    """A package of every variant in `folder`, unless it is there."""
    checkpoint, package = folder / CHECKPOINT, folder / "random-package"
    if not (checkpoint / "config.json").exists():
        language = replace(PUBLISHED["0.5b"], is_tied=False)
        write_random_checkpoint(checkpoint, language, outlier_tokens=OUTLIERS)
    if not package.exists():
        export_package(checkpoint, package, precisions=CPU_VARIANTS)
    return package


def prompt_embeds(model: FastVLM, features: FloatArray) -> FloatArray:
    """inputs_embeds of the prompt, with the planted tokens spread over what follows the image."""
    ids = tokenize_prompt(model._tokenizer, model.manifest.prompt, PROMPT)
    after = list(ids.after_image)
    for i, token in enumerate(OUTLIERS):
        after.insert(1 + 2 * i, token)
    return model.embed_prompt(PromptIds(ids.before_image, after), features)


def answer(
    decoder: DecoderSession,
    embed_tokens: TokenEmbedding,
    inputs_embeds: FloatArray,
    steps: int,
    forced: Sequence[int] | None = None,
) -> tuple[FloatArray, list[int]]:
    """Logits [steps, vocab_size] along an answer, and its tokens: new greedy ones unless forced."""
    cache = decoder.new_cache(inputs_embeds.shape[1] + steps)
    row = prefill(decoder, inputs_embeds, cache)
    logits, tokens = np.empty((steps, len(row)), np.float32), list[int]()
    for step in range(steps):
        logits[step] = row
        row[tokens] = -np.inf
        tokens.append(int(row.argmax()) if forced is None else forced[step])
        if step + 1 < steps:
            row = decode_one_token(decoder, embed_tokens, tokens[-1], cache)
    return logits, tokens


def run(
    model: FastVLM, picture: str, steps: int, forced: Sequence[int] | None = None
) -> tuple[dict[str, FloatArray], list[int]]:
    """Each stage's array, by its name, and the answer's tokens."""
    hidden_states = model.run_vision_encoder(
        preprocess(read_picture(PICTURES / picture), model.image_size)
    )
    features = model.run_projector(hidden_states)
    inputs_embeds = prompt_embeds(model, features)
    logits, tokens = answer(model._decoder, model._embed_tokens, inputs_embeds, steps, forced)
    arrays = {IMAGE_HIDDEN_STATES: hidden_states, IMAGE_FEATURES: features, LOGITS: logits}
    return arrays, tokens


def compare(package: Path, steps: int, threads: int) -> tuple[dict[str, VariantAgreement], str]:
    """Every variant against fp32, and how flat fp32's own logits are."""
    manifest = read_manifest(package)
    exact = fastvlm_onnx.load(package, precision="fp32", providers="cpu", threads=threads)
    expected = {name: run(exact, name, steps) for name in NAMES}
    logits = np.concatenate([arrays[LOGITS] for arrays, _ in expected.values()])
    gap, spread = np.median(top_2_gap(logits)), logits.std()
    flatness = (
        f"median of the gap between its two largest logits {gap:.2f}, standard deviation of all "
        f"{spread:.2f}"
    )
    del exact, logits
    variants = {}
    for precision in list(manifest.variants)[1:]:
        print(precision, flush=True)
        model = fastvlm_onnx.load(package, precision=precision, providers="cpu", threads=threads)
        rows: dict[str, list[StageAgreement]] = {}
        prompts = []
        for name, (wanted, tokens) in expected.items():
            found, _ = run(model, name, steps, tokens)
            for stage, array in found.items():
                rows.setdefault(stage, []).append(compare_stage(stage, array, wanted[stage]))
            prompts.append(compare_answers(name, PROMPT, found[LOGITS], wanted[LOGITS]))
        variants[precision] = VariantAgreement(
            reference="fp32",
            runtime=f"ONNX Runtime {onnxruntime.__version__}",
            image_size=model.image_size,
            largest_activations={},
            stages=list(map(worst_of, rows.values())),
            prompts=prompts,
            tolerance=VARIANTS[precision].tolerance,
        )
    return variants, flatness


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="keeps checkpoint and package, and reuses them")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(args.work or Path(folder))
        variants, flatness = compare(package, args.steps, args.threads)
    text = f"""# Variants against fp32, random 0.5B with outlier tokens

{processor()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}; {len(NAMES)} pictures
of 1024 pixels, {args.steps} greedy tokens of fp32 forced on each; {len(OUTLIERS)} outlier tokens in
each prompt. fp32: {flatness}.

{summary_table(variants)}
"""
    (args.output / "quantisation-error.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
