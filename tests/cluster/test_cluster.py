"""Captions on a Ray cluster of several nodes, which are processes of this machine.

Nodes and drivers are killed in the middle of a job, and the ids are compared.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_jobs import caption_on_ray, rows_in

pytestmark = pytest.mark.slow
SECONDS = 240


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without actors and two nodes that hold one actor each."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from ray.cluster_utils import Cluster

    store = 100_000_000
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store}
    )
    try:
        started.workers = [
            started.add_node(num_cpus=2, object_store_memory=store) for _ in range(2)
        ]
        started.wait_for_nodes()
        yield started
    finally:
        started.shutdown()


@pytest.fixture
def job(cluster: Any, many: Path, package: Path) -> Callable[..., "subprocess.Popen[str]"]:
    def start(output: Path, *more: object) -> "subprocess.Popen[str]":
        return caption_on_ray(
            *("--ray", cluster.address, many, "-o", output, "--model", package),
            *("--threads", 1, "--batch-size", 1, "--rows-per-file", 1, *more),
        )

    return start


def wait_for_files(folder: Path, number: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + SECONDS
    while len(list(folder.glob("*.parquet"))) < number:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def end_of(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors


def test_a_node_that_dies_loses_no_picture_and_doubles_none(
    cluster: Any, job: Callable[..., Any], many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.parquet"
    process = job(output)
    wait_for_files(output, 2, process)
    cluster.remove_node(cluster.workers[1], allow_graceful=False)
    assert process.poll() is None, "the job was over before the node died"
    end_of(process)
    assert sorted(row["path"] for row in rows_in(output)) == sorted(map(str, many.iterdir()))


def test_resume_after_the_driver_was_killed_answers_each_picture_once(
    cluster: Any, job: Callable[..., Any], many: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.parquet"
    killed = job(output)
    wait_for_files(output, 2, killed)
    assert killed.poll() is None, "the job was over before it could be killed"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    # Ray ends the tasks of a driver that died.
    time.sleep(5)
    left = {file.name: file.read_bytes() for file in committed_files(output)}
    assert len(left) > 0
    end_of(job(output, "--resume"))
    assert sorted(row["path"] for row in rows_in(output)) == sorted(map(str, many.iterdir()))
    for name, content in left.items():
        assert (output / name).read_bytes() == content, "an answer was given again"


def committed_files(output: Path) -> list[Path]:
    """Files of a destination whose ids are in its checkpoint."""
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    names = [file.name.removesuffix(".parquet") for file in checkpoint.glob("*.parquet")]
    whole = [name for name in names if not name.endswith(".pending")]
    return [file for name in whole for file in output.glob(f"{name}-*.parquet")]
