"""The random checkpoint that every way runs, and its language model for the other runtimes."""

from peers.job import Job, unfinished
from peers.language_folder import write_language_folder
from random_checkpoint import PUBLISHED, LanguageSize, write_random_checkpoint

from fastvlm_onnx.export.architecture.tensor_names import VISION_PREFIX
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint

# For a functional test: the vision encoder of the built-in model, and a decoder of three layers.
QUICK = LanguageSize(256, 512, 3, 4, 2, 768, 739, is_tied=True)
QUICK_IMAGE_SIZE = 128


def convert(job: Job) -> None:
    """Write the checkpoint and the language folder. The work folder is named after the size."""
    if not job.checkpoint.exists():
        with unfinished(job.checkpoint) as folder:
            if job.work.name == "quick":
                vision = {
                    name.removeprefix(VISION_PREFIX): tensor.shape
                    for name, tensor in open_checkpoint("demo").tensors.items()
                    if name.startswith(VISION_PREFIX)
                }
                write_random_checkpoint(folder, QUICK, vision=vision, image_size=QUICK_IMAGE_SIZE)
            else:
                write_random_checkpoint(folder, PUBLISHED[job.work.name])
    if not job.language.exists():
        with unfinished(job.language) as folder:
            write_language_folder(job.checkpoint, folder)
