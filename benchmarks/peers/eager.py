"""PyTorch eager in fp32, as the model's authors run it. Every way is compared with it."""

from pathlib import Path

import numpy as np
import torch
from peers.job import TOKENS_AFTER, TOKENS_BEFORE, Job
from peers.measuring import FloatArray, Prompt
from peers.pictures import draw_picture

from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM


def convert(job: Job) -> None:
    """Draw the prompt, and compute the expected image features and logits of every way."""
    if job.prompt.exists():
        return
    model = EagerModel(job)
    rng = np.random.default_rng(0)
    counts = (TOKENS_BEFORE, TOKENS_AFTER, job.prompt_tokens)
    vocab_size = model.reference.config.decoder.vocab_size
    # Ordinary tokens only: the special tokens are the last three of the vocabulary.
    before, after, ids = (rng.integers(0, vocab_size - 3, count).tolist() for count in counts)
    prompt = Prompt(draw_picture(job.image_size, seed=0), before, after, ids)
    image_features = model.encode_image(prompt.pixel_values)
    model.prefill(prompt, image_features)
    of_image = model.first_logits()
    with torch.inference_mode():
        embeds = model.reference.embed_tokens(torch.tensor([ids]))
        of_ids = model.reference.decoder(inputs_embeds=embeds, logits_to_keep=1).logits[0, 0]
    temporary = job.prompt.with_suffix(".unfinished.npz")
    np.savez(
        temporary,
        pixel_values=prompt.pixel_values,
        before_image=before,
        after_image=after,
        token_ids=ids,
        image_features=image_features.numpy(),
        logits_of_image=of_image,
        logits_of_ids=of_ids.numpy(),
    )
    temporary.rename(job.prompt)


def files(job: Job) -> list[Path]:
    return list(job.checkpoint.glob("*.safetensors"))


class EagerModel:
    takes_ids = False

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        checkpoint = open_checkpoint(job.checkpoint)
        self.reference = ReferenceFastVLM(checkpoint.config)
        self.reference.load_checkpoint(
            {
                # torch needs writable memory, and a mapped file is read-only.
                name: torch.from_numpy(np.require(tensor.read(), requirements=["C", "W"]))
                for name, tensor in checkpoint.tensors.items()
            }
        )

    def encode_image(self, pixel_values: FloatArray) -> torch.Tensor:
        return self.reference.encode_image(torch.from_numpy(pixel_values))

    def prefill(self, prompt: Prompt, image_features: torch.Tensor) -> int:
        before, after = (
            self.reference.embed_tokens(torch.tensor([ids]))
            for ids in (prompt.before_image, prompt.after_image)
        )
        self._cache = None
        return self._run(torch.cat([before, image_features, after], dim=1))

    def decode_one_token(self, token_id: int) -> int:
        return self._run(self.reference.embed_tokens(torch.tensor([[token_id]])))

    @torch.inference_mode()
    def _run(self, inputs_embeds: torch.Tensor) -> int:
        output = self.reference.decoder(
            inputs_embeds=inputs_embeds,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        self._logits = output.logits[0, 0]
        return int(self._logits.argmax())

    def first_logits(self) -> FloatArray:
        return self._logits.numpy().copy()


load = EagerModel
