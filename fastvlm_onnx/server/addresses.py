"""Which internet addresses an image's URL may lead to."""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# All of IPv6's public internet. Prefixes that carry an IPv4 address (mapped, compatible,
# translated, NAT64) are outside of it.
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_PRIVATE: Final[Sequence[Network]] = [
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
    )
]


def is_public(address: Address) -> bool:
    """Whether an address is a host of the public internet.

    Private, loopback, link-local, shared, multicast, reserved and documentation ranges are not.
    Neither is an IPv6 address that carries an IPv4 address, as 6to4 and Teredo do.
    """
    if isinstance(address, IPv6Address):
        carries_ipv4 = address.sixtofour is not None or address.teredo is not None
        if carries_ipv4 or address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_private_host(address: Address) -> bool:
    """Whether an address is this machine, or a host of a private network.

    Link-local addresses are not, because metadata services of clouds have such addresses.
    """
    return any(address in network for network in _PRIVATE)


def parse_address(text: str) -> Address:
    """An address as a resolver writes it; an IPv6 zone is dropped.

    Raises:
        ValueError: the text is not an address.
    """
    return ip_address(text.partition("%")[0])
