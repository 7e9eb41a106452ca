"""Quantised answers of a real language model, of this project and of other runtimes.

    python benchmarks/real_language_model.py --out docs/benchmarks             # this project
    python benchmarks/real_language_model.py --out docs/benchmarks --peers     # other runtimes too
    python benchmarks/real_language_model.py --out /tmp/r --prompts 24 --rounds 0    # a short look

fp32 answers the prompts of quality/prompts.json greedily. Every system is fed these tokens, and its
distribution of the next token is compared with fp32's at each step. Texts that stand for images are
also read as texts. The language model is Qwen2.5-Coder-0.5B-Instruct, which has the shapes of
FastVLM-0.5B's and comes in wheels on PyPI (quality/wheels.py). All prompts take 16 GB of disk, and
--peers 25 GB. Where the wheels are gone, the benchmark says so and exits with 0.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from peers import environment
from peers.job import locked, unfinished
from peers.language_folder import write_language_folder
from quality import ours
from quality.job import Job
from quality.measures import SequenceMeasures, compare, compare_all, summarise, summarise_steps
from quality.prompts import Prompt, read_prompts
from quality.reference import Reference, compute_reference
from quality.report import write_results
from quality.systems import OURS, PEERS, REFERENCE, SYSTEMS
from quality.wheels import UnavailableError, make_checkpoint
from quality.worker import WorkerError, read_json, worker

from fastvlm_onnx import FastVLMError, InputError
from fastvlm_onnx.export import pipeline
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.variants import CPU_VARIANTS

# Gigabytes: fp32's logits of a step, the checkpoint with its package, the other runtimes' files.
LOGITS_GB, FILES_GB, PEERS_GB = 0.0006, 8, 8
CALIBRATION = Path(pipeline.__file__).parent / "calibration/texts.json"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- files ---------------------------------------------------------------------------------------


def check_work_folder(work: Path, checkpoint: Path) -> None:
    """Keep the files that are made from one checkpoint apart from those of another.

    Raises:
        InputError: the folder holds files of another checkpoint.
    """
    note = work / "checkpoint.txt"
    if note.exists() and note.read_text("utf-8") != str(checkpoint):
        raise InputError(
            f"{work}: holds files made from {note.read_text('utf-8')}, not from {checkpoint}; "
            "name another folder with --work."
        )
    note.write_text(str(checkpoint), encoding="utf-8")


def check_disk_space(args: argparse.Namespace, prompts: Sequence[Prompt]) -> None:
    """Refuse a run that would fill the disk.

    Raises:
        InputError: the disk has too little room.
    """
    steps = args.steps * (len(prompts) + sum(prompt.image is not None for prompt in prompts))
    needed_gb = steps * LOGITS_GB + FILES_GB + (PEERS_GB if args.peers else 0)
    held = sum(path.stat().st_size for path in args.work.rglob("*") if path.is_file())
    missing_gb = needed_gb - (held + shutil.disk_usage(args.work).free) / 1e9
    if missing_gb > 0:
        raise InputError(
            f"{args.work} may grow to {needed_gb:.0f} GB, and the disk lacks {missing_gb:.0f} GB; "
            "free space, name another folder with --work, or measure fewer --prompts."
        )


def make_package(checkpoint: Path, package: Path, variants: Sequence[str]) -> None:
    """Export the variants, unless the package was made by the same source of the exporter."""
    digest = hashlib.sha256(f"{checkpoint.absolute()} {variants}".encode())
    for file in sorted(Path(pipeline.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    made_by = package.with_name(package.name + ".made-by.sha256")
    if package.exists() and made_by.exists() and made_by.read_text() == digest.hexdigest():
        return
    say(f"exporting {', '.join(variants)}")
    made_by.unlink(missing_ok=True)
    pipeline.export_package(checkpoint, package, precisions=variants, overwrite=True)
    made_by.write_text(digest.hexdigest())


def prepare_peers(jobs: Sequence[Job], checkpoint: Path, failures: dict[str, str]) -> None:
    """Install the other runtimes and convert the language model for each.

    Args:
        jobs: the other runtimes' jobs.
        checkpoint: the checkpoint that the package was made from.
        failures: gets the reason for each system that cannot be prepared.
    """
    language = jobs[0].language
    if not language.exists():
        with unfinished(language) as folder:
            write_language_folder(checkpoint, folder)
    shutil.copyfile(CALIBRATION, jobs[0].work / "calibration.json")
    for job in jobs:
        system = SYSTEMS[job.system]
        try:
            if system.peer:
                environment.install_peer(system.peer)
            if system.converter:
                say(f"converting {job.system}")
                with worker("convert", job):
                    pass
        except (environment.InstallError, WorkerError) as error:
            failures[job.system] = f"could not be prepared: {last_line(error)}"
            say(f"{job.system} {failures[job.system]}")


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].replace("|", "/") if lines else "no message"


# --- measuring -----------------------------------------------------------------------------------


def measure(job: Job, reference: Reference) -> tuple[list[SequenceMeasures], dict[str, Any]]:
    """Run a system on all sequences, and return the measures of each, and of its files.

    Raises:
        WorkerError: the system failed.
    """
    if job.system == REFERENCE:
        measured = [compare(sequence, logits, logits) for sequence, logits in reference.each()]
    else:
        with worker("logits", job) as pipe:
            measured = compare_all(pipe, reference)
    with worker("bytes", job) as pipe:
        figures = {**summarise(measured), "language_bytes": read_json(pipe)}
    if job.system in OURS:
        figures["package_bytes"] = ours.package_bytes(job)
    return measured, figures


def time_systems(jobs: Sequence[Job], rounds: int) -> dict[str, dict[str, Any]]:
    """Time all systems in turn, round by round, so that a slow minute falls on all of them.

    Returns:
        By system: load, prefill and decode, each with median and minimum in seconds.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(1, rounds + 1):
        for job in jobs:
            say(f"round {number} of {rounds}: {job.system}")
            with worker("time", job) as pipe:
                found.setdefault(job.system, []).append(read_json(pipe))
    return {
        system: {
            name: {
                "median": statistics.median(times[name] for times in runs),
                "minimum": min(times[name] for times in runs),
            }
            for name in runs[0]
        }
        for system, runs in found.items()
    }


