"""OpenVINO on the CPU: vision in one infer request, a stateful language model in another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from peers.job import Job
from peers.measuring import FloatArray, Prompt

# precision of the way -> vision graph, language model, token embeddings
PARTS = {
    "fp32": ("fp32", "fp32", ("fp32",)),
    "bf16": ("fp32", "fp32", ("fp32",)),
    "int8": ("int8", "int8", ("int8", "scale")),
    "int4": ("int8", "int4", ("int8", "scale")),
}
# OpenVINO's defaults are bf16 if the processor has it, and keys and values in 16 bits.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
# A group size of 128 is faster in prefill and decode than 32 (the default) and 256.
COMPRESSED = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
OPTIONS = {"fp32": EXACT, "bf16": {}, "int8": COMPRESSED, "int4": COMPRESSED}


def precision_of(job: Job) -> str:
    return job.way.removeprefix("openvino-")


def paths(job: Job) -> tuple[Path, Path, list[Path]]:
    """Return the vision graph, the language model and the files of the token embeddings."""
    vision, language, embeddings = PARTS[precision_of(job)]
    return (
        job.openvino_vision / f"{vision}.xml",
        job.openvino_language / f"{language}.xml",
        [job.openvino_language / f"embed_tokens.{name}.npy" for name in embeddings],
    )


def files(job: Job) -> list[Path]:
    *graphs, embeddings = paths(job)
    return [*graphs, *(graph.with_suffix(".bin") for graph in graphs), *embeddings]


class OpenVINOModel:
    """OpenVINO at one precision. Keys and values stay inside OpenVINO.

    openvino-genai's pipeline on the same weights is no faster than this loop, and takes only token
    ids. Its paged attention caches prompts, so a repeated prompt would not measure a prefill.
    """

    takes_ids = False

    def __init__(
        self,
        vision: Path,
        language: Path,
        embeddings: Sequence[Path],
        options: Mapping[str, Any],
        threads: int,
    ) -> None:
        fixed = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **options}
        core = ov.Core()
        self._vision = core.compile_model(vision, "CPU", fixed).create_infer_request()
        self._language = core.compile_model(language, "CPU", fixed).create_infer_request()
        self._embed_tokens = [np.load(file, mmap_mode="r") for file in embeddings]

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        self._vision.infer([pixel_values], share_inputs=True)
        return self._vision.get_output_tensor(0).data

    def prefill(self, prompt: Prompt, image_features: FloatArray) -> int:
        self._language.reset_state()
        self._length = 0
        before, after = self._embed(prompt.before_image), self._embed(prompt.after_image)
        return self._run(np.concatenate([before, image_features[0], after])[None])

    def decode_one_token(self, token_id: int) -> int:
        return self._run(self._embed([token_id])[None])

    def first_logits(self) -> FloatArray:
        return self._language.get_output_tensor(0).data.ravel().copy()

    def _embed(self, token_ids: list[int]) -> FloatArray:
        rows: FloatArray = self._embed_tokens[0][token_ids].astype(np.float32)
        for scale in self._embed_tokens[1:]:
            rows *= scale[token_ids]
        return rows

    def _run(self, inputs_embeds: FloatArray) -> int:
        start, self._length = self._length, self._length + inputs_embeds.shape[1]
        self._language.infer(
            {
                "inputs_embeds": inputs_embeds,
                "attention_mask": np.ones((1, self._length), np.int64),
                "position_ids": np.arange(start, self._length)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
        )
        return int(self._language.get_output_tensor(0).data.argmax())


def load(job: Job) -> OpenVINOModel:
    return OpenVINOModel(*paths(job), OPTIONS[precision_of(job)], job.threads)
