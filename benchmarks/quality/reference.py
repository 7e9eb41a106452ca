"""fp32's answers: the tokens that every system is fed, and fp32's logits before each of them.

The logits are kept in a file of float32, since a KL divergence of 1e-6 would drown in float16.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import BinaryIO

import numpy as np
from quality.job import FloatArray, ForcedSequence, Job, read_sequences, write_sequences
from quality.prompts import Prompt, tokenize

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.package import read_manifest

# Tokens of a given text that are the prompt; the tokens that follow are forced.
TEXT_PROMPT = 8


@dataclass(frozen=True)
class Reference:
    """The results of fp32.

    Attributes:
        sequences: the answers, then the given texts.
        logits: the logits before each forced token of each sequence in turn, float32
            [steps, vocab_size]; a memory map.
    """

    sequences: list[ForcedSequence]
    logits: FloatArray

    def each(self) -> Iterator[tuple[ForcedSequence, FloatArray]]:
        """Yield each sequence with its logits, float32 [forced tokens, vocab_size]."""
        start = 0
        for sequence in self.sequences:
            end = start + len(sequence.forced)
            yield sequence, self.logits[start:end]
            start = end


def compute_reference(job: Job, prompts: Sequence[Prompt], steps: int) -> Reference:
    """Return fp32's answers to the prompts; from the work folder where they are there.

    Args:
        job: the places of the files; its package holds fp32.
        prompts: the prompts.
        steps: the largest number of tokens of an answer or of a given text.
    """
    manifest = read_manifest(job.package)
    decoder = manifest.variants["fp32"].decoder
    hashes = [manifest.files[name].sha256 for name in (decoder, *manifest.graphs[decoder].weights)]
    content = json.dumps([[asdict(prompt) for prompt in prompts], steps, hashes])
    key = hashlib.sha256(content.encode()).hexdigest()
    made_from, logits = job.work / "reference.sha256", job.work / "reference.logits.f32"
    if not made_from.exists() or made_from.read_text() != key:
        made_from.unlink(missing_ok=True)
        with fastvlm_onnx.load(
            job.package, precision="fp32", providers="cpu", threads=job.threads, lazy_vision=True
        ) as model:
            with logits.open("wb") as file:
                sequences = [*_answers(model, prompts, steps, file)]
                sequences += _texts(model, prompts, steps, file)
            features = {
                sequence.id: model.language_model.embed_tokens(sequence.image)
                for sequence in sequences
                if sequence.image
            }
        np.savez(job.image_features, **features)
        write_sequences(job.sequences, sequences)
        made_from.write_text(key)
    rows = np.memmap(logits, np.float32, mode="r").reshape(-1, manifest.decoder.vocab_size)
    return Reference(read_sequences(job.sequences), rows)


def _answers(
    model: FastVLM, prompts: Sequence[Prompt], steps: int, file: BinaryIO
) -> Iterator[ForcedSequence]:
    """Answer greedily up to an end token, which counts as a step, or `steps` tokens."""
    language_model = model.language_model
    for prompt in prompts:
        parts = tokenize(model, prompt)
        inputs_embeds = language_model.embed([part for part in parts if part])
        cache = language_model.new_cache(inputs_embeds.shape[1] + steps)
        row, forced = language_model.prefill(inputs_embeds, cache), list[int]()
        while True:
            file.write(row.data)
            forced.append(int(row.argmax()))
            if forced[-1] in language_model.sizes.eos_token_ids or len(forced) == steps:
                break
            row = language_model.decode_one_step(forced[-1], cache)
        yield ForcedSequence(prompt.id, "answer", *parts, forced)


def _texts(
    model: FastVLM, prompts: Sequence[Prompt], steps: int, file: BinaryIO
) -> Iterator[ForcedSequence]:
    """Read the texts that stand for images, as texts."""
    language_model = model.language_model
    for prompt in prompts:
        if prompt.image is None:
            continue
        ids = model.template.tokenizer.encode(prompt.image)[: TEXT_PROMPT + steps]
        start, forced = ids[:TEXT_PROMPT], ids[TEXT_PROMPT:]
        rows = language_model.teacher_forced_logits(language_model.embed([start]), forced)
        file.writelines(row.data for row in rows)
        yield ForcedSequence(prompt.id, "text", [], [], start, forced)
