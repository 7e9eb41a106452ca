"""LLaVA-OneVision-0.5B in PyTorch fp32: transformers' code, random weights of the true size.

Its language model is Qwen2-0.5B, as FastVLM's is, and gets the weights of the comparison's
checkpoint. A square picture of 1152 pixels becomes nine crops and an overview of 384 pixels.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peers.job import TOKENS_AFTER, TOKENS_BEFORE, Job
from peers.measuring import FloatArray, Prompt
from peers.pictures import draw_picture
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

PICTURE_SIZE, CROP_SIZE = 1152, 384


def build(job: Job) -> LlavaOnevisionModel:
    """Return the model with the published sizes, without its language model.

    The first call draws the weights and keeps them. Another version of transformers would draw
    others from the same seed.
    """
    text = AutoConfig.from_pretrained(job.language)
    config = LlavaOnevisionConfig(text_config=text, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlavaOnevisionModel(config)
    model.vision_tower = type(model.vision_tower)(config.vision_config)
    model.multi_modal_projector = type(model.multi_modal_projector)(config)
    model.image_newline = nn.Parameter(torch.randn(text.hidden_size) / text.hidden_size**0.5)
    del model.language_model
    weights = job.work / "onevision-vision.safetensors"
    if weights.exists():
        model.load_state_dict(load_file(weights))
    else:
        temporary = weights.with_suffix(".unfinished")
        save_file(model.state_dict(), temporary)
        temporary.rename(weights)
    return model.eval()


def crops(picture: FloatArray) -> torch.Tensor:
    """Return the overview and the crops, row by row: float32 [1, 10, 3, 384, 384], -1 to 1."""
    pixels = torch.from_numpy(picture) * 2 - 1
    overview = nn.functional.interpolate(pixels, (CROP_SIZE, CROP_SIZE), mode="area")
    side = PICTURE_SIZE // CROP_SIZE
    parts = pixels[0].unflatten(1, (side, CROP_SIZE)).unflatten(3, (side, CROP_SIZE))
    return torch.cat([overview, parts.permute(1, 3, 0, 2, 4).flatten(0, 1)])[None]


def convert(job: Job) -> None:
    """Draw the prompt, and compute its image features and first logits."""
    if job.prompt.exists():
        return
    model = EagerOneVision(job)
    rng = np.random.default_rng(0)
    before, after = (
        rng.integers(0, model.vocab_size - 3, count).tolist()
        for count in (TOKENS_BEFORE, TOKENS_AFTER)
    )
    pixel_values = crops(draw_picture(PICTURE_SIZE, seed=0)).numpy()
    prompt = Prompt(pixel_values, before, after, [])
    image_features = model.encode_image(pixel_values)
    model.prefill(prompt, image_features)
    temporary = job.prompt.with_suffix(".unfinished.npz")
    np.savez(
        temporary,
        pixel_values=pixel_values,
        before_image=before,
        after_image=after,
        token_ids=[],
        image_features=image_features.numpy(),
        logits_of_image=model.first_logits(),
    )
    temporary.rename(job.prompt)


def files(job: Job) -> list[Path]:
    return list(job.language.glob("*.safetensors"))


class EagerOneVision:
    """The published pipeline: crops, vision tower, projector, packing, language model."""

    takes_ids = False

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.parts = build(job)
        self._decoder = AutoModelForCausalLM.from_pretrained(job.language, dtype=torch.float32)
        self._embed_tokens = self._decoder.get_input_embeddings()
        self.vocab_size: int = self._decoder.config.vocab_size

    @torch.inference_mode()
    def encode_image(self, pixel_values: NDArray[np.float32]) -> torch.Tensor:
        """Return the packed image features, float32 [1, 7371, hidden_size]."""
        sizes = torch.tensor([[PICTURE_SIZE, PICTURE_SIZE]])
        output = self.parts.get_image_features(torch.from_numpy(pixel_values), sizes)
        (features,) = output.pooler_output
        return features[None]

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, image_features: torch.Tensor) -> int:
        before, after = (
            self._embed_tokens(torch.tensor([ids]))
            for ids in (prompt.before_image, prompt.after_image)
        )
        self._cache = None
        return self._run(torch.cat([before, image_features, after], dim=1))

    @torch.inference_mode()
    def decode_one_token(self, token_id: int) -> int:
        return self._run(self._embed_tokens(torch.tensor([[token_id]])))

    def _run(self, inputs_embeds: torch.Tensor) -> int:
        output = self._decoder(
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


load = EagerOneVision
