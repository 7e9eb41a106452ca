"""LLaVA-OneVision-0.5B on OpenVINO: vision from PyTorch's trace, the int4 language model.

The vision graph holds crops to packed image features. It runs at OpenVINO's defaults: bf16 if the
processor has it. The language model is the compressed graph of the other OpenVINO ways.
"""

from pathlib import Path

import numpy as np
import openvino as ov
import torch
from peers.job import Job, unfinished
from peers.onevision import CROP_SIZE, PICTURE_SIZE, build
from peers.openvino_model import COMPRESSED, OpenVINOModel
from torch import Tensor, nn

GRID, PATCH_SIZE = PICTURE_SIZE // CROP_SIZE, 14


class ImageFeatures(nn.Module):
    """Crops in, packed image features out: `get_image_features` for a square, in a form to trace.

    transformers' packing rounds sizes, which a trace cannot follow.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.parts = build(job)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.parts.vision_tower(pixel_values[0], output_hidden_states=True).hidden_states
        overview, crops = self.parts.multi_modal_projector(states[-1]).split([1, GRID**2])
        tokens = CROP_SIZE // PATCH_SIZE
        rows = crops.reshape(GRID, GRID, tokens, tokens, -1).transpose(1, 2)
        rows = rows.reshape(GRID * tokens, GRID * tokens, -1)
        newline = self.parts.image_newline.expand(GRID * tokens, 1, -1)
        return torch.cat([overview[0], torch.cat([rows, newline], 1).flatten(0, 1)])[None]


def convert(job: Job) -> None:
    """Convert the vision tower, projector and packing. `openvino_graphs` converts the rest."""
    if job.openvino_vision.exists():
        return
    with np.load(job.prompt) as arrays:
        pixel_values = torch.from_numpy(arrays["pixel_values"])
    with unfinished(job.openvino_vision) as folder, torch.inference_mode():
        model = ov.convert_model(
            ImageFeatures(job), example_input=pixel_values, input=[list(pixel_values.shape)]
        )
        ov.save_model(model, folder / "fp32.xml", compress_to_fp16=False)


def paths(job: Job) -> tuple[Path, Path, list[Path]]:
    """Return the vision graph, the language model and the files of the token embeddings."""
    embeddings = [job.openvino_language / f"embed_tokens.{name}.npy" for name in ("int8", "scale")]
    return job.openvino_vision / "fp32.xml", job.openvino_language / "int4.xml", embeddings


def files(job: Job) -> list[Path]:
    vision, language, embeddings = paths(job)
    return [*(f.with_suffix(s) for f in (vision, language) for s in (".xml", ".bin")), *embeddings]


def load(job: Job) -> OpenVINOModel:
    return OpenVINOModel(*paths(job), COMPRESSED, job.threads)
