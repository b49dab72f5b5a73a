"""People who use the service: they register, verify, log in, read, change, refresh, leave and come back.

Each request is named after the function that answers it. They ask for nothing that is refused: a failure is one.
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
"""Of what a person cannot go on without."""
HOST = {"Host": os.environ["HOST_HEADER"]} if os.environ.get("HOST_HEADER") else {}
"""Set where the name of the gateway's host leads elsewhere and URL is an address."""
INBOX_URL = os.environ.get("INBOX_URL", "").rstrip("/")
"""Where mails are read; empty where that is the URL of the service."""
AIDS = "inbox"
"""The name of requests that serve the test alone; they are not judged."""
ADMINISTRATORS = 2
ARRIVAL_SECONDS = 5.0
"""Within which all who waited for the same hour log in."""
MAILED_AGAIN = 0.1
"""So large a share of people ask for their first mail again."""


class Somebody(HttpUser):
    """Whoever has an account, a password, and the tokens of a session."""

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
        """The answer of a function; None when it was none of success, nor the expected one."""
        headers = {"Authorization": f"Bearer {self.tokens['access_token']}"} if self.tokens else {}
        with self.client.request(
            method, path, json=body, headers=headers, name=function, timeout=30, catch_response=True
        ) as answer:
            # 0 where there was no answer at all
            if not (200 <= answer.status_code < 300 or answer.status_code == expected):
                return None
            answer.success()
            return answer

    def insist(self, function: str, method: str, path: str, body: Any = None, *, expected: int = 0) -> Any:
        """The answer of a function to who cannot go on without.

        Raises:
            StopUser: it never came.
        """
        for _ in range(TRIES):
            answer = self.send(function, method, path, body, expected=expected)
            if answer is not None:  # one that was expected to be of no success is false
                return answer
            gevent.sleep(1)  # as the service asks for when it is too busy
        raise StopUser

    def mailed_token(self, mails: int = 1) -> str:
        """The token in the newest mail, once there are so many."""
        return self.newest_message(self.email, mails).partition("#token=")[2].split()[0]

    def newest_message(self, to: str, messages: int = 1) -> str:
        """The text of the newest message to an address or number, once there are so many.

        Raises:
            StopUser: they did not come.
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
    """Reads most of the time; logs out and in again, and seldom does what has to be done once."""

    def on_start(self) -> None:
        super().on_start()
        self.join()

    def join(self) -> None:
        """What a new user goes through before anything else."""
        self.email = f"{uuid.uuid4().hex}@example.com"
        self.tokens = {}
        self.has_asked_for_code = self.has_exported = False
        self.insist("register", "POST", USERS, self.credentials())
        token = self.mailed_token()
        if random.random() < MAILED_AGAIN and self.send(  # noqa: S311
            "request_email_verification", "POST", f"{USERS}/email/resend", {"email": self.email}
        ):
            token = self.mailed_token(mails=2)  # it replaces the one before
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
        self.log_in()  # the session before goes on
        if not (answer := self.send("list_sessions", "GET", f"{USERS}/me/sessions")):
            return
        for session in answer.json()["sessions"]:
            if not session["current"]:
                self.send("revoke_session", "DELETE", f"{USERS}/me/sessions/{session['id']}")

    @task(1)
    def request_phone_code_and_verify_phone(self) -> None:
        if self.has_asked_for_code:  # an account may do so five times an hour
            return
        self.has_asked_for_code = True
        phone = f"+8210{secrets.choice('2467')}{secrets.randbelow(10**7):07}"
        if self.send("request_phone_code", "POST", f"{USERS}/me/phone", {"phone": phone}):
            code = re.search(r"\b\d{6}\b", self.newest_message(phone))
            self.send("verify_phone", "POST", f"{USERS}/me/phone/verify", {"code": code and code[0]})

    @task(1)
    def export_data(self) -> None:
        if not self.has_exported:  # ten times an hour
            self.has_exported = True
            self.send("export_data", "GET", f"{USERS}/me/export")

    @task(1)
    def withdraw(self) -> None:
        """Leaves; somebody new comes in their place."""
        self.send("withdraw", "POST", f"{USERS}/me/withdrawal", {"password": PASSWORD})
        self.join()


class Commuter(Person):
    """Has an account, and waits with all the others for the hour at which they log in."""

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
    """Searches users, in a session with a second factor, and looks into some."""

    fixed_count = ADMINISTRATORS
    wait_time = between(1, 4)
    appointed: ClassVar[list[tuple[str, str]]] = []
    """Addresses of accounts that have the role and no password yet, each with the code for its first factor."""
    found = ""
    """The id of a user whom they have seen in a list."""

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
    """Makes the accounts of the administrators.

    Raises:
        CannotJudge: the command that should make them fails.
    """
    command = os.environ.get("ADMIN_CREATE") or f"{sys.executable} -m knative.aegis admin create"
    for _ in range(ADMINISTRATORS):
        email = f"admin-{uuid.uuid4().hex[:12]}@example.com"
        done = subprocess.run([*shlex.split(command), email], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotJudge(
                f"No administrator can be made: {(done.stderr or done.stdout).strip()}\n"
                f"ADMIN_CREATE is the command that makes one: {command}"
            )
        code = re.search("[0-9A-Z]{4}(-[0-9A-Z]{4}){5}", done.stdout)
        Administrator.appointed.append((email, code[0] if code else ""))
