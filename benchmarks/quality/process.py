"""A worker process: `python -m quality.process ACTION MODULE JOB FD`.

Actions: `convert` makes a system's files. `logits` writes the logits before each forced token of
each sequence, float32, to the pipe FD. `time` and `bytes` write seconds and bytes, as JSON. The
pipe is apart from stdout, since libraries print there.
"""

import importlib
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
from quality.job import Job, read_sequences

REPEATS = 3  # timed runs, after one to warm up


def measure_times(module: Any, job: Job) -> dict[str, float]:
    """Run the answer with the longest prompt several times.

    Returns:
        Seconds: `load`, `prefill` of the prompt, and `decode` of one token; medians.
    """
    began = time.perf_counter()
    model = module.load(job)
    load = time.perf_counter() - began
    answers = [found for found in read_sequences(job.sequences) if found.kind == "answer"]
    sequence = max(answers, key=lambda found: len(found.prompt_ids) + len(found.forced))
    prefill, decode = [], []
    for _ in range(1 + REPEATS):
        times = [time.perf_counter()]
        for _ in model.forced_logits(sequence):
            times.append(time.perf_counter())
        first, *others = np.diff(times).tolist()
        prefill.append(first)
        decode.append(statistics.median(others))
    return {
        "load": load,
        "prefill": statistics.median(prefill[1:]),
        "decode": statistics.median(decode[1:]),
    }


def main(action: str, module_name: str, job_text: str, file_descriptor: str) -> None:
    job = Job.from_json(job_text)
    module = importlib.import_module(f"quality.{module_name}")
    with os.fdopen(int(file_descriptor), "wb") as pipe:
        if action == "convert":
            module.convert(job)
        elif action == "time":
            pipe.write(json.dumps(measure_times(module, job)).encode())
        elif action == "bytes":
            pipe.write(json.dumps(module.language_bytes(job)).encode())
        else:
            model = module.load(job)
            for sequence in read_sequences(job.sequences):
                for row in model.forced_logits(sequence):
                    pipe.write(np.ascontiguousarray(row, np.float32).data)


if __name__ == "__main__":
    main(*sys.argv[1:])
