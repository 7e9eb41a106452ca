"""Error of each variant against fp32, at the 0.5B's true size and with outlier tokens.

    python benchmarks/quantisation_error.py -o docs/benchmarks    # about 10 minutes, 8 GB of disk

The fp32 package gives greedy answers of --steps tokens, and every variant is fed the same tokens.
No token repeats within an answer, since random weights would soon cycle through a dozen tokens.
fp32 replaces PyTorch, from which it differs by 2e-6 (`fastvlm-onnx verify`). PyTorch is not needed.
Every prompt holds tokens whose activations are a thousand times larger than the others'. lm_head is
not tied to the embeddings, unlike in the published 0.5B. With tied weights, the outlier
tokens would be chosen at every step.
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
from fastvlm_onnx.export.verification.metrics import (
    kl_divergences,
    summarise_divergences,
    top_2_gap,
)
from fastvlm_onnx.names import IMAGE_FEATURES, IMAGE_HIDDEN_STATES, LOGITS
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.runtime.text.prompt import question
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.variants import CPU_VARIANTS, VARIANTS

FloatArray = NDArray[np.float32]

PICTURES = Path(fastvlm_onnx.__file__).parent / "demo/pictures"
NAMES = ("shapes.png", "word.png")
PROMPT = "Describe the image."
# Token ids that no prompt contains. They are inserted between the prompt's tokens.
OUTLIERS = (1000, 1001, 1002, 1003)
CHECKPOINT = "random-checkpoint"


def make_package(folder: Path) -> Path:
    """Write a package with every variant into `folder`, unless it is there, and return its path."""
    checkpoint, package = folder / CHECKPOINT, folder / "random-package"
    if not (checkpoint / "config.json").exists():
        language = replace(PUBLISHED["0.5b"], is_tied=False)
        write_random_checkpoint(checkpoint, language, outlier_tokens=OUTLIERS)
    if not package.exists():
        export_package(checkpoint, package, precisions=CPU_VARIANTS)
    return package


def prompt_embeds(model: FastVLM, features: FloatArray) -> FloatArray:
    """Return inputs_embeds of the prompt, with outlier tokens among the tokens after the image."""
    before, _, after = model.template.prompt(question(PROMPT, num_images=1))
    for i, token in enumerate(OUTLIERS):
        after.insert(1 + 2 * i, token)
    return model.language_model.embed([before, features[0], after])


def answer(
    model: LanguageModel,
    inputs_embeds: FloatArray,
    steps: int,
    forced: Sequence[int] | None = None,
) -> tuple[FloatArray, list[int]]:
    """Return the logits [steps, vocab_size] and the tokens of an answer, greedy unless forced."""
    cache = model.new_cache(inputs_embeds.shape[1] + steps)
    row = model.prefill(inputs_embeds, cache)
    logits, tokens = np.empty((steps, len(row)), np.float32), list[int]()
    for step in range(steps):
        logits[step] = row
        row[tokens] = -np.inf
        tokens.append(int(row.argmax()) if forced is None else forced[step])
        if step + 1 < steps:
            row = model.decode_one_step(tokens[-1], cache)
    return logits, tokens


def run(
    model: FastVLM, picture: str, steps: int, forced: Sequence[int] | None = None
) -> tuple[dict[str, FloatArray], list[int]]:
    """Return the array of each stage by name, and the tokens of the answer."""
    hidden_states = model.image_encoder.run_vision_encoder(
        preprocess(read_picture(PICTURES / picture), model.image_size)
    )
    features = model.image_encoder.run_projector(hidden_states)
    inputs_embeds = prompt_embeds(model, features)
    logits, tokens = answer(model.language_model, inputs_embeds, steps, forced)
    arrays = {IMAGE_HIDDEN_STATES: hidden_states, IMAGE_FEATURES: features, LOGITS: logits}
    return arrays, tokens


def compare(package: Path, steps: int, threads: int) -> tuple[dict[str, VariantAgreement], str]:
    """Compare every variant with fp32, and describe how flat fp32's logits are."""
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
        prompts, divergences = [], []
        for name, (wanted, tokens) in expected.items():
            found, _ = run(model, name, steps, tokens)
            for stage, array in found.items():
                rows.setdefault(stage, []).append(compare_stage(stage, array, wanted[stage]))
            divergences.append(kl_divergences(found[LOGITS], wanted[LOGITS]))
            prompts.append(
                compare_answers(name, PROMPT, found[LOGITS], wanted[LOGITS], divergences[-1])
            )
        variants[precision] = VariantAgreement(
            reference="fp32",
            runtime=f"ONNX Runtime {onnxruntime.__version__}",
            image_size=model.image_size,
            largest_activations={},
            stages=list(map(worst_of, rows.values())),
            prompts=prompts,
            tolerance=VARIANTS[precision].tolerance,
            kl_divergence_99=summarise_divergences(np.concatenate(divergences)).percentile_99,
        )
    return variants, flatness


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder to keep for the next run")
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

{processor()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}; {len(NAMES)} images
of 1024 pixels, each with {args.steps} greedy tokens of fp32, which every variant is fed;
{len(OUTLIERS)} outlier tokens in each prompt. fp32: {flatness}.

{summary_table(variants)}
"""
    (args.output / "quantisation-error.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
