"""OpenVINO's stateful language model on the CPU."""

from collections.abc import Iterator

import numpy as np
import openvino as ov
from peers.openvino_model import COMPRESSED
from quality.job import FloatArray, ForcedSequence, Job

# The embeddings stay outside the graph, since a vision language model feeds inputs_embeds.
EMBEDDINGS = ("embed_tokens.int8.npy", "embed_tokens.scale.npy")


def language_bytes(job: Job) -> int:
    graph = job.openvino / f"{job.system}.xml"
    files = (graph, graph.with_suffix(".bin"), *(job.openvino / name for name in EMBEDDINGS))
    return sum(file.stat().st_size for file in files)


class OpenVINOModel:
    """Rows of an image are fp32's, as in this project."""

    def __init__(self, job: Job) -> None:
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
        graph = job.openvino / f"{job.system}.xml"
        self._request = (
            ov.Core().compile_model(graph, "CPU", options | COMPRESSED).create_infer_request()
        )
        self._rows, self._scales = (
            np.load(job.openvino / name, mmap_mode="r") for name in EMBEDDINGS
        )
        self._features = np.load(job.image_features)

    def forced_logits(self, sequence: ForcedSequence) -> Iterator[FloatArray]:
        image = self._features[sequence.id] if sequence.image else self._embed([])
        embeds = np.concatenate(
            [self._embed(sequence.before_image), image, self._embed(sequence.after_image)]
        )
        self._request.reset_state()
        length = 0
        for token_id in sequence.forced:
            start, length = length, length + len(embeds)
            self._request.infer(
                {
                    "inputs_embeds": embeds[None],
                    "attention_mask": np.ones((1, length), np.int64),
                    "position_ids": np.arange(start, length)[None],
                    "beam_idx": np.zeros(1, np.int32),
                },
                share_inputs=True,
            )
            yield self._request.get_output_tensor(0).data.ravel()
            embeds = self._embed([token_id])

    def _embed(self, token_ids: list[int]) -> FloatArray:
        ids = np.array(token_ids, np.int64)
        rows: FloatArray = self._rows[ids].astype(np.float32) * self._scales[ids]
        return rows


load = OpenVINOModel