def group_measures(
    prompts: Sequence[Prompt], measured: dict[str, list[SequenceMeasures]]
) -> dict[str, dict[str, Any]]:
    """Return the measures of each kind of prompt and of each language, by system."""
    members: dict[str, set[str]] = {}
    for name in ("kind", "language"):
        for prompt in prompts:
            members.setdefault(getattr(prompt, name), set()).add(prompt.id)
    return {
        group: {
            system: summarise_steps(
                item for item in items if item.kind == "answer" and item.id in ids
            )
            for system, items in measured.items()
        }
        for group, ids in members.items()
    }


# --- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--prompts", type=int, help="a subset of this size, evenly spread")
    parser.add_argument("--variants", default=",".join(CPU_VARIANTS), help="with commas")
    parser.add_argument("--steps", type=int, default=48, help="tokens of an answer, at most")
    parser.add_argument("--checkpoint", type=Path, help="made there if absent; under --work else")
    parser.add_argument("--package", type=Path, help="measure this package instead of exporting")
    parser.add_argument(
        "--peers", nargs="?", const=",".join(PEERS), help="other runtimes too; all, or with commas"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each system; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/fastvlm-real-language-model"))
    args = parser.parse_args()
    args.variants = list(dict.fromkeys(["fp32", *args.variants.split(",")]))
    if unknown := [name for name in args.variants if name not in CPU_VARIANTS]:
        known = ", ".join(CPU_VARIANTS)
        parser.error(f"--variants: {', '.join(unknown)} unknown; expected some of {known}")
    args.peers = args.peers.split(",") if args.peers else []
    if unknown := [name for name in args.peers if name not in PEERS]:
        known = ", ".join(PEERS)
        parser.error(f"--peers: {', '.join(unknown)} unknown; expected some of {known}")
    if args.steps < 2 or args.rounds < 0 or args.threads < 1:
        parser.error("--steps must be 2 or more, --rounds 0 or more, --threads 1 or more")
    args.work = args.work.absolute()
    return args


def run(args: argparse.Namespace) -> str:
    """Measure, write the results after each system, and return the page.

    Raises:
        UnavailableError: the wheels could not be downloaded.
        FastVLMError: the checkpoint or the package cannot be used.
        WorkerError: a variant of this project failed.
    """
    # 1. The files that every system needs.
    prompts = read_prompts(args.prompts)
    checkpoint = (args.checkpoint or args.work / "checkpoint").absolute()
    check_work_folder(args.work, checkpoint)
    check_disk_space(args, prompts)
    is_needed = args.package is None or args.peers
    if is_needed and not checkpoint.exists():
        say("making the checkpoint")
        make_checkpoint(checkpoint, args.work)
    package = args.package or args.work / "package"
    if args.package is None:
        make_package(checkpoint, package, args.variants)
    held = read_manifest(package).variants
    if "fp32" not in held:
        raise InputError(f"{package}: has no fp32 variant, which the others are compared with.")
    names = [name for name in args.variants if name in held]
    jobs = [
        Job(system, args.work, package.absolute(), args.threads)
        for system in (*(f"{ours.PREFIX}{name}" for name in names), *args.peers)
    ]
    say("fp32 answers the prompts")
    reference = compute_reference(jobs[0], prompts, args.steps)
    failures: dict[str, str] = {}
    if args.peers:
        prepare_peers(jobs[len(names) :], checkpoint, failures)

    # 2. Every system on the same sequences.
    conditions = describe(args, model_name(checkpoint, package), prompts, reference)
    page = ""
    measured: dict[str, list[SequenceMeasures]] = {}
    systems: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if job.system in failures:
            continue
        say(job.system)
        try:
            measured[job.system], systems[job.system] = measure(job, reference)
        except WorkerError as error:
            if job.system in OURS:
                raise
            failures[job.system] = f"failed: {last_line(error)}"
            say(str(error))
        groups = group_measures(prompts, measured)
        page = write_results(args.out, conditions, systems, groups, failures)

    # 3. The time of every system, in rounds.
    if args.rounds:
        timed = [job for job in jobs if job.system in systems]
        for system, figures in time_systems(timed, args.rounds).items():
            systems[system] |= figures
        page = write_results(args.out, conditions, systems, groups, failures)
    return page


def model_name(checkpoint: Path, package: Path) -> str:
    """Return the name in the checkpoint's configuration, else the one in the package."""
    config = checkpoint / "config.json"
    fields = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    return fields.get("_name_or_path") or read_manifest(package).source.name


def describe(
    args: argparse.Namespace, name: str, prompts: Sequence[Prompt], reference: Reference
) -> str:
    """Return a paragraph about the machine, the model, and the sequences."""
    answers, texts = (
        [sequence for sequence in reference.sequences if sequence.kind == kind]
        for kind in ("answer", "text")
    )
    positions = [len(sequence.prompt_ids) for sequence in answers]
    tokens, text_tokens = (sum(len(item.forced) for item in found) for found in (answers, texts))
    timing = (
        f"ms a token is the median of {args.rounds} round(s) after the longest prompt, with the "
        "minimum in brackets; all systems run in turn in each round."
    )
    sentences = [
        f"{processor()}, {os.cpu_count()} cores, {args.threads} threads, "
        f"ONNX Runtime {onnxruntime.__version__}.",
        f"The language model is {name}.",
        f"{len(prompts)} prompts of {min(positions)} to {max(positions)} positions.",
        f"Every system is fed fp32's greedy answers, at most {args.steps} tokens each and {tokens} "
        "in all.",
        f"Given texts, {len(texts)} with {text_tokens} tokens, are read too; their embeddings "
        "also stand where an image's features stand.",
        "Divergences are in nats, from this project's fp32.",
        timing if args.rounds else "Time was not measured.",
    ]
    return textwrap.fill(" ".join(sentences), 100)


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        with locked(args.work):
            print(run(args))
    except UnavailableError as error:
        print(f"skipped: the language model's wheels cannot be had ({error})")
    except WorkerError as error:
        sys.exit(f"error: {error}")
    except BlockingIOError:
        say(f"{args.work} is in use by another run; wait for it, or name another with --work.")
        sys.exit(2)
    except FastVLMError as error:
        say(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
