"""People who use the service: they register, verify, log in, read, change, refresh, leave and come back.

Each request is named after the function that answers it.
"""

import os
import uuid
from typing import Any

import gevent
from locust import HttpUser, between, task
from locust.exception import StopUser

PASSWORD = "correct horse battery staple"  # noqa: S105
USERS = "/api/v1/users"
MAIL_TRIES = 100
TRIES = 10
"""Of what a person cannot go on without."""
HOST = {"Host": os.environ["HOST_HEADER"]} if os.environ.get("HOST_HEADER") else {}
"""Set where the name of the gateway's host leads elsewhere and URL is an address."""
AIDS = "inbox"
"""The name of requests that serve the test alone; they are not judged."""


class Person(HttpUser):
    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        """Joins: what a new user goes through before anything else."""
        self.client.headers.update(HOST)
        self.email = f"{uuid.uuid4().hex}@example.com"
        self.tokens: dict[str, Any] = {}
        if not self.send("register", "POST", USERS, {"email": self.email, "password": PASSWORD}):
            raise StopUser
        verification = {"token": self.mailed_token(), "password": PASSWORD}
        for _ in range(TRIES):
            if self.send("verify_email", "POST", f"{USERS}/email/verify", verification):
                break
            gevent.sleep(1)  # as the service asks for when it is too busy
        self.log_in()

    @task(20)
    def get_profile(self) -> None:
        self.send("get_profile", "GET", f"{USERS}/me")

    @task(1)
    def update_profile(self) -> None:
        self.send("update_profile", "PATCH", f"{USERS}/me", {"name": f"Kim {uuid.uuid4().hex[:4]}"})

    @task(1)
    def list_sessions(self) -> None:
        self.send("list_sessions", "GET", f"{USERS}/me/sessions")

    @task(3)
    def refresh_token(self) -> None:
        body = {"refresh_token": self.tokens.get("refresh_token", "")}
        if answer := self.send("refresh_token", "POST", f"{USERS}/token/refresh", body):
            self.tokens = answer.json()

    @task(2)
    def logout_and_login(self) -> None:
        self.send("logout", "POST", f"{USERS}/logout")
        self.log_in()

    def log_in(self) -> None:
        for _ in range(TRIES):
            if answer := self.send("login", "POST", f"{USERS}/login", {"email": self.email, "password": PASSWORD}):
                self.tokens = answer.json()
                return
            gevent.sleep(1)
        raise StopUser

    def send(self, function: str, method: str, path: str, body: Any = None) -> Any:
        """The answer of a function; None when it was none of success."""
        headers = {"Authorization": f"Bearer {self.tokens['access_token']}"} if self.tokens else {}
        answer = self.client.request(method, path, json=body, headers=headers, name=function, timeout=30)
        # 0 where there was no answer at all
        return answer if 200 <= answer.status_code < 300 else None

    def mailed_token(self) -> str:
        """The token from the mail, once it is in the inbox."""
        for _ in range(MAIL_TRIES):
            messages = self.client.get(
                f"/inbox?to={self.email}", headers={"Accept": "application/json"}, name=AIDS, timeout=30
            )
            if messages.status_code == 200 and messages.json():
                return str(messages.json()[0]["text"]).partition("#token=")[2].strip()
            gevent.sleep(0.3)
        raise StopUser
