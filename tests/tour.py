"""The tour: calls the operations as the people who use the service would: `make tour URL=...`.

It names those that it does not call, as a new one.

Against `make up` it needs nothing else. On a cluster name the command that makes an administrator there:

    make tour URL=http://dev-api.aegis.example.com ADMIN_CREATE="kubectl -n aegis-user-service exec deploy/relay -- \
        python -m knative.aegis admin create"
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode, urlsplit

import pyotp
import urllib3

from shared.framework.registry import HTTP_FUNCTIONS, load_all
from tests.authenticator import Authenticator
from tests.businesses import new_business_number

T = TypeVar("T")

URL = (os.environ.get("URL") or "http://localhost:8080").rstrip("/")
INBOX_URL = (os.environ.get("INBOX_URL") or URL).rstrip("/")
HOST = {"Host": os.environ["HOST_HEADER"]} if os.environ.get("HOST_HEADER") else {}
ADMIN_CREATE = os.environ.get("ADMIN_CREATE") or f"{sys.executable} -m knative.aegis admin create"
PASSWORD = "copper lantern drifts north"
NEW_PASSWORD = "a lantern for every northern pier"
PATIENCE_SECONDS = 60.0

http = urllib3.PoolManager(timeout=35.0, retries=False)


class Failed(Exception):
    """A step did not go as it should; the message says which and what came instead."""


class Person:
    """Somebody who uses the API: an address, and the tokens of the session that they are in."""

    called: ClassVar[set[str]] = set()
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
        print(
            f"{self.name:>8}  {function:30} {operation.method:6} {path[:70]:70} {answer.status} {milliseconds:6.0f} ms"
        )
        if answer.status != (expect or operation.status):
            raise Failed(
                f"{function} answered {answer.status} instead of {expect or operation.status}: {answer.data!r}"
            )
        Person.called.add(function)
        return json.loads(answer.data) if answer.data else None

    def logs_in(self, password: str = PASSWORD) -> None:
        self.tokens = self.does("login", {"email": self.email, "password": password})

    def mail(self, subject: str, count: int = 1) -> str:
        """The text of this person's newest mail with these words in its subject, once there are so many of them."""
        return messages(self.email, count, lambda message: subject in message["subject"])[0]

    def mailed_token(self, subject: str, count: int = 1) -> str:
        return self.mail(subject, count).partition("#token=")[2].split()[0]


def messages(to: str, count: int, fits: Callable[[dict[str, str]], bool] = lambda _message: True) -> list[str]:
    """The texts of the messages to an address or number, newest first, once there are so many that fit."""

    def find() -> list[str]:
        query = urlencode({"to": to})
        answer = http.request("GET", f"{INBOX_URL}/inbox?{query}", headers={"Accept": "application/json", **HOST})
        found = [message["text"] for message in json.loads(answer.data) if fits(message)]
        return found if len(found) >= count else []

    return wait_for(find, f"a message to {to}")


