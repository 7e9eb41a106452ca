"""The same question about many pictures: finding them, asking, and writing the answers down."""

from fastvlm_onnx.runtime.captions.asking import caption
from fastvlm_onnx.runtime.captions.pictures import find_pictures

__all__ = ["caption", "find_pictures"]
