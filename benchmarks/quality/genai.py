"""onnxruntime-genai's int4 decoders, on token ids."""

import json
from collections.abc import Iterator

import numpy as np
import onnxruntime_genai as og
from peers.genai import build_decoder
from peers.job import unfinished
from quality.job import FloatArray, ForcedSequence, Job, read_sequences

# Options of the model builder. Its own default is blocks of 32, rounded to nearest.
OPTIONS = {
    "genai-int4-32": ["block_size=32"],
    "genai-int4-128": ["block_size=128"],
    "genai-k-quant-mixed": ["algo_config=k_quant_mixed"],
}


def convert(job: Job) -> None:
    if not job.genai.exists():
        with unfinished(job.genai) as folder:
            build_decoder(job.language, folder, OPTIONS[job.system])


def language_bytes(job: Job) -> int:
    return sum(file.stat().st_size for file in job.genai.glob("model.onnx*"))


class GenaiModel:
    def __init__(self, job: Job) -> None:
        config = og.Config(str(job.genai))
        threads = {"intra_op_num_threads": job.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._model = og.Model(config)
        sequences = read_sequences(job.sequences)
        self._capacity = max(len(found.prompt_ids) + len(found.forced) for found in sequences)

    def forced_logits(self, sequence: ForcedSequence) -> Iterator[FloatArray]:
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._capacity, do_sample=False)
        generator = og.Generator(self._model, parameters)
        ids = sequence.prompt_ids
        for token_id in sequence.forced:
            generator.append_tokens(np.array(ids, np.int32))
            # The last position's, whether the graph keeps the others or not.
            yield generator.get_logits()[0, -1]
            ids = [token_id]


load = GenaiModel
