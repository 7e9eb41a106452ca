"""The process of one job: `python -m peers.process convert|measure MODULE JOB OUT`.

The figures go to a file, since libraries print to stdout.
"""

import importlib
import json
import sys
from pathlib import Path

from peers.job import Job


def main(action: str, module_name: str, job_text: str, out: str) -> None:
    job, module = Job.from_json(job_text), importlib.import_module(f"peers.{module_name}")
    figures = None
    if action == "convert":
        module.convert(job)
    else:
        from peers.measuring import measure

        figures = measure(module.load, module.files(job), job)
    Path(out).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
