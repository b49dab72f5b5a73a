"""Nothing that was answered or committed is lost, doubled or out of order, whatever dies."""

import itertools
import json
from collections import Counter

import pytest

from shared.events.types import EmailVerified, LoggedIn, LoggedOut, ProfileUpdated, RegistrationRepeated, UserRegistered
from shared.identity import sessions
from shared.users.profiles import CACHE_SECONDS
from tests.conftest import id_of
from tests.faults.conftest import Run
from tests.faults.doubles import doubles, is_explained
from tests.faults.evidence import by_user
from tests.faults.people import outcomes
from tests.faults.service import DATA

ANNOUNCED = {
    "register": {UserRegistered.type, RegistrationRepeated.type},
    "verify_email": {EmailVerified.type},
    "login": {LoggedIn.type},
    "update_profile": {ProfileUpdated.type},
    "logout": {LoggedOut.type},
    "get_profile": set(),
    "refresh_token": set(),
}
"""The events of which a request that takes effect announces one."""

MAX_THREADS = 64
MAX_MEGABYTES = 400
"""Redis may keep 256 MB and the broker all events; a function of ours takes less than 100."""


@pytest.fixture(autouse=True)
def nothing_broke_in_the_load(run: Run) -> None:
    assert run.load.errors == []


def test_every_process_was_killed_and_the_load_was_real(run: Run) -> None:
    assert run.service.processes().keys() == {kill.name for kill in run.service.kills}
    succeeded = Counter(ask.function for ask in run.load.asks if ask.succeeded)
    assert succeeded.keys() == ANNOUNCED.keys()


def test_every_account_is_as_its_user_was_told(run: Run) -> None:
    told = {person.email: person for person in run.load.people if person.done("register")}
    accounts = run.evidence.accounts
    assert told.keys() <= accounts.keys()
    for email, person in told.items():
        assert accounts[email].status == "active" or not person.is_verified, email
        assert accounts[email].status == "pending" or person.done("verify_email") or person.unanswered("verify_email")
        assert accounts[email].name == person.name or person.unanswered("update_profile"), email


def test_every_session_is_as_its_user_was_told(run: Run) -> None:
    known = run.evidence.sessions
    for person in run.load.people:
        going_on = {id_of(tokens): tokens for tokens in person.sessions}
        assert {id_ for id_ in going_on if known[id_].ended_at is None} == going_on.keys()
        assert {id_ for id_ in person.ended if known[id_].ended_at} == set(person.ended)
        current = {sessions.hash_refresh_token(tokens["refresh_token"]) for tokens in person.sessions}
        assert current <= run.evidence.unused_refresh_tokens


def test_a_request_that_was_sent_again_took_effect_once(run: Run) -> None:
    found = Counter(row.account_id for row in run.evidence.sessions.values())
    for person in run.load.people:
        known = run.evidence.accounts.get(person.email)
        sessions_ = found[known.id] if known else 0
        assert person.done("login") <= sessions_ <= person.done("login") + person.unanswered("login"), person.email
    events = Counter((event.request_id, event.type) for event in run.evidence.events)
    assert {event: count for event, count in events.items() if count > 1} == {}


def test_every_change_that_was_answered_has_its_event_and_no_other_has_one(run: Run) -> None:
    announced = {event.request_id: event.type for event in run.evidence.events}
    for ask in run.load.asks:
        type_ = announced.pop(ask.id, None)
        if type_ is None:
            assert not (ask.took_effect and ANNOUNCED[ask.function]), ask
        else:
            assert type_ in ANNOUNCED[ask.function], ask
            assert ask.took_effect or ask.gave_up, ask
    assert announced == {}


def test_every_committed_event_was_handled_by_each_function_that_wants_it(run: Run) -> None:
    assert None not in run.settled_after
    assert [each for each in run.evidence.handled if not each.done_at] == []
    assert {str(event.id) for event in run.evidence.events} == run.evidence.audited
    mailed = {mail["to"] for mail in run.evidence.mails}
    assert {person.email for person in run.load.people if person.done("register")} <= mailed


def test_nobody_got_a_second_mail_for_one_event_unless_a_kill_explains_it(run: Run) -> None:
    assert [double for double in doubles(run) if not is_explained(run, double)] == []


def test_each_users_events_were_handled_in_order(run: Run) -> None:
    """Each began when the one before was done, so none overtook another on its way or in the function."""
    for handled in by_user(run.evidence.handled).values():
        for one, next_ in itertools.pairwise(handled):
            assert one.done_at
            assert next_.claimed_at
            assert one.done_at <= next_.claimed_at, (one, next_)


def test_each_users_events_are_in_the_topic_in_order(run: Run) -> None:
    """In the order of the outbox, where each comes first: it may come again."""
    expected: dict[bytes, list[str]] = {}
    for event in run.evidence.events:
        expected.setdefault(str(event.subject).encode(), []).append(str(event.id))
    published: dict[bytes, dict[str, None]] = {}
    for key, event_id in run.evidence.published:
        published.setdefault(key, {})[event_id] = None
    assert {key: list(ids) for key, ids in published.items()} == expected


def test_the_outbox_is_empty_and_nothing_is_a_dead_letter(run: Run) -> None:
    assert run.evidence.unsent == 0
    assert run.evidence.dead_letters == []


def test_callers_saw_nothing_but_success_and_word_to_come_again(run: Run) -> None:
    replaced = {double.to for double in doubles(run)}  # a second mail voids the link in the first
    unexpected = {
        ask.id: (ask.function, ask.attempts)
        for person in run.load.people
        for ask in person.asks
        if not ask.took_effect
        and not (ask.function == "verify_email" and ask.status == 400 and person.email in replaced)
    }
    assert unexpected == {}
    assert not {outcome for outcome in outcomes(run.load.asks) if outcome.startswith("5")} - {"503"}


def test_a_read_is_never_older_than_the_cache_keeps_it(run: Run) -> None:
    assert [seconds for seconds in run.load.stale_reads if seconds > CACHE_SECONDS + 1] == []


def test_no_process_has_logged_a_fault_of_ours(run: Run) -> None:
    faults = []
    for log in sorted((DATA / "logs").glob("*.log")):
        for line in log.read_text("utf-8", "replace").splitlines():
            if "Traceback" in line or (line.startswith("{") and json.loads(line)["level"] in ("ERROR", "CRITICAL")):
                faults.append(f"{log.stem}: {line}")
    assert faults == []


def test_no_process_grows_with_what_dies_around_it(run: Run) -> None:
    assert {name: count for name, count in run.service.threads.items() if count > MAX_THREADS} == {}
    assert {name: size for name, size in run.service.megabytes.items() if size > MAX_MEGABYTES} == {}
