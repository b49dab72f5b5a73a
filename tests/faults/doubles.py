"""Mails that came twice for one event, and the kills that explain them."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from shared.events.types import RegistrationRepeated, UserRegistered
from shared.framework.event_function import CLAIM_LIFETIME
from shared.providers.mail_texts import texts

if TYPE_CHECKING:
    from tests.faults.conftest import Run

MAILED = {UserRegistered.type: "registered", RegistrationRepeated.type: "registration_repeated"}
"""The events of this load that call for a mail, with its section."""
FORGETFUL = ("send_email", "site")
"""Killed after the provider took a mail, and before the mark on its event, or before its answer: it is sent again."""
WINDOW_SECONDS = (1.0, 2.0)
"""So long before and after the provider dated a mail such a kill counts."""
AWAY_SECONDS = 10.0
"""So long after a kill PostgreSQL may be away; the mark on an event then waits for it."""


@dataclass(frozen=True)
class Double:
    """A mail more than there are events that call for it."""

    to: str
    subject: str
    earlier: tuple[float, ...]
    """When those before it were sent, in seconds since 1970."""


def doubles(run: "Run") -> list[Double]:
    addresses = {row.id: row.email for row in run.evidence.accounts.values()}
    called_for = Counter(
        (addresses[event.subject], texts()[MAILED[event.type]]["en"]["subject"])
        for event in run.evidence.events
        if event.type in MAILED
    )
    found = []
    sent: dict[tuple[str, str], list[float]] = {}
    for mail in run.evidence.mails:
        this = (mail["to"], mail["subject"])
        earlier = sent.setdefault(this, [])
        if len(earlier) >= called_for[this]:
            found.append(Double(*this, tuple(earlier)))
        earlier.append(datetime.fromisoformat(mail["sent_at"]).timestamp())
    return found


def is_explained(run: "Run", double: Double) -> bool:
    """Whether something that forgets was killed as one of the mails before was sent, or waited for its mark."""
    before, after = WINDOW_SECONDS
    for sent_at in double.earlier:
        waits = any(
            kill.name == "postgresql" and -AWAY_SECONDS < kill.at - sent_at < after for kill in run.service.kills
        )
        until = CLAIM_LIFETIME.total_seconds() if waits else after
        if any(kill.name in FORGETFUL and -before < kill.at - sent_at < until for kill in run.service.kills):
            return True
    return False
