"""Where a request comes from."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from flask import Request

from shared.runtime.settings import settings

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

MAX_DEVICE_LENGTH = 256


@dataclass(frozen=True)
class Client:
    """The program that sent a request: its address, and what it calls itself (User-Agent)."""

    address: str
    device: str


def client_of(request: Request) -> Client:
    """Who sent a request.

    Each of our own proxies appends to X-Forwarded-For the address that it was called from. So with so many of
    them as TRUSTED_PROXY_HOPS, that entry from the right is the client's; what stands before it anyone may have
    written.
    """
    hops = settings().trusted_proxy_hops
    peer = request.remote_addr or ""
    forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",")]
    address = forwarded[-hops] if 0 < hops <= len(forwarded) else peer
    device = request.headers.get("User-Agent", "")
    return Client(
        address=str(parse_address(address) or parse_address(peer) or peer),
        device="".join(character for character in device if character.isprintable())[:MAX_DEVICE_LENGTH],
    )


@lru_cache(maxsize=1024)
def parse_address(text: str) -> "IPv4Address | IPv6Address | None":
    """An address; that of IPv4 where IPv6 carries one (RFC 4291, 2.5.5.2)."""
    from ipaddress import IPv6Address, ip_address

    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
