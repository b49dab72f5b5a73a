"""Sends events again that a broker may have lost: `aegis events replay`."""

import re
from datetime import UTC, datetime, timedelta

from knative.terminal import Refused
from shared.events import outbox
from shared.postgresql import partitions

HELP = f"""\
Lets the relay send all events again that have occurred since a time, in order, after those that wait.
For a broker that has lost a part of its topic and does not show it; one that comes back without the
topic, or with fewer events in it, is noticed by the relay itself.

It does no harm: functions ignore what they have processed. The outbox keeps events for {partitions.KEPT.days} days.

  aegis events replay --since 2h
  aegis events replay --since 2026-01-31T09:30Z

The settings are those of the environment (DATABASE_URL); without, those of the service that
make up runs on DATA_DIR (.local)."""

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def replay(since: str) -> str:
    """Marks events as not sent. Returns what was done.

    Raises:
        Refused: the time cannot be read, is to come, or is before all that the outbox still has.
    """
    now = datetime.now(UTC)
    start = _time(since, now)
    if start > now:
        raise Refused(f"Nothing was changed. {start:%Y-%m-%d %H:%M:%SZ} is still to come.")
    if start < now - partitions.KEPT:
        raise Refused(
            f"Nothing was changed. The outbox keeps events for {partitions.KEPT.days} days, "
            f"and {since} is before that.\n"
            f"Take --since {partitions.KEPT.days - 1}d for all that it has."
        )
    count = outbox.send_again(start)
    return f"{count} events since {start:%Y-%m-%d %H:%M:%SZ} will be sent again."


def _time(text: str, now: datetime) -> datetime:
    """A time as 2026-01-31T09:30Z (ISO 8601; UTC where it names no other zone), or so long ago as 90m, 2h, 3d."""
    if found := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(
            f"Nothing was changed. {text!r} is neither a time as 2026-01-31T09:30Z nor an age as 90m, 2h, 3d."
        ) from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
