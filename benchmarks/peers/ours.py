"""This project's package."""

import hashlib
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401  so that load times exclude this import
from peers.job import STEPS, Job
from peers.measuring import FloatArray, Prompt
from peers.ways import WAYS

import fastvlm_onnx
from fastvlm_onnx.names import VISION_ENCODER
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.variants import QDQ_TARGET

IMAGE_SIZES = (1024, 768, 512)
FINGERPRINT = "made-by.sha256"


def precision_of(way: str) -> str:
    """Return the variant of a way: `fast` of "ours-fast-openvino"."""
    return way.split("-")[1]


PRECISIONS = tuple(
    dict.fromkeys(precision_of(name) for name, way in WAYS.items() if way.module == "ours")
)


def convert(job: Job) -> None:
    """Export every variant, unless the package was made by the same source of the exporter."""
    # Imported here, so that the exporter does not count in the memory of a measurement.
    from fastvlm_onnx.export import pipeline

    digest = hashlib.sha256(repr(PRECISIONS).encode())
    for file in sorted(Path(pipeline.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    made_by = job.work / FINGERPRINT
    if job.package.exists() and made_by.exists() and made_by.read_text() == digest.hexdigest():
        return
    sizes = dict.fromkeys((*IMAGE_SIZES, job.image_size))
    pipeline.export_package(
        job.checkpoint,
        job.package,
        precisions=PRECISIONS,
        image_sizes=tuple(sizes),
        target=QDQ_TARGET,
        overwrite=True,
    )
    made_by.write_text(digest.hexdigest())


def files(job: Job) -> list[Path]:
    """Return the files that the variant reads at the job's image size."""
    manifest = read_manifest(job.package)
    providers = {VISION_ENCODER: "openvino"} if "openvino" in WAYS[job.way].providers else {}
    names = manifest.files_of(precision_of(job.way), job.image_size, providers)
    return [job.package / name for name in names]


class OurModel:
    """One variant, with greedy answers as `FastVLM.generate` runs them."""

    takes_ids = False

    def __init__(self, job: Job) -> None:
        self._model: Any = fastvlm_onnx.load(
            job.package,
            precision=precision_of(job.way),
            image_size=job.image_size,
            threads=job.threads,
            providers=WAYS[job.way].providers,
        )
        self.encode_image = self._model.image_encoder.encode_pixel_values

    def prefill(self, prompt: Prompt, image_features: FloatArray) -> int:
        model = self._model.language_model
        self._inputs_embeds = model.embed(
            [prompt.before_image, image_features[0], prompt.after_image]
        )
        self._cache = model.new_cache(self._inputs_embeds.shape[1] + STEPS)
        return int(model.prefill(self._inputs_embeds, self._cache, is_greedy=True).argmax())

    def decode_one_token(self, token_id: int) -> int:
        model = self._model.language_model
        return int(model.decode_one_step(token_id, self._cache, is_greedy=True).argmax())

    def first_logits(self) -> FloatArray:
        # A greedy answer computes the likeliest tokens' logits alone.
        model = self._model.language_model
        cache = model.new_cache(self._inputs_embeds.shape[1])
        logits: FloatArray = model.prefill(self._inputs_embeds, cache)
        return logits.copy()


load = OurModel
