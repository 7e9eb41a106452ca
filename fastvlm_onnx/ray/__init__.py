"""Captions on many machines, with Ray Data: `Captioner` for `map_batches`, and a job over files.

    from fastvlm_onnx.ray import Captioner

    captions = pictures.map_batches(
        Captioner,
        fn_constructor_kwargs={"package": "/shared/fastvlm-onnx", "prompt": "Describe the image."},
        batch_size=64,
        num_cpus=4,
    )

Needs the extra `[ray]`.
"""

from fastvlm_onnx.ray.captioner import Captioner
from fastvlm_onnx.runtime.captions.prompts import PromptTemplate

__all__ = ["Captioner", "PromptTemplate"]
