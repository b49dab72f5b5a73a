"""Check that the service answers from outside, as a client sees it."""

import os
import ssl
import uuid
from urllib.parse import urlsplit

import urllib3

from knative.kubernetes.cluster import Cluster, Object

TIMEOUT_SECONDS = 20.0
"""Long enough for a function to start first."""

# A new address each time: otherwise strangers could exhaust its rate limit and block releases.
_NOBODY = f"nobody-{uuid.uuid4().hex}@example.com"
CALLS = (
    ("GET", "/health", None, 200),
    ("GET", "/.well-known/jwks.json", None, 200),
    ("GET", "/api/v1/users/me", None, 401),
    ("POST", "/api/v1/users/login", {"email": _NOBODY, "password": "no such user has this"}, 401),
    ("POST", "/api/v1/users", {"email": "no address"}, 422),
    ("GET", "/nowhere", None, 404),
)
"""Method, path, body and expected status. None of these calls changes anything."""


def problems(cluster: Cluster, gateway: Object) -> list[str]:
    """Return what is wrong with the answers that come through the gateway.

    The address is that in the Gateway's status, or GATEWAY_URL if that cannot be reached from here.
    """
    listener = public_listener(gateway)
    is_tls, host = listener["protocol"] == "HTTPS", listener["hostname"]
    live = cluster.live(gateway) or {}
    addresses = live.get("status", {}).get("addresses", ())
    url = os.environ.get("GATEWAY_URL", "")
    if not url and not addresses:
        return [f"the Gateway {gateway['metadata']['name']} has no address yet"]
    parts = urlsplit(url or f"{'https' if is_tls else 'http'}://{addresses[0]['value']}:{listener['port']}")
    found = []
    with _pool(parts.scheme, parts.hostname or "", parts.port, host) as pool:
        for method, path, body, expected in CALLS:
            try:
                answer = pool.request(method, path, json=body, headers={"Host": host}, retries=False)
            except urllib3.exceptions.HTTPError as error:
                return [f"cannot reach the gateway at {parts.geturl()}: {error} (GATEWAY_URL sets another address)"]
            if answer.status != expected:
                found.append(f"{method} {path} answers {answer.status} instead of {expected}")
    return found


def public_listener(gateway: Object) -> Object:
    """Return the listener that clients use: the HTTPS listener, or else the first."""
    listeners: list[Object] = gateway["spec"]["listeners"]
    return next((one for one in listeners if one["protocol"] == "HTTPS"), listeners[0])


def _pool(scheme: str, address: str, port: int | None, host: str) -> urllib3.HTTPConnectionPool:
    if scheme == "http":
        return urllib3.HTTPConnectionPool(address, port, timeout=TIMEOUT_SECONDS)
    return urllib3.HTTPSConnectionPool(
        address,
        port,
        timeout=TIMEOUT_SECONDS,
        server_hostname=host,
        assert_hostname=host,
        ssl_context=ssl.create_default_context(),
    )
