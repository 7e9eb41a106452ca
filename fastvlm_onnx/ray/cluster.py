"""The cluster: a connection to it, or one on this machine, and the actors that fit in it."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import ray

from fastvlm_onnx.errors import InputError

LOCAL: Final = "local"
"""The address of a cluster that is started on this machine and ends with the job."""

# For reading and writing, and for the filter of pictures that are answered already.
SPARE_CPUS: Final = 2
# The rest of a machine's memory is for pictures, keys and values, and other programs.
_SHARE_OF_MODELS: Final = 0.25
_OBJECT_STORE_BYTES: Final = 1_000_000_000
# gRPC runs over HTTP/2, in which the first frame of each side has the type 4, SETTINGS.
# Source: RFC 9113, sections 3.4 and 4.1.
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HTTP2_SETTINGS: Final = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty one


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster. Ray's usage statistics stay off, unless the user has set the variable.

    Args:
        address: LOCAL, `auto`, `host:port` or `ray://host:port`.

    Raises:
        InputError: there is no cluster at the address, Ray cannot be started, or the program is
            connected already.
    """
    if ray.is_initialized():
        raise InputError("this program is connected to Ray already; call ray.shutdown() first.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ExitStack() as ending:
        _connect(address, ending)
        yield


def _connect(address: str, ending: ExitStack) -> None:
    """Connect to a cluster; `ending` disconnects, and removes what a cluster here has written."""
    try:
        if address == LOCAL:
            folder = ending.enter_context(
                tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            )
            # Logical CPUs: a task that waits for a disk needs none of the cores.
            ray.init(
                LOCAL,
                num_cpus=(os.cpu_count() or 1) + SPARE_CPUS,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level="error",
                log_to_driver=False,
                _temp_dir=folder,
            )
        else:
            _check_port(address)
            ray.init(address, logging_level="error", log_to_driver=False)
    # Where a process of Ray does not start in time, Ray raises an Exception of no class of its own.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        if address == LOCAL:
            raise InputError(
                f"Ray could not be started on this machine ({reason}); let other programs end, and "
                "try again."
            ) from None
        raise InputError(
            f"no Ray cluster was found at {address} ({reason}); start it with `ray start`, set "
            "RAY_AUTH_MODE=token if it asks for a token, or give no address for a cluster on this "
            "machine."
        ) from None
    ending.callback(ray.shutdown)


def _check_port(address: str) -> None:
    """Raise OSError where no program that speaks gRPC listens, as a cluster's head does.

    Ray would try for minutes, and write a line for each try.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isascii() and port.isdecimal()):
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
        connection.sendall(_HTTP2_PREFACE + _HTTP2_SETTINGS)
        answer = b""
        while len(answer) < len(_HTTP2_SETTINGS):
            more = connection.recv(len(_HTTP2_SETTINGS) - len(answer))
            if not more:
                break
            answer += more
    if answer[3:4] != _HTTP2_SETTINGS[3:4]:
        raise OSError("another program listens there")


def fitting_actors(nodes: Sequence[float], threads: int) -> int:
    """Return the number of actors that leave CPUs for reading and writing.

    With no CPU left, a job would wait for ever.

    Args:
        nodes: the logical CPUs of each machine.
        threads: the CPUs of an actor.

    Raises:
        InputError: no actor fits.
    """
    # A node with an actor keeps a CPU for reading and writing, and one node keeps one for the
    # filter, unless a node is left over.
    fitting = [max(0, int(cpus) - 1) // threads for cpus in nodes]
    left = [int(cpus) - number * threads for cpus, number in zip(nodes, fitting, strict=True)]
    is_there_room = any(
        free >= (SPARE_CPUS if number else 1) for free, number in zip(left, fitting, strict=True)
    )
    actors = sum(fitting) - (0 if is_there_room else 1)
    if actors < 1:
        listed = ", ".join(f"{cpus:g}" for cpus in nodes)
        raise InputError(
            f"the machines of the cluster have {listed or 'no'} CPUs; expected {threads} for an "
            f"actor and {SPARE_CPUS} more. Give fewer --threads, or add a machine."
        )
    return actors


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster.

    Attributes:
        cpus: its logical CPUs.
        memory: the bytes that tasks and actors may take.
    """

    cpus: float
    memory: float


def machines() -> list[Machine]:
    """Return the machines of the cluster that are up."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(has.get("CPU", 0.0), has.get("memory", 0.0)) for has in resources]


def default_threads(machines: Sequence[Machine], model_bytes: int | None) -> int:
    """Return the CPUs of an actor.

    Actors of one thread answer most pictures, and each holds a model. They are taken where these
    models are small beside the memory; elsewhere actors have 4 threads, or as many as the smallest
    machine can spare.

    Args:
        machines: those of the cluster.
        model_bytes: bytes of the package; None when they are unknown.
    """
    working = [machine for machine in machines if machine.cpus]
    if model_bytes is not None and all(
        machine.cpus * model_bytes <= _SHARE_OF_MODELS * machine.memory for machine in working
    ):
        return 1
    smallest = min((machine.cpus for machine in working), default=1.0)
    return int(min(4, max(1, smallest - SPARE_CPUS)))
