"""The server's settings, each of which is an option of `fastvlm-onnx serve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

MEGABYTE: Final = 1_000_000
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that no other machine can reach."""


def _option(default: Any, text: str, *, flag: str | None = None) -> Any:
    """A field that the command line shows.

    Args:
        text: the option's help.
        flag: the option's name, where it is not the field's.
    """
    return field(default=default, metadata={"help": text, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the server listens, which clients it answers, and how much it takes.

    Attributes:
        api_key: the key that requests must carry; None asks for no key.
    """

    api_key: str | None = field(default=None, repr=False)

    # Where it listens.
    host: str = _option("127.0.0.1", "Address to listen on.")
    port: int = _option(8000, "Port to listen on; 0 takes a free port.")
    ssl_certfile: Path | None = _option(None, "Certificate for https, in PEM.")
    ssl_keyfile: Path | None = _option(None, "The certificate's key, in PEM.")
    model_name: str | None = _option(None, "The id in /v1/models; by default the package's name.")

    # Which clients it answers.
    allow_origins: tuple[str, ...] = _option(
        (), "Origin of a web page that may call the server; may be repeated.", flag="allow-origin"
    )
    allow_hosts: tuple[str, ...] = _option(
        (), "A name of this server in the Host header; may be repeated.", flag="allow-host"
    )
    trusted_proxies: tuple[str, ...] = _option(
        (), "Address whose X-Forwarded-For names the client; may be repeated.", flag="trust-proxy"
    )

    # Images that requests name.
    allow_url_hosts: tuple[str, ...] = _option(
        (),
        "HOST or HOST:PORT that image URLs may name; may be repeated.",
        flag="allow-url-host",
    )
    allow_private_url_hosts: tuple[str, ...] = _option(
        (),
        "The same, where the host may be in a private network; may be repeated.",
        flag="allow-private-url-host",
    )
    allow_redirects: bool = _option(False, "Follow redirects of image URLs to allowed hosts.")
    fetch_seconds: float = _option(10.0, "Time to fetch an image URL.")
    fetch_mb: float = _option(20.0, "Megabytes of an image that is fetched or read from a file.")
    media_root: Path | None = _option(None, "Folder whose files file:// URLs may name.")
    orient: bool = _option(False, "Rotate images as their EXIF data say.")

    # How much a request may hold.
    max_body_mb: float = _option(32.0, "Megabytes of a request's body.")
    body_seconds: float = _option(30.0, "Time in which a body must have come.")
    max_parts: int = _option(256, "Content parts of a request.")
    max_images: int = _option(8, "Images of a request.")
    max_pixels: int = _option(50_000_000, "Pixels of an image.")
    max_characters: int = _option(500_000, "Characters of a request's texts.")
    max_prompt_tokens: int | None = _option(
        None, "Tokens of a prompt with its images; by default the model's context."
    )
    max_answer_tokens: int | None = _option(
        None, "Tokens of an answer; by default the room in the model's context."
    )
    max_choices: int = _option(8, "Answers to one request (`n`).")
    max_seconds: float = _option(300.0, "Time of an answer, with that in the queue.")

    # How much the server holds at once.
    max_running: int = _option(8, "Answers that are decoded together.")
    max_waiting: int = _option(64, "Answers that wait; more get status 429.")
    max_per_client: int = _option(16, "Answers of a client, running and waiting.")
    max_connections: int = _option(512, "Open connections.")
    max_buffered_mb: float = _option(512.0, "Megabytes of all requests' bodies.")
    see_seconds: float = _option(600.0, "Time for which a message can name a seen image.")
    max_seen: int = _option(64, "Seen images that are kept.")
    prefix_cache_mb: float = _option(512.0, "Megabytes of keys and values of earlier prompts.")
    image_cache_mb: float = _option(64.0, "Megabytes of features of earlier images.")

    # How it ends, and its log.
    grace_seconds: float = _option(
        30.0, "Time that answers get to end when the server is told to stop.", flag="grace"
    )
    log_json: bool = _option(False, "Log a JSON object for each request.")
    log_prompts: bool = _option(False, "Log prompts and answers too.")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * MEGABYTE)

    @property
    def max_buffered_bytes(self) -> int:
        return int(self.max_buffered_mb * MEGABYTE)

    @property
    def fetch_bytes(self) -> int:
        return int(self.fetch_mb * MEGABYTE)
