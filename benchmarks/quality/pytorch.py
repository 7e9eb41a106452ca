"""transformers' Qwen2 in PyTorch, fp32: the truth that this project's fp32 must agree with."""

from collections.abc import Iterator

import torch
from quality.job import FloatArray, ForcedSequence, Job
from transformers import Qwen2ForCausalLM


def language_bytes(job: Job) -> int:
    """Return the size of the weights in float32; the checkpoint holds them in bfloat16."""
    return 2 * (job.language / "model.safetensors").stat().st_size


class PyTorchModel:
    """The language model on token ids."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._model = Qwen2ForCausalLM.from_pretrained(job.language, dtype=torch.float32).eval()

    @torch.inference_mode()
    def forced_logits(self, sequence: ForcedSequence) -> Iterator[FloatArray]:
        ids, cache = sequence.prompt_ids, None
        for token_id in sequence.forced:
            output = self._model(
                input_ids=torch.tensor([ids]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            yield output.logits[0, -1].numpy()
            ids, cache = [token_id], output.past_key_values


load = PyTorchModel
