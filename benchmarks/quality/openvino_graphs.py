"""OpenVINO's language model in int8 and int4, with and without data."""

import json
from typing import Any

import nncf
import numpy as np
import openvino as ov
from peers.job import unfinished
from peers.openvino_graphs import export_language, write_embeddings
from quality.job import Job
from tokenizers import Tokenizer

GROUP_SIZE = 128
CALIBRATION_TOKENS = 128  # of each text
INT4 = {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": GROUP_SIZE}


def convert(job: Job) -> None:
    """Export the language model once, and compress it for the system."""
    if not job.openvino.exists():
        with unfinished(job.openvino) as folder:
            export_language(job.language, folder)
            write_embeddings(job.language, folder)
    target = job.openvino / f"{job.system}.xml"
    if target.exists():
        return
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if job.system == "openvino-int4":
        options = INT4
    elif job.system == "openvino-int4-data":
        dataset = nncf.Dataset(_calibration(job))
        options = INT4 | {"dataset": dataset, "awq": True, "scale_estimation": True}
    fp32 = ov.Core().read_model(job.openvino / "fp32.xml")
    unfinished_file = job.openvino / "unfinished.xml"
    ov.save_model(nncf.compress_weights(fp32, **options), unfinished_file, compress_to_fp16=False)
    unfinished_file.with_suffix(".bin").rename(target.with_suffix(".bin"))
    unfinished_file.rename(target)


def _calibration(job: Job) -> list[dict[str, Any]]:
    """Return the inputs of each calibration text; no prompt of the benchmark is among them."""
    texts = json.loads((job.work / "calibration.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(job.language / "tokenizer.json"))
    embed_tokens = np.load(job.openvino / "embed_tokens.fp32.npy", mmap_mode="r")
    items = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:CALIBRATION_TOKENS]
        items.append(
            {
                "inputs_embeds": embed_tokens[ids][None],
                "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(len(ids))[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
    return items
