"""Images of a request: from an `image_url` to a file's bytes whose header was checked.

Nothing here decodes an image or writes to a disk.
"""

import asyncio
import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.vision.image import check_header
from fastvlm_onnx.server.errors import ApiError, bad_request
from fastvlm_onnx.server.fetching import PARAM, CountBytes, Fetcher
from fastvlm_onnx.server.settings import Settings

SEEN_PREFIX: Final = "see:"
_URL_SAFE: Final = str.maketrans("-_", "+/")


class Pictures:
    """Finds the images that requests name."""

    def __init__(self, settings: Settings, fetcher: Fetcher) -> None:
        self._settings, self._fetcher = settings, fetcher
        self._media_root = settings.media_root and settings.media_root.resolve()

    async def read(self, url: str, count: CountBytes) -> bytes:
        """The file of an image, not decoded.

        Args:
            count: counts the bytes of files that are fetched or read.
            url: a data URI, or an http, https or file URL where the settings allow it.

        Raises:
            ApiError: the URL is refused, or the file is no image or too large.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            content = await asyncio.to_thread(_decode_data_uri, url)
        elif scheme in ("http", "https"):
            content = await self._fetcher.fetch(url, count)
        elif scheme == "file":
            content = await asyncio.to_thread(self._read_file, url)
            count(len(content))
        else:
            raise bad_request(
                "an image URL begins with data:, see:, https:, http: or file:; found "
                f"{url[:20]!r}. Send the image as a data URI.",
                PARAM,
                "invalid_image_url",
            )
        await self.check(content)
        return content

    async def check(self, content: bytes) -> None:
        """Read an image's header.

        Raises:
            ApiError: the content is no image, or has too many pixels.
        """
        try:
            # A header may hold compressed texts, so that reading it takes time.
            await asyncio.to_thread(check_header, content, max_pixels=self._settings.max_pixels)
        except InputError as error:
            raise bad_request(str(error), PARAM, "invalid_image") from None

    def _read_file(self, url: str) -> bytes:
        root = self._media_root
        if root is None:
            raise bad_request(
                "this server reads no files; send the image as a data URI, or start the server "
                "with --media-root.",
                PARAM,
                "file_url_not_allowed",
            )
        refused = bad_request(
            "the file URL names no readable file of the server's media folder; expected "
            "file:///PATH with the whole path.",
            PARAM,
            "file_url_not_found",
        )
        try:
            parsed = urlsplit(url)
            # Links are followed before the comparison, so none leads out of the folder.
            path = Path(unquote(parsed.path)).resolve(strict=True)
            if parsed.netloc not in ("", "localhost") or not path.is_relative_to(root):
                raise refused
            # A pipe would block the open.
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise refused
                if found.st_size > self._settings.fetch_bytes:
                    raise bad_request(
                        f"the file has more than {self._settings.fetch_bytes:,} bytes; make the "
                        "image smaller.",
                        PARAM,
                        "image_too_large",
                    )
                return file.read(self._settings.fetch_bytes)
        except (OSError, ValueError):
            raise refused from None


def _decode_data_uri(url: str) -> bytes:
    header, comma, data = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise _bad_data_uri()
    if "%" in data:
        data = unquote(data)
    # Some clients write base64's alphabet for URLs, and leave the padding out.
    data = data.translate(_URL_SAFE).rstrip("=")
    try:
        content = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _bad_data_uri() from None
    if not content:
        raise _bad_data_uri()
    return content


def _bad_data_uri() -> ApiError:
    return bad_request(
        "the data URI cannot be decoded; expected data:image/png;base64, and base64 text.",
        PARAM,
        "invalid_data_uri",
    )
