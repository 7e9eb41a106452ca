"""A package against the PyTorch reference: the same pictures and prompts through both.

Stages are measured end to end: each side makes its own pixel_values and feeds its own stages, so
an error grows from stage to stage as it does in use. Only the decoder is led: at every step both
sides are fed the token that the reference chose, so one flipped token does not make all later
steps incomparable.

The reference holds the whole model in float32, and is gone before the first variant is opened.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import fastvlm_onnx
from fastvlm_onnx.agreement import (
    Agreement,
    PromptAgreement,
    StageAgreement,
    VariantAgreement,
)
from fastvlm_onnx.errors import CheckpointError, InputError
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.reference_run import Question, ReferenceRun, run_reference
from fastvlm_onnx.export.verification.tolerances import (
    TOLERANCES,
    compare_answers,
    compare_stage,
    worst_of,
)
from fastvlm_onnx.names import (
    IMAGE_FEATURES,
    IMAGE_HIDDEN_STATES,
    LOGITS,
    PIXEL_VALUES,
    TOKENIZER_FILE,
)
from fastvlm_onnx.package import Manifest, check_files, read_manifest
from fastvlm_onnx.runtime.loading import choose_image_size, choose_precision, load
from fastvlm_onnx.runtime.model import FastVLM
from fastvlm_onnx.runtime.ort.provider_selection import NOT_ON_CPU
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime
from fastvlm_onnx.runtime.text.prompt import PromptIds, room_for_answer, tokenize_prompt
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

FloatArray = NDArray[np.float32]

SAMPLE_PICTURES: Final = Path(fastvlm_onnx.__file__).parent / "demo" / "pictures"
DEFAULT_PROMPT: Final = "Describe the image."

Progress = Callable[[str, int, int], None]
"""Called with what is about to run, pictures and prompts done so far, and how many in all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The default: nobody is told."""


def verify_package(
    folder: str | Path,
    source: str | Path | Checkpoint,
    *,
    base: str | Path | None = None,
    pictures: Sequence[str | Path] | None = None,
    prompts: Sequence[str] | None = None,
    steps: int = 32,
    precisions: Sequence[str] | None = None,
    image_size: int | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Agreement:
    """Measure how far a package is from the checkpoint that it was exported from, on the CPU.

    Args:
        source: the checkpoint, opened or in any form that `open_checkpoint` knows.
        base: the checkpoint that a LoRA adapter was trained on.
        pictures: files; the built-in samples when None.
        prompts: each is asked about every picture. When None, the first question that belongs to
            a built-in sample, and "Describe the image." for any other picture.
        steps: tokens of each answer to compare; an answer that ends sooner is compared whole.
        precisions: variants to measure; all of the package when None.
        image_size: one the package was exported for; its default when None.
        threads: for PyTorch and for each graph; one per physical core when None.

    Raises:
        PackageError: the folder is no package, or a file of it is missing, cut or altered.
        CheckpointError: the checkpoint cannot be read, or the package is not made from it.
        InputError: the package lacks a precision or the image size; a picture, prompt or number
            cannot be used.
    """
    # 1. Everything that can be refused is refused before the minutes that the reference takes.
    folder = Path(folder)
    manifest = read_manifest(folder)
    ort = import_onnxruntime()
    for name, number in {"steps": steps, "threads": threads}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; expected 1 or more.")
    size = manifest.image.default_size if image_size is None else image_size
    chosen = list(dict.fromkeys(precisions or _on_cpu(manifest)))
    if not chosen:
        raise InputError(
            f"{folder}: holds {', '.join(manifest.variants)}, which the CPU cannot run, and "
            "nothing else is measured; run `fastvlm-onnx doctor DIR` on the machine that can."
        )
    for precision in chosen:
        choose_precision(manifest, precision, folder)
        choose_image_size(manifest, precision, size, folder)
        if precision not in TOLERANCES:
            raise InputError(
                f"{folder}: no tolerance is known for {precision}, only for "
                f"{', '.join(TOLERANCES)}; install a newer fastvlm-onnx, or name other variants."
            )
        check_files(folder, manifest.files_of(precision, size), manifest)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, base=base)
    _check_sizes(manifest, checkpoint)
    asked = _choose_questions(pictures, prompts)
    files = {file for file, _ in asked}
    for file in files:
        read_picture(file)
    questions = _prepare(asked, steps, size, folder, manifest, checkpoint)

    # 2. The reference, once for all variants.
    done, total = 0, (len(files) + len(questions)) * (1 + len(chosen))

    def tick(stage: str) -> None:
        nonlocal done
        progress(stage, done, total)
        done += 1

    progress("PyTorch, loading", 0, total)
    expected = run_reference(checkpoint, questions, size, threads, tick)

    # 3. The variants, one after the other.
    variants = {}
    for precision in chosen:
        stages, answers = _compare(
            load(folder, precision=precision, providers="cpu", image_size=size, threads=threads),
            questions,
            expected,
            tick,
        )
        variants[precision] = VariantAgreement(
            reference=expected.versions,
            runtime=f"ONNX Runtime {ort.__version__}",
            image_size=size,
            largest_activations=expected.largest_activations,
            stages=stages,
            prompts=answers,
            tolerance=TOLERANCES[precision],
        )
    progress("done", total, total)
    return Agreement(variants)


def _on_cpu(manifest: Manifest) -> list[str]:
    return [name for name in manifest.variants if name not in NOT_ON_CPU]


# --- what is asked -----------------------------------------------------------------------------


def _choose_questions(
    pictures: Sequence[str | Path] | None, prompts: Sequence[str] | None
) -> list[tuple[Path, str]]:
    samples: dict[str, dict[str, str]] = json.loads(
        (SAMPLE_PICTURES / "questions.json").read_text("utf-8")
    )
    first = {SAMPLE_PICTURES / name: next(iter(answers)) for name, answers in samples.items()}
    files = dict.fromkeys(map(Path, pictures)) if pictures else first
    return [
        (file, prompt)
        for file in files
        for prompt in dict.fromkeys(prompts or [first.get(file, DEFAULT_PROMPT)])
    ]


def _prepare(
    asked: Sequence[tuple[Path, str]],
    steps: int,
    image_size: int,
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
) -> list[Question]:
    """Tokenise as the package does and as the checkpoint does, which must agree."""
    tokenizer = TextTokenizer(folder / TOKENIZER_FILE)
    reference, template = Tokenizer.from_str(checkpoint.tokenizer), checkpoint.prompt
    questions = []
    for picture, prompt in asked:
        ids = tokenize_prompt(tokenizer, manifest.prompt, prompt)
        # As predict.py does: what stands before and after the image is one text each.
        texts = template.before_image, template.before_prompt + prompt + template.after_prompt
        before, after = (reference.encode(text, add_special_tokens=False).ids for text in texts)
        if (ids.before_image, ids.after_image) != (before, after):
            raise CheckpointError(
                f"{checkpoint.name}: makes other tokens of the prompt {prompt!r} than the package "
                "does; give the checkpoint that the package was exported from, and a prompt "
                "without special tokens, which a package takes as plain text."
            )
        image_tokens = (image_size // manifest.image.patch_size) ** 2
        room = room_for_answer(manifest.decoder.context_length, len(ids), image_tokens)
        questions.append(Question(picture, prompt, before, after, min(steps, room)))
    return questions


def _check_sizes(manifest: Manifest, checkpoint: Checkpoint) -> None:
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    ):
        found = getattr(checkpoint.config.decoder, name)
        expected = getattr(manifest.decoder, name)
        if found != expected:
            raise _foreign(manifest, checkpoint.name, name, found, expected)


def _foreign(
    manifest: Manifest, name: str, what: str, found: object, expected: object
) -> CheckpointError:
    return CheckpointError(
        f"{name}: {what} is {found}, and {expected} in the package, which was exported from "
        f"{manifest.source.name!r}; give the checkpoint that the package was exported from."
    )


# --- the package -------------------------------------------------------------------------------


def _compare(
    model: FastVLM,
    questions: Sequence[Question],
    expected: ReferenceRun,
    tick: Callable[[str], None],
) -> tuple[list[StageAgreement], list[PromptAgreement]]:
    """Run one variant; the rows of its two tables."""
    rows: dict[str, list[StageAgreement]] = {}

    def measure(stage: str, found: FloatArray, wanted: FloatArray) -> None:
        if found.shape != wanted.shape:
            shapes = list(wanted.shape), list(found.shape)
            raise _foreign(model.manifest, "the checkpoint", f"the shape of {stage}", *shapes)
        rows.setdefault(stage, []).append(compare_stage(stage, found, wanted))

    features = {}
    for picture, stages in expected.stages.items():
        tick(f"{model.precision}, {picture.name}")
        pixel_values = preprocess(read_picture(picture), model.image_size)
        hidden_states = model.run_vision_encoder(pixel_values)
        measure(PIXEL_VALUES, pixel_values, stages[PIXEL_VALUES])
        measure(IMAGE_HIDDEN_STATES, hidden_states, stages[IMAGE_HIDDEN_STATES])
        features[picture] = model.run_projector(hidden_states)
        measure(IMAGE_FEATURES, features[picture], stages[IMAGE_FEATURES])
    prompts = []
    for question, answer in zip(questions, expected.answers, strict=True):
        tick(f"{model.precision}, {question.prompt}")
        ids = PromptIds(question.before_image, question.after_image)
        inputs_embeds = model.embed_prompt(ids, features[question.picture])
        steps = model.logits_along(inputs_embeds, answer.token_ids)
        logits = np.stack([row.copy() for row in steps])
        measure(LOGITS, logits, answer.logits)
        prompts.append(
            compare_answers(question.picture.name, question.prompt, logits, answer.logits)
        )
    return list(map(worst_of, rows.values())), prompts
