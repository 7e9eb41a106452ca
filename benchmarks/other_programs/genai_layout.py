"""onnxruntime-genai on a package of `--layout genai`; benchmarks/clients.py runs it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from measured import Answer, measure

from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.text.prompt import PromptTemplate, question
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture


def load(package: Path, _variant: str) -> Answer:
    """Open the one variant of the package."""
    manifest = read_manifest(package)
    image, image_id = manifest.image, manifest.decoder.vocab_size
    count = (image.default_size // image.patch_size) ** 2
    template = PromptTemplate(TextTokenizer(package / "tokenizer.json"), manifest.prompt)
    model = og.Model(str(package))

    def answer(picture: Path, prompt: str, max_new_tokens: int) -> Iterator[int]:
        parts = template.prompt(question(prompt, 1))
        ids = [
            id for part in parts for id in (part if isinstance(part, list) else [image_id] * count)
        ]
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + max_new_tokens)
        generator = og.Generator(model, parameters)
        # onnxruntime-genai keeps no reference to the arrays that it reads later.
        inputs = {
            "pixel_values": preprocess(read_picture(picture), image.default_size),
            "num_image_tokens": np.array([count], np.int64),
        }
        for name, array in inputs.items():
            generator.set_model_input(name, array)
        generator.append_tokens(np.array([ids], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            if (token := int(generator.get_next_tokens()[0])) not in manifest.decoder.eos_token_ids:
                yield token

    return answer


if __name__ == "__main__":
    measure(load)
