"""What stands in the database, the topic and the inbox when all has settled."""

import json
import os
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, exists, func, select

from knative.local.inbox import KEPT
from shared.events import kafka
from shared.events.types import SOURCE
from shared.postgresql.tables import account, audit, dead_letter, outbox, processed_event, refresh_token, session
from shared.postgresql.transactions import transaction
from shared.runtime.manifests import triggers
from shared.runtime.resource_names import function_name
from tests.servers import read_topic


@dataclass(frozen=True)
class Handled:
    """An event, and a function that its Trigger leads to; when that took it, if it has."""

    function: str
    event: Row[Any]
    claimed_at: datetime | None
    done_at: datetime | None


@dataclass(frozen=True)
class Evidence:
    accounts: dict[str, Row[Any]]
    """By e-mail address."""
    sessions: dict[str, Row[Any]]
    """By id."""
    unused_refresh_tokens: set[bytes]
    """Hashed."""
    events: list[Row[Any]]
    """All that were committed, in the order of the outbox."""
    unsent: int
    handled: list[Handled]
    """In the order of the outbox."""
    audited: set[str]
    """The ids of events."""
    published: list[tuple[bytes, str]]
    """Key and event id of each record in the topic, in the order of its partition."""
    dead_letters: list[Row[Any]]
    mails: list[dict[str, str]]
    """Oldest first."""


def collect() -> Evidence:
    with transaction() as connection:
        accounts = {row.email: row for row in connection.execute(select(account))}
        sessions = {str(row.id): row for row in connection.execute(select(session))}
        unused = select(refresh_token.c.token_hash).where(refresh_token.c.used_at.is_(None))
        unused_refresh_tokens = set(connection.scalars(unused))
        audited = {str(id_) for id_ in connection.scalars(select(audit.c.event_id))}
        dead_letters = list(connection.execute(select(dead_letter)))
    events = committed()
    topic = read_topic(lambda records: len(records) >= len(events))
    published = [(record.key, kafka.to_attributes(record.headers)["id"]) for record in topic]
    return Evidence(
        accounts,
        sessions,
        unused_refresh_tokens,
        events,
        unsent(),
        handled(events),
        audited,
        published,
        dead_letters,
        mails(),
    )


def committed() -> list[Row[Any]]:
    with transaction() as connection:
        return list(connection.execute(select(outbox).order_by(outbox.c.position)))


def unsent() -> int:
    with transaction() as connection:
        return connection.scalar(select(func.count()).select_from(outbox).where(outbox.c.sent_at.is_(None))) or 0


def was_sent_since(moment: float) -> bool:
    """moment: in seconds since 1970."""
    since = datetime.fromtimestamp(moment, UTC)
    with transaction() as connection:
        return bool(connection.scalar(select(exists().where(outbox.c.sent_at > since))))


def handled(events: Iterable[Row[Any]]) -> list[Handled]:
    """Each event with each function that wants it."""
    with transaction() as connection:
        rows = connection.execute(select(processed_event)).all()
    rows_ = {(row.function, row.event_id): row for row in rows}
    found = []
    for event in events:
        for trigger in triggers():
            if trigger.matches({"type": event.type}):
                function = function_name(trigger.service)
                row = rows_.get((function, f"{SOURCE} {event.id}"))
                times_ = (row.claimed_at, row.done_at) if row else (None, None)
                found.append(Handled(function, event, *times_))
    return found


def has_settled(until: float) -> bool:
    """Whether every event from before is sent, and handled by each function that wants it.

    until: in seconds since 1970.
    """
    events = [event for event in committed() if event.occurred_at.timestamp() < until]
    return all(event.sent_at for event in events) and all(each.done_at for each in handled(events))


def mails() -> list[dict[str, str]]:
    request = urllib.request.Request(f"{os.environ['PUBLIC_URL']}/inbox", headers={"Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        newest_first: list[dict[str, str]] = json.load(response)
    assert len(newest_first) < KEPT, "the inbox has forgotten mails: send fewer requests"
    return newest_first[::-1]


def by_user(each: Iterable[Handled]) -> dict[tuple[str, str], list[Handled]]:
    """What each function has handled of each user, in the order of the outbox."""
    found: dict[tuple[str, str], list[Handled]] = defaultdict(list)
    for one in each:
        found[one.function, str(one.event.subject)].append(one)
    return found
