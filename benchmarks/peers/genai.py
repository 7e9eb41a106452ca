"""onnxruntime-genai's int4 decoder on token ids, with this project's fp32 vision graphs.

Public ONNX files of similar models have the same form: fp32 vision, int4 language model.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_genai as og
from peers.job import STEPS, Job, unfinished
from peers.measuring import FloatArray, Prompt

# Options of the model builder: its default block size, the fastest block size, and the fastest with
# lm_head in int8 as in this project. (matmul_mixed_precision makes a model that does not load.)
OPTIONS = {
    "onnxruntime-genai-int4": ["block_size=32"],
    "onnxruntime-genai-int4-128": ["block_size=128"],
    "onnxruntime-genai-int4-128-head8": ["block_size=128", "algo_config=rtn_last"],
}


def convert(job: Job) -> None:
    """Run the model builder."""
    for way, options in OPTIONS.items():
        if not job.genai(way).exists():
            with unfinished(job.genai(way)) as folder:
                build_decoder(job.language, folder, options)


def build_decoder(language: Path, folder: Path, options: Sequence[str]) -> None:
    """Run the model builder on a language model in transformers' layout.

    Raises:
        CalledProcessError: the builder failed.
    """
    # The input is a local folder, so the builder downloads nothing.
    source = ["-m", str(language), "-i", str(language)]
    target = ["-o", str(folder), "-c", str(folder / "cache"), "-p", "int4", "-e", "cpu"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    extra = ["--extra_options", "prune_lm_head=true", *options]
    subprocess.run([*builder, *source, *target, *extra], check=True)


def graphs_of(job: Job) -> list[Path]:
    """Vision encoder and projector."""
    return [
        job.package / f"vision_encoder.{job.image_size}.fp32.onnx",
        job.package / "projector.fp32.onnx",
    ]


def files(job: Job) -> list[Path]:
    weights = [job.package / f"{name}.fp32.onnx.data" for name in ("vision_encoder", "projector")]
    return [*graphs_of(job), *weights, *job.genai(job.way).glob("model.onnx*")]


class GenaiModel:
    """A model that takes token ids, so its prefill includes the embedding lookup of the prompt."""

    takes_ids = True

    def __init__(self, job: Job) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        # Idle threads of these sessions would spin on a core that the decoder needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._graphs = [
            onnxruntime.InferenceSession(str(graph), options) for graph in graphs_of(job)
        ]
        config = og.Config(str(job.genai(job.way)))
        threads = {"intra_op_num_threads": job.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._model = og.Model(config)
        self._capacity = job.prompt_tokens + STEPS + 1

    def encode_image(self, pixel_values: FloatArray) -> FloatArray:
        array = pixel_values
        for graph in self._graphs:
            array = graph.run(None, {graph.get_inputs()[0].name: array})[0]
        return array

    def prefill(self, prompt: Prompt, image_features: FloatArray) -> int:  # noqa: ARG002
        parameters = og.GeneratorParams(self._model)
        # min_length prevents an end token, since steps after an end token cost nothing.
        parameters.set_search_options(
            min_length=self._capacity, max_length=self._capacity, do_sample=False
        )
        self._generator = og.Generator(self._model, parameters)
        self._generator.append_tokens(np.array(prompt.token_ids, np.int32))
        self._logits: FloatArray = self._generator.get_logits().ravel()
        return self._next()

    def decode_one_token(self, token_id: int) -> int:  # noqa: ARG002
        return self._next()

    def first_logits(self) -> FloatArray:
        return self._logits

    def _next(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])


load = GenaiModel
