"""This project's package, through the runtime."""

from collections.abc import Iterator

import numpy as np
from quality.job import FloatArray, ForcedSequence, Job

import fastvlm_onnx
from fastvlm_onnx.package import read_manifest

PREFIX = "ours-"


def language_files(job: Job) -> list[str]:
    """Return the variant's files without vision: decoder and its parts, prefill, embeddings."""
    manifest = read_manifest(job.package)
    variant = manifest.variants[job.system.removeprefix(PREFIX)]
    graphs = set(variant.graph_files()) - {*variant.vision_encoder.values(), variant.projector}
    weights = {file for graph in graphs for file in manifest.graphs[graph].weights}
    needed = graphs | weights | set(variant.embedding_files)
    return [name for name in manifest.files if name in needed]


def language_bytes(job: Job) -> int:
    return sum((job.package / name).stat().st_size for name in language_files(job))


def package_bytes(job: Job) -> int:
    """Return the size of all files of the variant, vision included."""
    manifest = read_manifest(job.package)
    names = manifest.files_of(job.system.removeprefix(PREFIX), manifest.image.default_size)
    return sum(manifest.files[name].bytes for name in names)


class OurModel:
    """One variant. Rows of an image are fp32's, as a user may give features instead of an image."""

    def __init__(self, job: Job) -> None:
        self._model = fastvlm_onnx.load(
            job.package,
            precision=job.system.removeprefix(PREFIX),
            threads=job.threads,
            providers="cpu",
            lazy_vision=True,
        )
        self._features = np.load(job.image_features)

    def forced_logits(self, sequence: ForcedSequence) -> Iterator[FloatArray]:
        model = self._model.language_model
        image = self._features[sequence.id] if sequence.image else []
        parts = (sequence.before_image, image, sequence.after_image)
        inputs_embeds = model.embed([part for part in parts if len(part)])
        return model.teacher_forced_logits(inputs_embeds, sequence.forced)


load = OurModel
