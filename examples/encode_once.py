"""An image encoded once, kept in a file, and asked about many times.

Run it as: python examples/encode_once.py PACKAGE IMAGE QUESTION...
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import fastvlm_onnx


def main() -> None:
    package, image, *questions = sys.argv[1:]
    with fastvlm_onnx.load(package) as model, tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "features.npy"
        np.save(kept, model.encode_image(image).array)

        features = fastvlm_onnx.ImageFeatures(np.load(kept), model.image_size)
        for question in questions:
            print(model.generate(features, question).text)
        # Or all at once.
        for answer in model.generate_batch([features] * len(questions), questions):
            print(answer.text)


if __name__ == "__main__":
    main()
