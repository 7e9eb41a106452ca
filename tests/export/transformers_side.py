"""transformers' own FastVLM on given inputs, in a process that finds timm.

    PYTHONPATH=FOLDER_WITH_TIMM python transformers_side.py CHECKPOINT INPUTS.npz OUTPUTS.npz

timm wants torchvision, of which only the Python part is installed: the two operators that it misses
are declared, and never called.
"""

import sys

import numpy as np
import torch

library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers import FastVlmForConditionalGeneration  # noqa: E402 (after the declaration)

checkpoint, inputs_file, outputs_file = sys.argv[1:]
inputs = np.load(inputs_file)
model, report = FastVlmForConditionalGeneration.from_pretrained(
    checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
)
# Every name of the layout is one that transformers itself knows, and none is missing.
for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not report[kind], f"{kind}: {report[kind]}"
model.eval()
pixel_values = torch.from_numpy(inputs["pixel_values"])
input_ids = torch.from_numpy(inputs["input_ids"])
tokens = int(inputs["tokens"])
with torch.inference_mode():
    features = model.model.vision_tower(pixel_values).last_hidden_state
    logits = model(input_ids=input_ids, pixel_values=pixel_values).logits[..., :tokens]
    answer: list[int] = []
    for _ in range(int(inputs["steps"])):
        row = model(input_ids=input_ids, pixel_values=pixel_values).logits[0, -1, :tokens]
        answer.append(int(row.argmax()))
        input_ids = torch.cat([input_ids, torch.tensor([[answer[-1]]])], dim=1)
hidden_states = features.flatten(2).transpose(1, 2)
np.savez(outputs_file, image_hidden_states=hidden_states, logits=logits, answer=answer)
