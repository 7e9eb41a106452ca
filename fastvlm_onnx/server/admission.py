"""How much the server holds at once: answers, answers of a client, bytes of bodies."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address

from fastvlm_onnx.server.errors import busy
from fastvlm_onnx.server.settings import Settings


class Ticket:
    """The share of one request in the limits; made by `Admission.admit`."""

    def __init__(self, admission: "Admission", client: str) -> None:
        self._admission, self._client = admission, client
        self._answers = self._bytes = 0

    def add_answers(self, number: int) -> None:
        """Count further answers.

        Raises:
            ApiError: the client, or the server, has as many answers as it may.
        """
        admission, settings = self._admission, self._admission.settings
        most = settings.max_running + settings.max_waiting
        if admission.answers + number > most:
            raise busy(
                f"the server has {admission.answers} of {most} answers that it takes at once; "
                "try again later.",
                "queue_full",
            )
        of_client = admission.answers_of[self._client]
        if of_client + number > settings.max_per_client:
            raise busy(
                f"this client has {of_client} of {settings.max_per_client} answers that a client "
                "may have at once; wait for one to end.",
                "too_many_answers",
            )
        admission.answers += number
        admission.answers_of[self._client] += number
        self._answers += number

    def add_bytes(self, number: int) -> None:
        """Count bytes of the request's body.

        Raises:
            ApiError: all bodies together have as many bytes as the server holds.
        """
        admission = self._admission
        if admission.buffered_bytes + number > admission.settings.max_buffered_bytes:
            raise busy(
                "the server holds as many bytes of requests as it may; try again later.",
                "out_of_buffers",
            )
        admission.buffered_bytes += number
        self._bytes += number

    def release(self) -> None:
        """Give the share back."""
        admission = self._admission
        admission.answers -= self._answers
        admission.buffered_bytes -= self._bytes
        admission.answers_of[self._client] -= self._answers
        if admission.answers_of[self._client] <= 0:
            del admission.answers_of[self._client]
        self._answers = self._bytes = 0


class Admission:
    """Counts the answers and bytes of all requests. For the event loop's thread alone.

    Attributes:
        answers: answers that are asked for, from the first byte of their request on.
        answers_of: the same, by client.
        buffered_bytes: bytes of bodies.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.answers, self.buffered_bytes = 0, 0
        self.answers_of: Counter[str] = Counter()

    @contextmanager
    def admit(self, address: str) -> Iterator[Ticket]:
        """Count a request of at least one answer while the block runs.

        Args:
            address: the client's.

        Raises:
            ApiError: the client, or the server, has as many answers as it may.
        """
        ticket = Ticket(self, client_of(address))
        try:
            ticket.add_answers(1)
            yield ticket
        finally:
            ticket.release()


def client_of(address: str) -> str:
    """The client of an address. A client of IPv6 usually has all addresses of its /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> 64 << 64)) + "/64"
    return str(parsed)
