"""Downloads from the Hugging Face hub: checkpoints for export, exported packages for the runtime.

Files go to Hugging Face's own cache. A download that was cut off continues there, and a file that
is in the cache needs no network.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastvlm_onnx.errors import FastVLMError

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")


def is_hub_id(text: str) -> bool:
    """Return whether a text is a hub id, owner/name or owner/name@revision, and not a path.

    A mistyped path is not taken for an id: its parent folder exists.
    """
    return bool(_HUB_ID.fullmatch(text)) and not Path(text).parent.is_dir()


def download_file(hub_id: str, name: str, error: type[FastVLMError]) -> Path | None:
    """Download a small file of a repository, or take it from the cache.

    Args:
        hub_id: owner/name, or owner/name@revision.
        name: the file's name.
        error: the class of the exception that is raised.

    Returns:
        The file; None if the repository has no such file.

    Raises:
        FastVLMError: the file cannot be downloaded; it is of the class `error`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision = _split(hub_id)
    with _failures_raised_as(error, hub_id):
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except EntryNotFoundError as failure:
            if isinstance(failure, LocalEntryNotFoundError):  # the hub cannot be reached
                raise
            return None


def download_snapshot(
    hub_id: str,
    patterns: Sequence[str],
    error: type[FastVLMError],
    *,
    shows_progress: bool = True,
) -> Path:
    """Download files of a repository, or take them from the cache.

    Args:
        hub_id: owner/name, or owner/name@revision.
        patterns: names of the files, with `*` and `?` as wildcards.
        error: the class of the exception that is raised.
        shows_progress: show Hugging Face's progress bars on stderr, if that is a terminal.

    Returns:
        The folder of one revision. A pattern without a match is not an error.

    Raises:
        FastVLMError: the files cannot be downloaded; it is of the class `error`.
    """
    from huggingface_hub import snapshot_download

    repository, revision = _split(hub_id)
    is_shown = shows_progress and sys.stderr is not None and sys.stderr.isatty()
    bar: dict[str, Any] = {} if is_shown else {"tqdm_class": _hidden_bar()}
    with _failures_raised_as(error, hub_id):
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(patterns), **bar)
        )


def _split(hub_id: str) -> tuple[str, str | None]:
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


@contextmanager
def _failures_raised_as(error: type[FastVLMError], hub_id: str) -> Iterator[None]:
    # Hugging Face logs each try of a download that is cut off, and how to get more speed.
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    # The exceptions of the hub's HTTP client have no base class of their own.
    except Exception as failure:
        raise error(
            f"{hub_id}: cannot be downloaded from Hugging Face: {_reason(failure, hub_id)}."
        ) from None
    finally:
        log.setLevel(level)


def _reason(failure: Exception, hub_id: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # A gated repository is also one that is not found: the order matters.
    if isinstance(failure, GatedRepoError):
        return "its owner grants access by request; ask for it there and run `hf auth login`"
    if isinstance(failure, RevisionNotFoundError):
        return f"it has no revision {_split(hub_id)[1]!r}; give a revision that it has"
    if isinstance(failure, RepositoryNotFoundError):
        return "no such repository, or a private one; check the id, or run `hf auth login`"
    if isinstance(failure, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            "it is not in the cache and the hub cannot be reached; connect, unset HF_HUB_OFFLINE, "
            "or give a folder"
        )
    if isinstance(failure, HfHubHTTPError):
        status = getattr(failure.response, "status_code", "no")
        return f"the hub answered with status {status}; try again later"
    if isinstance(failure, AttributeError | LookupError | TypeError):
        return "the hub's answer is not a hub's; check the address in $HF_ENDPOINT, and any proxy"
    return " ".join(str(failure).split()).rstrip(".") or type(failure).__name__


def _hidden_bar() -> type:
    from huggingface_hub.utils.tqdm import tqdm

    class HiddenBar(tqdm):
        """A progress bar that shows nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return HiddenBar
