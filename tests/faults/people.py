"""People who use the service while its processes die: each request is sent again until it is answered.

They are the callers that the API asks for: a request that brought no answer, or one that says to come again, is
repeated after Retry-After, later each time, and a POST with the same Idempotency-Key.
"""

import itertools
import queue
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import urllib3

from shared.framework.registry import HTTP_FUNCTIONS
from tests.conftest import PASSWORD, bearer, id_of, inbox

THREADS = 128
"""More than requests that wait at once in an outage, so that the others come at their times."""
PATIENCE_SECONDS = 90.0
ANSWER_SECONDS = 15.0
"""The longest route has ten."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
"""Between attempts; doubled each time, and longer where Retry-After says so."""
LOOK_AGAIN_SECONDS = 0.5

NEW = 0.12
"""So many of all requests are of somebody new."""
NEVER_VERIFIES = 0.4
"""So many who register never follow the link: what makes a second mail of one event would reach them."""


@dataclass
class Ask:
    """A request, with what came of each attempt at it."""

    function: str
    id: str
    """X-Request-Id, which its event bears, and Idempotency-Key."""
    started: float
    attempts: list[str] = field(default_factory=list)
    """Of each: the status of the answer, or why there was none."""
    answer: Any = None
    seconds: float = 0.0
    """Until the last answer."""

    @property
    def status(self) -> int:
        """Of the last answer; 0 for none."""
        last = self.attempts[-1] if self.attempts else ""
        return int(last) if last.isdigit() else 0

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status < 300

    @property
    def gave_up(self) -> bool:
        return comes_again(self.attempts[-1])

    @property
    def was_done_before(self) -> bool:
        """A log-out whose answer was lost: its session, which was to ask again, had ended."""
        return self.function == "logout" and self.status == 401 and len(self.attempts) > 1

    @property
    def took_effect(self) -> bool:
        return self.succeeded or self.was_done_before


def comes_again(outcome: str) -> bool:
    """Whether an attempt with this outcome is repeated: broken, unavailable, or still under way elsewhere."""
    return not outcome.isdigit() or outcome in ("409", "503")


@dataclass
class Person:
    """Somebody, and what they may rely on from the answers that they got."""

    email: str
    name: str
    verifies: bool
    is_verified: bool = False
    token: str = ""
    """Of the newest mail that they have seen."""
    renamed_at: float = 0.0
    """When the name was confirmed; while nothing was, the moment of registration."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """The tokens of those that go on."""
    ended: list[str] = field(default_factory=list)
    """The ids of those that have ended."""
    asks: list[Ask] = field(default_factory=list)

    def done(self, function: str) -> int:
        """How often a function has said that it did what this person asked for."""
        return sum(ask.function == function and ask.took_effect for ask in self.asks)

    def unanswered(self, function: str) -> int:
        """How often this person gave up on a function: it may have done that or not."""
        return sum(ask.function == function and ask.gave_up for ask in self.asks)


class Load:
    """A steady rate of requests, by as many people as it takes; each person does one thing after the other."""

    def __init__(self, url: str, rate: float, seed: int) -> None:
        """rate: requests a second, not counting what is sent again."""
        self.people: list[Person] = []
        self.stale_reads: list[float] = []
        """Of each read that showed a profile from before a change: how long ago that was confirmed, in seconds."""
        self.left_out = 0
        """Requests that were due when everybody waited for an answer."""
        self.errors: list[BaseException] = []
        """What broke in the load itself."""
        self._url = url
        self._rate = rate
        self._random = random.Random(seed)  # noqa: S311  # chooses what people do
        self._http = urllib3.PoolManager(maxsize=THREADS, retries=False, timeout=ANSWER_SECONDS)
        self._turns: queue.Queue[bool] = queue.Queue(maxsize=THREADS // 16)
        self._lock = threading.Lock()
        self._idle: list[Person] = []
        self._waiting: list[Person] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        self._threads += [
            threading.Thread(target=target, daemon=True) for target in (self._give_turns, self._look_into_inbox)
        ]

    @property
    def asks(self) -> list[Ask]:
        return [ask for person in self.people for ask in person.asks]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets everybody finish what they have asked for."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _give_turns(self) -> None:
        started = time.monotonic()
        for number in itertools.count():
            if self._stopped.wait(max(0.0, started + number / self._rate - time.monotonic())):
                break
            try:
                self._turns.put_nowait(True)
            except queue.Full:  # what waits must not come in a burst later
                self.left_out += 1
        for _ in range(THREADS):
            self._turns.put(False)

    def _work(self) -> None:
        while self._turns.get():
            try:
                self._take_turn()
            except BaseException as error:
                self.errors.append(error)

    def _take_turn(self) -> None:
        with self._lock:
            is_new = not self._idle or self._random.random() < NEW
            person = self._new_person() if is_new else self._idle.pop(self._random.randrange(len(self._idle)))
            choice = self._random.random()
        if is_new:
            self._register(person)
        elif not person.is_verified:
            self._verify(person)
        elif not person.sessions or choice < 0.10:
            self._log_in(person)
        else:
            session = person.sessions[-1]
            if choice < 0.50:
                self._rename(person, session)
            elif choice < 0.70:
                self._read(person, session)
            elif choice < 0.82:
                self._refresh(person, session)
            elif choice < 0.94:
                self._log_out(person, session)
            else:
                self._register(person)
        with self._lock:
            if person.is_verified:
                self._idle.append(person)
            elif person.verifies:
                self._waiting.append(person)

    def _new_person(self) -> Person:
        person = Person(f"{uuid.uuid4().hex}@example.com", new_name(), self._random.random() > NEVER_VERIFIES)
        self.people.append(person)
        return person

    def _register(self, person: Person) -> None:
        body = {"email": person.email, "password": PASSWORD, "name": person.name, "locale": "en"}
        self._send(person, "register", body)

    def _verify(self, person: Person) -> None:
        ask = self._send(person, "verify_email", verification(person.token))
        person.is_verified = ask.succeeded

    def _log_in(self, person: Person) -> None:
        ask = self._send(person, "login", {"email": person.email, "password": PASSWORD})
        if ask.succeeded:
            person.sessions.append(ask.answer)

    def _rename(self, person: Person, session: dict[str, Any]) -> None:
        name = new_name()
        ask = self._send(person, "update_profile", {"name": name}, session)
        if ask.succeeded:
            person.name, person.renamed_at = name, time.monotonic()

    def _read(self, person: Person, session: dict[str, Any]) -> None:
        ask = self._send(person, "get_profile", None, session)
        if ask.succeeded and ask.answer["name"] != person.name:
            self.stale_reads.append(time.monotonic() - person.renamed_at)

    def _refresh(self, person: Person, session: dict[str, Any]) -> None:
        body = {"refresh_token": session["refresh_token"]}
        ask = self._send(person, "refresh_token", body)
        if ask.succeeded:
            person.sessions[-1] = ask.answer

    def _log_out(self, person: Person, session: dict[str, Any]) -> None:
        if self._send(person, "logout", None, session).took_effect:
            person.ended.append(id_of(person.sessions.pop()))

    def _send(
        self, person: Person, function: str, body: Mapping[str, Any] | None, session: dict[str, Any] | None = None
    ) -> Ask:
        ask = Ask(function, str(uuid.uuid4()), time.monotonic())
        person.asks.append(ask)
        operation = HTTP_FUNCTIONS[function]
        headers = {"X-Request-Id": ask.id, **(bearer(session) if session else {})}
        if operation.keeps_answers:
            headers["Idempotency-Key"] = f'"{ask.id}"'
        pause = FIRST_PAUSE_SECONDS
        while True:
            retry_after = 0.0
            try:
                response = self._http.request(operation.method, self._url + operation.path, json=body, headers=headers)
            except urllib3.exceptions.HTTPError as error:
                outcome = type(error).__name__
            else:
                outcome = str(response.status)
                ask.answer = response.json() if response.data else None
                if comes_again(outcome):
                    retry_after = float(response.headers["Retry-After"])
            ask.attempts.append(outcome)
            ask.seconds = time.monotonic() - ask.started
            if not comes_again(outcome) or ask.seconds > PATIENCE_SECONDS:
                return ask
            time.sleep(max(pause, retry_after) * (1 + self._random.random() / 4))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _look_into_inbox(self) -> None:
        """Lets those who wait for a mail go on once they have one that they have not tried yet."""
        while not self._stopped.wait(LOOK_AGAIN_SECONDS):
            with self._lock:
                waiting = list(self._waiting)
            for person in waiting:
                if self._stopped.is_set():
                    return
                try:
                    mails = inbox(person.email)
                except (OSError, HTTPException, ValueError):  # it dies as well, perhaps half-way through an answer
                    continue
                token = mails[0]["text"].partition("#token=")[2].strip() if mails else ""
                if token and token != person.token:
                    person.token = token
                    with self._lock:
                        self._waiting.remove(person)
                        self._idle.append(person)


def verification(token: str) -> dict[str, str]:
    return {"token": token, "password": PASSWORD}


def new_name() -> str:
    return f"Kim {uuid.uuid4().hex}"


def outcomes(asks: list[Ask]) -> Counter[str]:
    """How often each status came, or no answer for each reason, over all attempts."""
    return Counter(outcome for ask in asks for outcome in ask.attempts)
