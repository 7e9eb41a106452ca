"""Images from http and https URLs: allowed hosts alone, at addresses that were checked.

A host name is resolved once for each hop, every address that it has is checked, and the connection
goes to the address that was checked. A name that changes its address in between has no effect.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import Final

import httpx

from fastvlm_onnx.server.addresses import Address, is_private_host, is_public, parse_address
from fastvlm_onnx.server.errors import ApiError, bad_request
from fastvlm_onnx.server.settings import Settings

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host's name and a port -> the host's addresses."""

CountBytes = Callable[[int], None]
"""Counts bytes that the server holds for a request, or raises ApiError where they are too many."""

MAX_REDIRECTS: Final = 3
_PORTS: Final = {"http": 80, "https": 443}
PARAM: Final = "image_url"


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's resolver.

    Raises:
        OSError: the name has no address.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Fetcher:
    """Fetches images from the hosts that the settings allow."""

    def __init__(self, settings: Settings, resolve: Resolve = resolve) -> None:
        """Begin without a connection; each fetch opens its own.

        Args:
            resolve: another resolver, for tests.
        """
        self._settings, self._resolve = settings, resolve
        self._public = frozenset(map(str.lower, settings.allow_url_hosts))
        self._private = frozenset(map(str.lower, settings.allow_private_url_hosts))

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()  # certifi's authorities, or those of SSL_CERT_FILE

    async def fetch(self, url: str, count: CountBytes) -> bytes:
        """The body of an image's URL.

        Args:
            count: is called with the size of each piece that comes, and may refuse it.

        Raises:
            ApiError: the host is not allowed, an address is refused, the server answers with an
                error or a redirect, or the image is too large or too slow.
        """
        try:
            async with asyncio.timeout(self._settings.fetch_seconds):
                return await self._fetch(url, count)
        except TimeoutError:
            raise bad_request(
                f"the image URL gave no whole image in {self._settings.fetch_seconds:g} seconds; "
                "send the image as a data URI.",
                PARAM,
                "image_url_timeout",
            ) from None
        except httpx.HTTPError as error:
            # The error's text may name the address, which is no business of the client.
            raise _failed(f"the connection failed ({type(error).__name__})") from None

    async def _fetch(self, url: str, count: CountBytes) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            parsed = _parse(url)
            address = await self._address_of(parsed)
            # No proxy and no .netrc of the environment: both would change the peer.
            async with (
                httpx.AsyncClient(
                    verify=self._tls, trust_env=False, follow_redirects=False, timeout=None
                ) as client,
                client.stream(
                    "GET",
                    parsed.copy_with(host=str(address)),
                    headers={
                        "Host": parsed.netloc.decode("ascii"),
                        "Accept": "image/*",
                        # A compressed body could be a bomb, and images are compressed already.
                        "Accept-Encoding": "identity",
                    },
                    # The certificate must be the name's, not the address's.
                    extensions={"sni_hostname": _host_of(parsed)},
                ) as response,
            ):
                if response.has_redirect_location:
                    url = self._next_hop(parsed, response)
                    continue
                return await self._body(response, count)
        raise _failed(f"it redirects more than {MAX_REDIRECTS} times")

    async def _address_of(self, url: httpx.URL) -> Address:
        """Resolve a URL's host, once, and check all its addresses."""
        host, port = _host_of(url), url.port or _PORTS[url.scheme]
        names = {f"{host}:{port}"} | ({host} if port == _PORTS[url.scheme] else set())
        if names & self._private:
            is_allowed: Callable[[Address], bool] = _is_public_or_private
        elif names & self._public:
            is_allowed = is_public
        else:
            raise bad_request(
                f"this server fetches no image from {host!r} at port {port}; send the image "
                "as a data URI, or start the server with --allow-url-host.",
                PARAM,
                "image_url_host_not_allowed",
            )
        try:
            found = await self._resolve(host, port)
            addresses = [parse_address(text) for text in found]
        except (OSError, ValueError):
            addresses = []
        if not addresses:
            raise _failed(f"{host!r} has no address")
        if not all(map(is_allowed, addresses)):
            raise bad_request(
                f"{host!r} has an address of a private or reserved range, which this server "
                "does not connect to; send the image as a data URI.",
                PARAM,
                "image_url_address_refused",
            )
        return addresses[0]

    def _next_hop(self, url: httpx.URL, response: httpx.Response) -> str:
        if not self._settings.allow_redirects:
            raise _failed("it redirects; give the image's own URL")
        try:
            return str(url.join(response.headers["location"]))
        except httpx.InvalidURL:
            raise _failed("it redirects to a URL that cannot be parsed") from None

    async def _body(self, response: httpx.Response, count: CountBytes) -> bytes:
        most = self._settings.fetch_bytes
        if response.status_code != httpx.codes.OK:
            raise _failed(f"its server answers with status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _failed("its server compresses the image once more")
        body = bytearray()
        async for piece in response.aiter_raw():
            count(len(piece))
            body += piece
            if len(body) > most:
                raise bad_request(
                    f"the image of the URL has more than {most:,} bytes; make it smaller.",
                    PARAM,
                    "image_too_large",
                )
        return bytes(body)


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise bad_request(
            "the image URL cannot be parsed; expected https://HOST/PATH.", PARAM
        ) from None
    if parsed.scheme not in _PORTS or not parsed.host or parsed.userinfo:
        raise bad_request(
            "the image URL is not of the form https://HOST/PATH; user names and other schemes "
            "are not taken.",
            PARAM,
        )
    return parsed


def _host_of(url: httpx.URL) -> str:
    """The host in lower case; a name in other letters is in its ASCII form."""
    return url.raw_host.decode("ascii").lower()


def _is_public_or_private(address: Address) -> bool:
    return is_public(address) or is_private_host(address)


def _failed(reason: str) -> ApiError:
    return bad_request(
        f"the image URL cannot be fetched: {reason}.", PARAM, "image_url_unreachable"
    )
