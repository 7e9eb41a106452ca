"""Start worker processes, and read what they write."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from peers import environment
from quality.job import FloatArray, Job
from quality.systems import SYSTEMS

BENCHMARKS = Path(__file__).resolve().parents[1]
ENOUGH = 20  # lines of a failed process that are shown


class WorkerError(Exception):
    """A worker failed. The message is its last lines of output."""


@contextmanager
def worker(action: str, job: Job) -> Iterator[BinaryIO]:
    """Run a worker, and give the pipe that it writes to.

    Raises:
        WorkerError: the worker failed, or the block found too little in the pipe (EOFError).
    """
    system = SYSTEMS[job.system]
    python = environment.PYTHON if system.is_peer else sys.executable
    environment_variables = os.environ | {
        "PYTHONPATH": str(BENCHMARKS),
        "OMP_NUM_THREADS": str(job.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    read_end, write_end = os.pipe()
    module = system.converter if action == "convert" else system.module
    command = [python, "-m", "quality.process", action, module, job.to_json(), str(write_end)]
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            command,
            env=environment_variables,
            pass_fds=(write_end,),
            stdout=output,
            stderr=output,
        ) as process:
            os.close(write_end)
            with os.fdopen(read_end, "rb") as pipe:
                is_complete = True
                try:
                    yield pipe
                except EOFError:  # the worker's output says why
                    is_complete = False
                except BaseException:
                    process.kill()
                    raise
        if process.returncode != 0 or not is_complete:
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()[-ENOUGH:]
            if process.returncode < 0:  # usually the system ended it for lack of memory
                lines.append(f"killed by signal {-process.returncode}")
            raise WorkerError("\n".join(lines))


def read_json(pipe: BinaryIO) -> Any:
    """Read the figures that a worker writes.

    Raises:
        EOFError: the worker wrote nothing.
    """
    data = pipe.read()
    if not data:
        raise EOFError
    return json.loads(data)


def read_rows(pipe: BinaryIO, rows: int, vocab_size: int) -> FloatArray:
    """Read logits, float32 [rows, vocab_size].

    Raises:
        EOFError: the worker wrote less.
    """
    size = rows * vocab_size * np.dtype(np.float32).itemsize
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return np.frombuffer(data, np.float32).reshape(rows, vocab_size)