def wait_for(find: Callable[[], T], what: str) -> T:
    """What `find` returns, as soon as that is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := find()):
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
    print(f"\n{len(Person.called)} of {len(HTTP_FUNCTIONS)} operations answered as they should")
    if missed := HTTP_FUNCTIONS.keys() - Person.called:
        print(f"not called by the tour: {', '.join(sorted(missed))}")


def joins() -> Person:
    kim = Person("kim")
    kim.does("register", {"email": kim.email, "password": PASSWORD, "name": "Kim", "locale": "en"})
    kim.mailed_token("onfirm")
    kim.does("request_email_verification", {"email": kim.email})
    kim.does("verify_email", {"token": kim.mailed_token("confirm your e-mail address"), "password": PASSWORD})
    kim.logs_in()
    kim.does("get_profile")
    kim.does("update_profile", {"name": "Kim Minjun"})
    kim.tokens = kim.does("refresh_token", {"refresh_token": kim.tokens["refresh_token"]})
    return kim


def changes_password_and_address(kim: Person) -> None:
    kim.does("change_password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD})
    kim.does("request_password_reset", {"email": kim.email})
    kim.does("reset_password", {"token": kim.mailed_token("Set a new password"), "password": PASSWORD})
    kim.logs_in()
    new_email = f"new-{kim.email}"
    kim.does("change_email", {"email": new_email, "password": PASSWORD})
    kim.email = new_email
    kim.does("verify_email", {"token": kim.mailed_token("onfirm"), "password": PASSWORD})
    takes_a_change_of_address_back(kim)


def takes_a_change_of_address_back(kim: Person) -> None:
    here, elsewhere = kim.email, f"elsewhere-{kim.email}"
    kim.logs_in()
    kim.does("change_email", {"email": elsewhere, "password": PASSWORD})
    kim.email = elsewhere
    kim.does("verify_email", {"token": kim.mailed_token("onfirm"), "password": PASSWORD})
    kim.email = here
    kim.does("undo_email_change", {"token": kim.mailed_token("has replaced this one")})
    kim.logs_in()


def verifies_phone_and_business(kim: Person) -> None:
    phone = f"+8210{secrets.choice('2467')}{secrets.randbelow(10**7):07}"
    kim.does("request_phone_code", {"phone": phone})
    code = re.search(r"\b\d{6}\b", messages(phone, 1)[0])
    kim.does("verify_phone", {"code": code and code[0]})
    kim.does("remove_phone")
    company = {"number": new_business_number(), "opened_on": "2020-01-02", "representative": "김민준"}
    kim.does("submit_business", company)
    wait_for(lambda: kim.does("get_profile")["business"]["status"] == "verified", "the registry's word")


def uses_a_second_factor(person: Person, **first_factor_code: str) -> None:
    app = pyotp.TOTP(person.does("enroll_totp")["secret"])
    codes = person.does("confirm_totp", {"code": app.now(), **first_factor_code})["recovery_codes"]
    person.does("logout")
    credentials = {"email": person.email, "password": PASSWORD}
    challenge = person.does("login", credentials, expect=401)["challenge"]
    person.tokens = person.does("login_with_second_factor", {"challenge": challenge, "code": codes[0]})
    person.does("renew_recovery_codes")


def uses_a_passkey(kim: Person) -> None:
    kim.does("remove_totp")
    options = kim.does("request_passkey_registration")
    user_id, site = kim.does("get_profile")["id"], urlsplit(URL)
    origin = f"{site.scheme}://{options['rp']['id']}" + (f":{site.port}" if site.port else "")
    passkey = Authenticator(uuid.UUID(user_id).bytes, rp_id=options["rp"]["id"], origin=origin)
    kim.does("register_passkey", {"name": "Phone", "credential": passkey.register(options)})
    options = kim.does("request_passkey_login")
    kim.tokens = kim.does("login_with_passkey", {"credential": passkey.log_in(options)})
    (listed,) = kim.does("list_passkeys")["passkeys"]
    kim.does("remove_passkey", passkey_id=listed["id"])


def looks_after_sessions(kim: Person) -> None:
    elsewhere = Person("kim")
    elsewhere.email = kim.email
    elsewhere.logs_in()
    listed = kim.does("list_sessions")["sessions"]
    kim.does("revoke_session", session_id=next(session["id"] for session in listed if not session["current"]))
    elsewhere.logs_in()
    kim.does("revoke_other_sessions")
    elsewhere.does("get_profile", expect=401)
    kim.does("export_data")


def administrator_looks_after(kim: Person) -> None:
    admin = Person("admin")
    command = [*shlex.split(ADMIN_CREATE), admin.email, "--locale", "en"]
    try:
        created = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise Failed(f"no administrator could be made: {error}") from None
    if created.returncode:
        raise Failed(f"no administrator could be made with: {shlex.join(command)}\n{created.stdout.strip()}")
    admin.does("reset_password", {"token": admin.mailed_token("Set a new password"), "password": PASSWORD})
    admin.logs_in()
    code = re.search("[0-9A-Z]{4}(-[0-9A-Z]{4}){5}", created.stdout)
    uses_a_second_factor(admin, first_factor_code=code[0] if code else "")
    (found,) = admin.does("list_users", query="?" + urlencode({"email": kim.email}))["users"]
    admin.does("get_user", user_id=found["id"])
    admin.does("end_user_sessions", user_id=found["id"])
    kim.logs_in()
    kim.does("enroll_totp")
    admin.does("remove_user_factors", user_id=found["id"])
    admin.does("update_user", {"status": "suspended"}, user_id=found["id"])
    kim.does("login", {"email": kim.email, "password": PASSWORD}, expect=401)
    admin.does("update_user", {"status": "active"}, user_id=found["id"])
    wait_for(lambda: len(admin.does("list_audit", user_id=found["id"])["entries"]) > 10, "the audit trail")


def leaves_and_comes_back(kim: Person) -> None:
    kim.logs_in()
    kim.does("withdraw", {"password": PASSWORD})
    kim.does("get_profile", expect=401)
    kim.logs_in()
    kim.does("logout")


def keys_are_public_and_the_rest_is_a_404() -> None:
    anyone = Person("anyone")
    anyone.does("jwks")
    anyone.does("openid_configuration")
    anyone.does("oauth_metadata")
    answer = http.request("GET", f"{URL}/api/v1/users/nothing", headers=HOST)
    print(f"{'anyone':>8}  {'fallback':30} GET    {'/api/v1/users/nothing':70} {answer.status}")
    if answer.status != 404:
        raise Failed(f"fallback answered {answer.status} instead of 404")
    Person.called.add("fallback")


if __name__ == "__main__":
    main()
