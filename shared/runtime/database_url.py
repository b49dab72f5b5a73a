"""The URL of one PostgreSQL server, or of a primary and its replicas (libpq, "Specifying Multiple Hosts").

postgresql://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?target_session_attrs=read-write
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

PORT = 5432
WANTED = ("any", "read-write", "standby")


class Address(NamedTuple):
    host: str
    port: int


@dataclass(frozen=True)
class DatabaseUrl:
    user: str
    password: str
    addresses: tuple[Address, ...]
    database: str
    wanted: str
    """The wanted role among several servers: the primary (read-write) or a replica (standby)."""


def with_login_of(url: str, other: str) -> str:
    """Replace the user and password of a database URL by those of another URL."""
    login, at, _ = urlsplit(other).netloc.rpartition("@")
    place = urlsplit(url).netloc.rpartition("@")[2]
    return urlsplit(url)._replace(netloc=f"{login}{at}{place}").geturl()


@lru_cache(16)
def parse(url: str) -> DatabaseUrl:
    """
    Raises:
        ValueError: the message completes a sentence that starts with the name of the setting.
    """
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    try:
        places = [urlsplit(f"//{host}") for host in hosts.split(",")]
        addresses = tuple(Address(place.hostname or "", PORT if place.port is None else place.port) for place in places)
    except ValueError:
        addresses = ()
    if parts.scheme != "postgresql" or not addresses or not all(map(all, addresses)):
        raise ValueError("is not a postgresql:// URL")
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    wanted = parameters.pop("target_session_attrs", "any")
    if parameters or wanted not in WANTED:
        raise ValueError(f"has parameters other than target_session_attrs={'|'.join(WANTED)}: {parts.query}")
    if len(addresses) > 1 and wanted == "any":
        raise ValueError("names several servers without target_session_attrs=read-write (or standby)")
    return DatabaseUrl(unquote(user), unquote(password), addresses, unquote(parts.path[1:]), wanted)
