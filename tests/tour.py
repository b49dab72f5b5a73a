"""The tour: every operation once, as the people who use the service would: `make tour URL=...`.

Against `make up` it needs nothing else. On a cluster name the command that makes an administrator there:

    make tour URL=http://dev-api.aegis.example.com ADMIN_CREATE="kubectl -n aegis-user-service exec deploy/relay -- \
        python -m knative.release.aegis admin create"
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import pyotp
import urllib3

from shared.registry import HTTP_FUNCTIONS
from tests.authenticator import Authenticator
from tests.conftest import load_all

T = TypeVar("T")

URL = (os.environ.get("URL") or "http://127.0.0.1:8080").rstrip("/")
HOST = {"Host": os.environ["HOST_HEADER"]} if os.environ.get("HOST_HEADER") else {}
ADMIN_CREATE = os.environ.get("ADMIN_CREATE") or f"{sys.executable} -m knative.release.aegis admin create"
PASSWORD = "correct horse battery staple"  # noqa: S105
NEW_PASSWORD = "a staple for every battery horse"  # noqa: S105
PATIENCE_SECONDS = 60.0

http = urllib3.PoolManager(timeout=35.0, retries=False)


class Failed(Exception):
    """A step did not go as it should; the message says which and what came instead."""


class Person:
    """Somebody who uses the API: an address, and the tokens of the session that they are in."""

    called: set[str] = set()
    """The operations that anybody has called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.email = f"{name}-{uuid.uuid4().hex[:8]}@example.com"
        self.tokens: dict[str, Any] = {}

    def does(self, function: str, body: Any = None, *, expect: int | None = None, query: str = "", **ids: str) -> Any:
        """Calls an operation, prints the step, and returns the body of the answer.

        Args:
            expect: the status that it should have; by default that of a success.
            ids: the parameters of its path.

        Raises:
            Failed: another status came.
        """
        operation = HTTP_FUNCTIONS[function]
        path = operation.path.format(**ids) + query
        headers = {"Accept": "application/json", **HOST}
        if operation.authenticated:
            headers["Authorization"] = f"Bearer {self.tokens['access_token']}"
        if operation.method == "POST":
            headers["Idempotency-Key"] = f'"{uuid.uuid4()}"'
        started = time.perf_counter()
        answer = http.request(operation.method, URL + path, json=body, headers=headers)
        milliseconds = (time.perf_counter() - started) * 1000
        print(f"{self.name:>8}  {function:30} {operation.method:6} {path[:70]:70} {answer.status} {milliseconds:6.0f} ms")
        if answer.status != (expect or operation.status):
            raise Failed(f"{function} answered {answer.status} instead of {expect or operation.status}: {answer.data!r}")
        Person.called.add(function)
        return json.loads(answer.data) if answer.data else None

    def logs_in(self, password: str = PASSWORD) -> None:
        self.tokens = self.does("login", {"email": self.email, "password": password})

    def mail(self, subject: str) -> str:
        """The text of the newest mail to this person whose subject has these words, once it is there."""
        return self._message(self.email, lambda message: subject in message["subject"])

    def link_token(self, subject: str) -> str:
        return self.mail(subject).partition("#token=")[2].split()[0]

    def text_code(self, phone: str) -> str:
        """The six digits in the newest text message to a number."""
        found = re.search(r"\b\d{6}\b", self._message(phone, lambda _message: True))
        return found[0] if found else ""

    def _message(self, to: str, fits: Callable[[dict[str, str]], bool]) -> str:
        def find() -> str | None:
            address = urllib3.request.urlencode({"to": to})
            answer = http.request("GET", f"{URL}/inbox?{address}", headers={"Accept": "application/json", **HOST})
            return next((message["text"] for message in json.loads(answer.data) if fits(message)), None)

        return wait_for(find, f"a message to {to}")


def wait_for(find: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := find()) is None:
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not come within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.1)
    return found


def main() -> None:
    load_all()
    print(f"the tour of {URL}\n")
    try:
        kim = joins()
        changes_password_and_address(kim)
        verifies_phone_and_business(kim)
        uses_a_second_factor(kim)
        uses_a_passkey(kim)
        looks_after_sessions(kim)
        administrator_looks_after(kim)
        leaves_and_comes_back(kim)
        keys_are_public_and_the_rest_is_a_404()
    except Failed as failed:
        sys.exit(f"\nthe tour ended early: {failed}")
    except urllib3.exceptions.HTTPError as error:
        sys.exit(f"\n{URL} cannot be reached ({error}). Start the service with make up, or name another: URL=...")
    if missed := HTTP_FUNCTIONS.keys() - Person.called:
        sys.exit(f"\nthe tour left out {', '.join(sorted(missed))}")
    print(f"\nall {len(Person.called)} operations answered as they should")


def joins() -> Person:
    kim = Person("kim")
    kim.does("register", {"email": kim.email, "password": PASSWORD, "name": "Kim", "locale": "en"})
    kim.link_token("Confirm")
    kim.does("request_email_verification", {"email": kim.email})
    kim.does("verify_email", {"token": kim.newest_token("Confirm", 2)})
    kim.logs_in()
    kim.does("get_profile")
    kim.does("update_profile", {"name": "Kim Minjun"})
    kim.does("refresh_token", {"refresh_token": kim.tokens["refresh_token"]})
    return kim
