"""Ask about an image with OpenVINO alone: neither ONNX Runtime nor fastvlm-onnx is imported.

Run it as: python examples/openvino_only.py PACKAGE IMAGE QUESTION [VARIANT]
It needs: pip install openvino tokenizers pillow numpy
docs/format.md says what each step reads.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]
RunGraph = Callable[[Mapping[str, np.ndarray[Any, Any]]], Arrays]
OpenGraph = Callable[[Path], RunGraph]


def open_with_openvino(path: Path) -> RunGraph:
    """Open a graph, and return the function that maps its inputs to its outputs by name."""
    import openvino

    core = openvino.Core()
    # OpenVINO would otherwise compute in bfloat16 where the processor can.
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: {key.get_any_name(): value for key, value in compiled(feeds).items()}


class PortableModel:
    """A package on any engine that runs its graphs."""

    def __init__(self, folder: Path, variant: str, open_graph: OpenGraph) -> None:
        self.manifest = json.loads((folder / "fastvlm.json").read_text("utf-8"))
        files = self.manifest["variants"][variant]
        self.size = self.manifest["image"]["default_size"]
        self.vision_encoder = open_graph(folder / files["vision_encoder"][str(self.size)])
        self.projector = open_graph(folder / files["projector"])
        self.decoder = open_graph(folder / files["decoder"])
        cache_dtype = self.manifest["graphs"][files["decoder"]]["cache_dtype"]
        self.cache_dtype = np.dtype(cache_dtype)
        self.rows = np.load(folder / files["embed_tokens"], mmap_mode="r")
        self.scales = None
        if self.rows.dtype == np.uint8:
            name = files["embed_tokens"].replace(".npy", ".scale.npy")
            self.scales = np.load(folder / name, mmap_mode="r")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def pixel_values(self, path: Path) -> np.ndarray[Any, Any]:
        """Return an image as float32 [1, 3, size, size]: padded to a black square, in 0..1."""
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        side = max(image.size)
        square = Image.new("RGB", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        resized = square.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / np.float32(255)

    def embed(self, token_ids: list[int]) -> np.ndarray[Any, Any]:
        """Return token embeddings, float32 [len(token_ids), hidden_size]."""
        rows = self.rows[token_ids].astype(np.float32)
        if self.scales is None:
            return rows
        scales = self.scales[token_ids]
        blocks = (rows - 128).reshape(*scales.shape, -1) * scales[..., None]
        hidden_size = self.manifest["decoder"]["hidden_size"]
        return blocks.reshape(len(token_ids), -1)[:, :hidden_size]

    def encode(self, text: str, *, has_special_tokens: bool) -> list[int]:
        """Return token ids; special tokens of a user's text are plain text."""
        self.tokenizer.encode_special_tokens = not has_special_tokens
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, path: Path, question: str) -> np.ndarray[Any, Any]:
        """Return inputs_embeds of a question about an image, float32 [1, length, hidden_size]."""
        hidden_states = self.vision_encoder({"pixel_values": self.pixel_values(path)})
        features = self.projector(hidden_states)["image_features"]
        text = self.manifest["prompt"]
        before = self.encode(text["system"] + text["user"], has_special_tokens=True)
        asked = self.encode(text["after_image"] + question, has_special_tokens=False)
        after = self.encode(text["end_of_turn"] + text["assistant"], has_special_tokens=True)
        return np.concatenate([self.embed(before), features[0], self.embed(asked + after)])[None]

    def token_ids(self, path: Path, question: str, max_new_tokens: int) -> Iterator[int]:
        """Yield the likeliest token at each step, up to the end of the answer."""
        sizes = self.manifest["decoder"]
        inputs_embeds, length = self.prompt(path, question), 0
        empty = (1, sizes["num_key_value_heads"], 0, sizes["head_dim"])
        cache = {
            f"past_key_values.{layer}.{part}": np.zeros(empty, self.cache_dtype)
            for layer in range(sizes["num_hidden_layers"])
            for part in ("key", "value")
        }
        for _ in range(max_new_tokens):
            length += inputs_embeds.shape[1]
            mask = np.ones((1, length), np.int64)
            found = self.decoder({"inputs_embeds": inputs_embeds, "attention_mask": mask, **cache})
            token_id = int(found["logits"][0, -1].argmax())
            if token_id in sizes["eos_token_ids"]:
                return
            yield token_id
            # The engine may reuse the memory of its outputs in the next run.
            cache = {
                past: found[past.replace("past_key_values", "present")].copy() for past in cache
            }
            inputs_embeds = self.embed([token_id])[None]

    def answer(self, path: Path, question: str, max_new_tokens: int = 256) -> str:
        return str(self.tokenizer.decode(list(self.token_ids(path, question, max_new_tokens))))


def main() -> None:
    package, image, question, *variant = sys.argv[1:]
    model = PortableModel(Path(package), variant[0] if variant else "fp32", open_with_openvino)
    print(model.answer(Path(image), question))


if __name__ == "__main__":
    main()
