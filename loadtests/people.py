"""Simulated users: they register, verify, log in, read, change, refresh, leave and come back.

Each request is named after the function that answers it. They only send valid requests, so every refusal is a failure.
"""

import os
import random
import re
import secrets
import shlex
import subprocess
import sys
import uuid
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import gevent
import pyotp
from locust import HttpUser, between, task
from locust.exception import StopUser

from loadtests.alerts import CannotJudge

PASSWORD = "copper lantern drifts north"  # noqa: S105
USERS = "/api/v1/users"
MAIL_TRIES = 100
TRIES = 10
"""Tries of a request that a person cannot continue without."""
HOST = {"Host": os.environ["HOST_HEADER"]} if os.environ.get("HOST_HEADER") else {}
"""Set HOST_HEADER if URL is an IP address because the gateway's host name resolves to another one."""
INBOX_URL = os.environ.get("INBOX_URL", "").rstrip("/")
"""Where mails are read. Empty for the URL of the service."""
AIDS = "inbox"
"""The name of requests that only help the test. They are not judged."""
ADMINISTRATORS = 2
ARRIVAL_SECONDS = 5.0
"""Within which all waiting commuters log in."""
MAILED_AGAIN = 0.1
"""Share of people who ask for their first mail again."""


class Somebody(HttpUser):
    """Somebody with an account, a password, and the tokens of a session."""

    abstract = True
    wait_time = between(0.5, 1.5)
    email: str

    def on_start(self) -> None:
        self.client.headers.update(HOST)
        self.tokens: dict[str, Any] = {}

    def log_in(self) -> None:
        self.tokens = {}
        self.tokens = self.insist("login", "POST", f"{USERS}/login", self.credentials()).json()

    def credentials(self) -> dict[str, str]:
        return {"email": self.email, "password": PASSWORD}

    def refresh(self) -> None:
        body = {"refresh_token": self.tokens["refresh_token"]}
        answer = self.send("refresh_token", "POST", f"{USERS}/token/refresh", body)
        if answer is None:
            self.log_in_again()
        else:
            self.tokens = answer.json()

    def log_in_again(self) -> None:
        self.log_in()

    def send(self, function: str, method: str, path: str, body: Any = None, *, expected: int = 0) -> Any:
        """Return the answer of a function, or None if it is neither a success nor has the expected status."""
        headers = {"Authorization": f"Bearer {self.tokens['access_token']}"} if self.tokens else {}
        with self.client.request(
            method, path, json=body, headers=headers, name=function, timeout=30, catch_response=True
        ) as answer:
            # status_code is 0 if there was no answer
            if not (200 <= answer.status_code < 300 or answer.status_code == expected):
                return None
            answer.success()
            return answer

    def insist(self, function: str, method: str, path: str, body: Any = None, *, expected: int = 0) -> Any:
        """Return the answer of a function, with retries.

        Raises:
            StopUser: all tries failed.
        """
        for _ in range(TRIES):
            answer = self.send(function, method, path, body, expected=expected)
            if answer is not None:  # an expected error response is falsy
                return answer
            gevent.sleep(1)  # the Retry-After of a busy service
        raise StopUser

    def mailed_token(self, mails: int = 1) -> str:
        """Return the token in the newest mail, once there are this many mails."""
        return self.newest_message(self.email, mails).partition("#token=")[2].split()[0]

    def newest_message(self, to: str, messages: int = 1) -> str:
        """Return the text of the newest message to an address or number, once there are this many messages.

        Raises:
            StopUser: the messages did not arrive.
        """
        for _ in range(MAIL_TRIES):
            answer = self.client.get(
                f"{INBOX_URL}/inbox?to={quote(to)}", headers={"Accept": "application/json"}, name=AIDS, timeout=30
            )
            if answer.status_code == 200 and len(answer.json()) >= messages:
                return str(answer.json()[0]["text"])
            gevent.sleep(0.3)
        raise StopUser


