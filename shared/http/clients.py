"""The client that sent a request."""

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
"""This header proves that a request comes from the gateway: knative/base/gateway_key.yaml."""


@dataclass(frozen=True)
class Client:
    """The program that sent a request: its address and its User-Agent."""

    address: str
    device: str


def client_of(request: Request) -> Client:
    """Return the client that sent a request.

    Each of our proxies appends the address of its caller to X-Forwarded-For. With TRUSTED_PROXY_HOPS proxies, the
    client's address is that many entries from the right; anyone can forge the entries before it. A request that
    bypassed the gateway has fewer trusted entries, so its peer counts as the client. In a pod the peer is queue-proxy,
    so all such callers count as one.
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
    """Parse an address. An IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) becomes the IPv4 address."""
    from ipaddress import IPv6Address, ip_address

    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
