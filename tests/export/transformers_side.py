"""transformers' own FastVLM, and timm's own encoder, on given inputs: a process that finds timm.

    PYTHONPATH=FOLDER_WITH_TIMM python transformers_side.py CHECKPOINT INPUTS.npz FOLDER

Writes FOLDER/outputs.npz, and into FOLDER/saved what transformers saves after loading CHECKPOINT.
timm wants torchvision, of which only the Python part is of use here: the two operators that it
misses are declared, and never called.
"""

import sys
from pathlib import Path

import numpy as np
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402 (after the declaration)
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoProcessor, FastVlmForConditionalGeneration  # noqa: E402

VISION_PREFIX = "model.vision_tower.timm_model."


def load(checkpoint: Path, dtype: torch.dtype) -> FastVlmForConditionalGeneration:
    model, report = FastVlmForConditionalGeneration.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    # Every name of the layout is one that transformers itself knows, and none is missing.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], f"{kind}: {report[kind]}"
    return model.eval()


def save_again(checkpoint: Path, saved: Path) -> None:
    load(checkpoint, torch.bfloat16).save_pretrained(saved)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(saved)


def timm_encoder(checkpoint: Path) -> torch.nn.Module:
    """timm's encoder without transformers around it; every tensor of its own must be given."""
    encoder = timm.create_model("fastvit_mci3", inference_mode=True, num_classes=0)
    tensors = load_file(checkpoint / "model.safetensors")
    vision = {
        name.removeprefix(VISION_PREFIX): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(VISION_PREFIX)
    }
    encoder.load_state_dict(vision, strict=True)
    return encoder.eval()


def run_transformers(
    checkpoint: Path, pixel_values: torch.Tensor, input_ids: torch.Tensor, tokens: int, steps: int
) -> dict[str, object]:
    model = load(checkpoint, torch.float32)
    seen: list[torch.Tensor] = []
    model.model.vision_tower.register_forward_hook(
        lambda module, inputs, output: seen.append(output.last_hidden_state)
    )
    output = model(input_ids=input_ids, pixel_values=pixel_values, use_cache=True)
    found: dict[str, object] = {
        "image_features": output.image_hidden_states,
        "logits": output.logits[..., :tokens],
    }
    # The rows behind the tokenizer's last id mean nothing, and may be the largest.
    answer = [int(output.logits[0, -1, :tokens].argmax())]
    while len(answer) < steps:
        output = model(
            input_ids=torch.tensor([answer[-1:]]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        answer.append(int(output.logits[0, -1, :tokens].argmax()))
    (hidden_states,) = seen
    return found | {"image_hidden_states": in_rows(hidden_states), "answer": answer}


def in_rows(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states.flatten(2).transpose(1, 2)


@torch.inference_mode()
def main() -> None:
    checkpoint, inputs_file, folder = map(Path, sys.argv[1:])
    inputs = np.load(inputs_file)
    pixel_values = torch.from_numpy(inputs["pixel_values"])
    save_again(checkpoint, folder / "saved")
    outputs = run_transformers(
        checkpoint,
        pixel_values,
        torch.from_numpy(inputs["input_ids"]),
        int(inputs["tokens"]),
        int(inputs["steps"]),
    )
    # Another size than transformers was given: the same weights take any multiple of 64.
    smaller = torch.from_numpy(inputs["smaller_pixel_values"])
    encoder = timm_encoder(checkpoint)
    outputs["smaller_image_hidden_states"] = in_rows(encoder.forward_features(smaller))
    first_norm = encoder.stages[3].blocks[0].norm
    outputs["normalised_faint"] = first_norm(torch.from_numpy(inputs["faint"]))
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
