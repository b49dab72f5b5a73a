"""A caller that knows the API and nothing else of the service."""

import http.client
import json
import os
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import PASSWORD, mailed_token

USERS = "/api/v1/users"


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    """Its JSON; None where it has none."""
    headers: http.client.HTTPMessage

    @property
    def problem(self) -> str:
        """The name of its problem; empty where it is none."""
        type_ = self.body.get("type", "") if isinstance(self.body, dict) else ""
        return str(type_).removeprefix("urn:aegis:problem:")


def loopback_address() -> str:
    """One of the sixteen million addresses of this machine: to the service, another caller each time."""
    return f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


@dataclass
class Caller:
    """Somebody on the network.

    Attributes:
        address: of this machine's loopback network, from which the requests come.
        access_token: sent with each request once there is one.
    """

    address: str = field(default_factory=loopback_address)
    access_token: str | None = None

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """The service's answer to one request."""
        url = urlsplit(os.environ["PUBLIC_URL"])
        connection = http.client.HTTPConnection(
            url.hostname or "", url.port, timeout=30, source_address=(self.address, 0)
        )
        sent = {"Content-Type": "application/json", **headers}
        if self.access_token:
            sent["Authorization"] = f"Bearer {self.access_token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            content = response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            return Answer(response.status, json.loads(content) if is_json and content else None, response.headers)
        finally:
            connection.close()

    def register(self, email: str, password: str = PASSWORD) -> None:
        """Makes an account and verifies its address."""
        assert self.send("POST", USERS, {"email": email, "password": password}).status == 202
        verified = {"token": mailed_token(email), "password": password}
        assert self.send("POST", f"{USERS}/email/verify", verified).status == 204

    def log_in(self, email: str, password: str = PASSWORD) -> Answer:
        """Logs in, and calls with the session from now on."""
        answer = self.send("POST", f"{USERS}/login", {"email": email, "password": password})
        if answer.status == 200:
            self.access_token = answer.body["access_token"]
        return answer
