"""Where a request comes from."""

import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from flask import Request

from shared.runtime.settings import settings

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

MAX_DEVICE_LENGTH = 256
GATEWAY_KEY_HEADER = "X-Gateway-Key"
"""With this header the gateway proves that it has sent a request: knative/base/gateway_key.yaml."""


@dataclass(frozen=True)
class Client:
    """The program that sent a request: its address, and what it calls itself (User-Agent)."""

    address: str
    device: str


def client_of(request: Request) -> Client:
    """Who sent a request.

    Each of our own proxies appends to X-Forwarded-For the address that it was called from. So with so many of
    them as TRUSTED_PROXY_HOPS, that entry from the right is the client's; what stands before it anyone may have
    written. A request that has not come through the gateway has fewer of these entries, and its sender chose the rest:
    it counts as its peer's. In a pod that is queue-proxy, so all such callers are one.
    """
    hops = settings().trusted_proxy_hops if _is_from_gateway(request) else 0
    peer = request.remote_addr or ""
    forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",")]
    address = forwarded[-hops] if 0 < hops <= len(forwarded) else peer
    device = request.headers.get("User-Agent", "")
    return Client(
        address=str(parse_address(address) or parse_address(peer) or peer),
        device="".join(character for character in device if character.isprintable())[:MAX_DEVICE_LENGTH],
    )


def _is_from_gateway(request: Request) -> bool:
    keys = settings().gateway_keys
    given = request.headers.get(GATEWAY_KEY_HEADER, "").encode()
    return not keys or any(hmac.compare_digest(given, key) for key in keys)


@lru_cache(maxsize=1024)
def parse_address(text: str) -> "IPv4Address | IPv6Address | None":
    """An address; that of IPv4 where IPv6 carries one (RFC 4291, 2.5.5.2)."""
    from ipaddress import IPv6Address, ip_address

    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
