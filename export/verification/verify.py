"""Compare a package with the PyTorch reference on the same pictures and prompts.

Each side makes its own pixel_values and feeds its own stages, so an error grows from stage to
stage as it does in use. Only the decoder is forced: at every step both sides are fed the token that
the reference chose, so that one other token does not make all later steps incomparable.

The reference holds the whole model in float32, and is released before the first variant is opened.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastvlm_onnx.agreement import (
    Agreement,
    StageAgreement,
    VariantAgreement,
)
from fastvlm_onnx.deprecation import renamed
from fastvlm_onnx.errors import CheckpointError, InputError
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.comparison import compare_answers, compare_stage, worst_of
from fastvlm_onnx.export.verification.metrics import kl_divergences, summarise_divergences
from fastvlm_onnx.export.verification.reference_run import Question, ReferenceRun, run_reference
from fastvlm_onnx.names import (
    IMAGE_FEATURES,
    IMAGE_HIDDEN_STATES,
    LOGITS,
    PIXEL_VALUES,
    TOKENIZER_FILE,
)
from fastvlm_onnx.package import Manifest, read_manifest
from fastvlm_onnx.package_files import check_files
from fastvlm_onnx.runtime.loading import (
    check_onnxruntime,
    choose_image_size,
    choose_variant,
    load,
)
from fastvlm_onnx.runtime.model import FastVLM
from fastvlm_onnx.runtime.ort.hardware import processor, processor_features
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime
from fastvlm_onnx.runtime.text.prompt import (
    ImagePlace,
    PromptTemplate,
    question,
    room_for_answer,
)
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.samples import SAMPLE_PICTURES, SAMPLE_QUESTIONS
from fastvlm_onnx.variants import VARIANTS, variants_without_cpu

FloatArray = NDArray[np.float32]

DEFAULT_PROMPT: Final = "Describe the image."
COMPARED_SIZES: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)

Progress = Callable[[str, int, int], None]
"""Called with the next step, the pictures and prompts done so far, and their number in all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore the progress, by default."""


@renamed(pictures="images")
def verify_package(
    folder: str | Path,
    source: str | Path | Checkpoint,
    *,
    base: str | Path | None = None,
    images: Sequence[str | Path] | None = None,
    prompts: Sequence[str] | None = None,
    steps: int = 32,
    precisions: Sequence[str] | None = None,
    image_size: int | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    download_progress: Progress = no_progress,
) -> Agreement:
    """Measure on the CPU how far a package is from the checkpoint that it was exported from.

    Args:
        folder: the package's folder.
        source: the checkpoint, opened or in any form that `open_checkpoint` knows.
        base: the checkpoint that a LoRA adapter was trained on.
        images: files of images; the built-in samples when None.
        prompts: prompts for every image. When None, a built-in sample has its own first
            question, and any other image has "Describe the image.".
        steps: the largest number of tokens of each answer to compare.
        precisions: names of the variants to measure; all variants that the CPU can run when None.
        image_size: an image size of the package in pixels; the default size when None.
        threads: threads of PyTorch and of each graph; one per physical core when None.
        progress: is called with the comparison's steps; see `Progress`.
        download_progress: is called with the bytes of a checkpoint that is downloaded or unpacked.

    Raises:
        PackageError: the folder is no package, or a file of it is missing, cut or altered.
        CheckpointError: the checkpoint cannot be read, or the package is not made from it.
        InputError: the package lacks a variant or the image size; the CPU cannot run a variant;
            or a picture, a prompt or a number cannot be used.
        ProviderError: ONNX Runtime is missing or too old for a variant.
    """
    # 1. Refuse everything that can be refused before the minutes that the reference takes.
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, number in {"steps": steps, "threads": threads}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; expected 1 or more.")
    size = manifest.image.default_size if image_size is None else image_size
    chosen = _choose_variants(manifest, precisions, size, folder)
    if isinstance(source, Checkpoint):
        checkpoint = source
    else:
        checkpoint = open_checkpoint(source, base=base, progress=download_progress)
    _check_sizes(manifest, checkpoint)
    questions = _choose_questions(images, prompts)
    tokenized = _tokenize(questions, steps, size, folder, manifest, checkpoint)
    counter = _Progress(progress, tokenized, runs=1 + len(chosen))

    # 2. Run the reference, once for all variants.
    progress("PyTorch, loading", 0, counter.total)
    expected = run_reference(checkpoint, tokenized, size, threads, counter.tick)

    # 3. Run the variants, one after the other.
    variants = {}
    for name in chosen:
        # No name holds the model, so that it is released before the next variant is opened.
        variants[name] = _compare(
            load(folder, precision=name, providers="cpu", image_size=size, threads=threads),
            tokenized,
            expected,
            counter.tick,
        )
    progress("done", counter.total, counter.total)
    return Agreement(variants)


@dataclass
class _Progress:
    """Counts the pictures and prompts of all runs."""

    report: Progress
    questions: Sequence[Question]
    runs: int
    done: int = 0

    @property
    def total(self) -> int:
        pictures = {question.picture for question in self.questions}
        return (len(pictures) + len(self.questions)) * self.runs

    def tick(self, stage: str) -> None:
        self.report(stage, self.done, self.total)
        self.done += 1


# --- what is refused -----------------------------------------------------------------------------


def _choose_variants(
    manifest: Manifest, asked: Sequence[str] | None, image_size: int, folder: Path
) -> list[str]:
    """Return the names of the variants to measure, which the CPU can run and whose files are whole.

    Raises:
        InputError: the package lacks a variant or the image size, or the CPU cannot run a variant.
        PackageError: a file is missing, cut or altered.
        ProviderError: ONNX Runtime is too old for a variant.
    """
    on_cpu = [name for name in manifest.variants if name not in variants_without_cpu()]
    chosen = list(dict.fromkeys(asked or on_cpu))
    if not chosen:
        raise InputError(
            f"{folder}: holds {', '.join(manifest.variants)}, which the CPU cannot run, and "
            "nothing else is measured; run `fastvlm-onnx doctor DIR` on the machine that can."
        )
    for name in chosen:
        choose_variant(manifest, name, folder)
        choose_image_size(manifest, name, image_size, folder)
        if name not in VARIANTS:
            raise InputError(
                f"{folder}: no tolerance is known for {name}, only for "
                f"{', '.join(VARIANTS)}; install a newer fastvlm-onnx, or name other variants."
            )
        if name not in on_cpu:
            raise InputError(
                f"{folder}: the CPU cannot run {name}, and verify runs on the CPU; name other "
                f"variants ({', '.join(on_cpu) or 'the package has no others'}), or run "
                "`fastvlm-onnx doctor DIR` on a machine that can."
            )
        check_onnxruntime(manifest, name, folder)
        check_files(folder, manifest.files_of(name, image_size), manifest)
    return chosen


def _check_sizes(manifest: Manifest, checkpoint: Checkpoint) -> None:
    for name in COMPARED_SIZES:
        found = getattr(checkpoint.config.decoder, name)
        expected = getattr(manifest.decoder, name)
        if found != expected:
            raise _foreign(manifest, checkpoint.name, name, found, expected)


def _foreign(
    manifest: Manifest, name: str, quantity: str, found: object, expected: object
) -> CheckpointError:
    return CheckpointError(
        f"{name}: {quantity} is {found}, and {expected} in the package, which was exported from "
        f"{manifest.source.name!r}; give the checkpoint that the package was exported from."
    )


# --- pictures and prompts ------------------------------------------------------------------------


def _choose_questions(
    pictures: Sequence[str | Path] | None, prompts: Sequence[str] | None
) -> list[tuple[Path, str]]:
    """Return every picture with each of its prompts.

    Raises:
        InputError: a picture cannot be read.
    """
    samples: dict[str, dict[str, str]] = json.loads(SAMPLE_QUESTIONS.read_text("utf-8"))
    first = {SAMPLE_PICTURES / name: next(iter(answers)) for name, answers in samples.items()}
    files = dict.fromkeys(map(Path, pictures)) if pictures else first
    for file in files:
        read_picture(file)
    return [
        (file, prompt)
        for file in files
        for prompt in dict.fromkeys(prompts or [first.get(file, DEFAULT_PROMPT)])
    ]


def _tokenize(
    asked: Sequence[tuple[Path, str]],
    steps: int,
    image_size: int,
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
) -> list[Question]:
    """Tokenise the prompts as the package does, and check that the checkpoint agrees.

    Raises:
        CheckpointError: the checkpoint makes other tokens of a prompt.
        InputError: a prompt cannot be used, or leaves no room for an answer.
    """
    tokenizer = TextTokenizer(folder / TOKENIZER_FILE)
    reference, template = Tokenizer.from_str(checkpoint.tokenizer), checkpoint.prompt
    questions = []
    for picture, prompt in asked:
        parts = PromptTemplate(tokenizer, manifest.prompt).prompt(question(prompt, num_images=1))
        # As in predict.py: one text before the image, and one text after it.
        texts = template.before_image, template.before_prompt + prompt + template.after_prompt
        before, after = (reference.encode(text, add_special_tokens=False).ids for text in texts)
        if parts != [before, ImagePlace(0), after]:
            raise CheckpointError(
                f"{checkpoint.name}: makes other tokens of the prompt {prompt!r} than the package "
                "does; give the checkpoint that the package was exported from, and a prompt "
                "without special tokens, which a package takes as plain text."
            )
        image_tokens = (image_size // manifest.image.patch_size) ** 2
        room = room_for_answer(manifest.decoder.context_length, parts, image_tokens)
        questions.append(Question(picture, prompt, before, after, min(steps, room)))
    return questions


# --- the package -------------------------------------------------------------------------------


def _compare(
    model: FastVLM,
    questions: Sequence[Question],
    expected: ReferenceRun,
    tick: Callable[[str], None],
) -> VariantAgreement:
    """Run one variant and compare it with the reference."""
    stages: dict[str, list[StageAgreement]] = {}

    def measure(stage: str, found: FloatArray, wanted: FloatArray) -> None:
        if found.shape != wanted.shape:
            shapes = list(wanted.shape), list(found.shape)
            raise _foreign(model.manifest, "the checkpoint", f"the shape of {stage}", *shapes)
        stages.setdefault(stage, []).append(compare_stage(stage, found, wanted))

    features = {}
    for picture, arrays in expected.stages.items():
        tick(f"{model.precision}, {picture.name}")
        features[picture] = _compare_picture(model, picture, arrays, measure)
    prompts, divergences = [], []
    for asked, answer in zip(questions, expected.answers, strict=True):
        tick(f"{model.precision}, {asked.prompt}")
        logits = _forced_logits(model, asked, features[asked.picture], answer.token_ids)
        measure(LOGITS, logits, answer.logits)
        divergences.append(kl_divergences(logits, answer.logits))
        prompts.append(
            compare_answers(
                asked.picture.name, asked.prompt, logits, answer.logits, divergences[-1]
            )
        )
    version = import_onnxruntime().__version__
    return VariantAgreement(
        reference=expected.versions,
        runtime=f"ONNX Runtime {version}",
        image_size=model.image_size,
        largest_activations=expected.largest_activations,
        stages=list(map(worst_of, stages.values())),
        prompts=prompts,
        tolerance=VARIANTS[model.precision].tolerance,
        processor=processor(),
        processor_features=processor_features(),
        onnxruntime=version,
        kl_divergence_99=summarise_divergences(np.concatenate(divergences)).percentile_99,
    )


def _compare_picture(
    model: FastVLM,
    picture: Path,
    expected: Mapping[str, FloatArray],
    measure: Callable[[str, FloatArray, FloatArray], None],
) -> FloatArray:
    """Compare the stages of a picture, and return its image_features."""
    pixel_values = preprocess(read_picture(picture), model.image_size)
    hidden_states = model.image_encoder.run_vision_encoder(pixel_values)
    measure(PIXEL_VALUES, pixel_values, expected[PIXEL_VALUES])
    measure(IMAGE_HIDDEN_STATES, hidden_states, expected[IMAGE_HIDDEN_STATES])
    features = model.image_encoder.run_projector(hidden_states)
    measure(IMAGE_FEATURES, features, expected[IMAGE_FEATURES])
    return features


def _forced_logits(
    model: FastVLM, asked: Question, features: FloatArray, token_ids: Sequence[int]
) -> FloatArray:
    """Return the package's logits along the reference's answer, float32 [steps, vocab_size]."""
    language_model = model.language_model
    inputs_embeds = language_model.embed([asked.before_image, features[0], asked.after_image])
    steps = language_model.teacher_forced_logits(inputs_embeds, token_ids)
    return np.stack([row.copy() for row in steps])