class Person(Somebody):
    """Mostly reads; logs out and in again; rarely does what people do once."""

    def on_start(self) -> None:
        super().on_start()
        self.join()

    def join(self) -> None:
        """Register, verify and log in."""
        self.email = f"{uuid.uuid4().hex}@example.com"
        self.tokens = {}
        self.has_asked_for_code = self.has_exported = False
        self.insist("register", "POST", USERS, self.credentials())
        token = self.mailed_token()
        if random.random() < MAILED_AGAIN and self.send(  # noqa: S311
            "request_email_verification", "POST", f"{USERS}/email/resend", {"email": self.email}
        ):
            token = self.mailed_token(mails=2)  # it replaces the first one
        self.insist("verify_email", "POST", f"{USERS}/email/verify", {"token": token, "password": PASSWORD})
        self.log_in()

    @task(120)
    def get_profile(self) -> None:
        self.send("get_profile", "GET", f"{USERS}/me")

    @task(18)
    def refresh_token(self) -> None:
        self.refresh()

    @task(12)
    def logout_and_login(self) -> None:
        self.send("logout", "POST", f"{USERS}/logout")
        self.log_in()

    @task(6)
    def update_profile(self) -> None:
        self.send("update_profile", "PATCH", f"{USERS}/me", {"name": f"Kim {uuid.uuid4().hex[:4]}"})

    @task(4)
    def list_sessions(self) -> None:
        self.send("list_sessions", "GET", f"{USERS}/me/sessions")

    @task(2)
    def login_elsewhere_and_revoke_session(self) -> None:
        self.log_in()  # the previous session stays
        if not (answer := self.send("list_sessions", "GET", f"{USERS}/me/sessions")):
            return
        for session in answer.json()["sessions"]:
            if not session["current"]:
                self.send("revoke_session", "DELETE", f"{USERS}/me/sessions/{session['id']}")

    @task(1)
    def request_phone_code_and_verify_phone(self) -> None:
        if self.has_asked_for_code:  # the limit is five an hour
            return
        self.has_asked_for_code = True
        phone = f"+8210{secrets.choice('2467')}{secrets.randbelow(10**7):07}"
        if self.send("request_phone_code", "POST", f"{USERS}/me/phone", {"phone": phone}):
            code = re.search(r"\b\d{6}\b", self.newest_message(phone))
            self.send("verify_phone", "POST", f"{USERS}/me/phone/verify", {"code": code and code[0]})

    @task(1)
    def export_data(self) -> None:
        if not self.has_exported:  # the limit is ten an hour
            self.has_exported = True
            self.send("export_data", "GET", f"{USERS}/me/export")

    @task(1)
    def withdraw(self) -> None:
        """Withdraw, and continue as a new user."""
        self.send("withdraw", "POST", f"{USERS}/me/withdrawal", {"password": PASSWORD})
        self.join()


class Commuter(Person):
    """Has an account, and waits to log in at the same time as all others."""

    wait_time = between(1, 3)

    def on_start(self) -> None:
        super().on_start()
        self.send("logout", "POST", f"{USERS}/logout")
        self.tokens = {}
        while not self.environment.shape_class.has_begun():
            gevent.sleep(0.2)
        gevent.sleep(random.uniform(0, ARRIVAL_SECONDS))  # noqa: S311
        self.log_in()


class Administrator(Somebody):
    """Searches users and reads some, in a session with a second factor."""

    fixed_count = ADMINISTRATORS
    wait_time = between(1, 4)
    appointed: ClassVar[list[tuple[str, str]]] = []
    """Addresses of administrators without a password yet, each with the code for the first factor."""
    found = ""
    """The id of a user seen in a list."""

    def on_start(self) -> None:
        super().on_start()
        self.email, first_factor_code = self.appointed.pop()
        body = {"token": self.mailed_token(), "password": PASSWORD}
        self.insist("reset_password", "POST", f"{USERS}/password/reset", body)
        self.log_in()
        app = pyotp.TOTP(self.insist("enroll_totp", "POST", f"{USERS}/me/totp").json()["secret"])
        body = {"code": app.now(), "first_factor_code": first_factor_code}
        answer = self.insist("confirm_totp", "POST", f"{USERS}/me/totp/confirm", body)
        self.recovery_codes: list[str] = answer.json()["recovery_codes"]
        self.log_in_again()

    def log_in_again(self) -> None:
        """With a recovery code."""
        self.tokens = {}
        challenge = self.insist("login", "POST", f"{USERS}/login", self.credentials(), expected=401).json()["challenge"]
        body = {"challenge": challenge, "code": self.recovery_codes.pop()}
        self.tokens = self.insist("login_with_second_factor", "POST", f"{USERS}/login/second-factor", body).json()

    @task(6)
    def list_users(self) -> None:
        criteria = random.choice(({"name": "Kim"}, {"status": "active"}, {"email": secrets.token_hex(1)}))  # noqa: S311
        answer = self.send("list_users", "GET", f"{USERS}?{urlencode(criteria)}")
        if answer and "next" in answer.links:
            answer = self.send("list_users", "GET", answer.links["next"]["url"])
        if answer and (found := answer.json()["users"]):
            self.found = found[-1]["id"]

    @task(3)
    def get_user(self) -> None:
        if self.found:
            self.send("get_user", "GET", f"{USERS}/{self.found}")

    @task(1)
    def list_audit(self) -> None:
        if self.found:
            self.send("list_audit", "GET", f"{USERS}/{self.found}/audit")

    @task(1)
    def refresh_token(self) -> None:
        self.refresh()


def appoint_administrators() -> None:
    """Create the accounts of the administrators.

    Raises:
        CannotJudge: the command failed.
    """
    command = os.environ.get("ADMIN_CREATE") or f"{sys.executable} -m knative.aegis admin create"
    for _ in range(ADMINISTRATORS):
        email = f"admin-{uuid.uuid4().hex[:12]}@example.com"
        done = subprocess.run([*shlex.split(command), email], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotJudge(
                f"Cannot create an administrator: {(done.stderr or done.stdout).strip()}\n"
                f"The command was {command}. Set ADMIN_CREATE to use another."
            )
        code = re.search("[0-9A-Z]{4}(-[0-9A-Z]{4}){5}", done.stdout)
        Administrator.appointed.append((email, code[0] if code else ""))
