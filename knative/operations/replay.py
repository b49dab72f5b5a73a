"""Send events again that Kafka may have lost: `aegis events replay`."""

import re
from datetime import UTC, datetime, timedelta

from knative.terminal import Refused, Result
from shared.events import outbox
from shared.postgresql import partitions

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def replay(since: str) -> Result:
    """Mark events as not sent. Return what was done.

    Raises:
        Refused: the time is malformed, in the future, or older than the outbox.
    """
    now = datetime.now(UTC)
    start = _time(since, now)
    if start > now:
        raise Refused(f"Nothing was changed. {start:%Y-%m-%d %H:%M:%SZ} is in the future.")
    if start < now - partitions.KEPT:
        raise Refused(
            f"Nothing was changed. The outbox keeps events for {partitions.KEPT.days} days, "
            f"and {since} is before that.\n"
            f"To send nearly all events that it has: --since {partitions.KEPT.days - 1}d"
        )
    count = outbox.send_again(start)
    return Result(
        f"{count} events since {start:%Y-%m-%d %H:%M:%SZ} will be sent again.",
        {"since": start.isoformat(), "events": count},
    )


def _time(text: str, now: datetime) -> datetime:
    """Parse a time such as 2026-01-31T09:30Z (ISO 8601, UTC by default) or an age such as 90m, 2h or 3d."""
    if found := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return now - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(
            f"Nothing was changed. {text!r} is neither a time such as 2026-01-31T09:30Z nor an age such as 2h."
        ) from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
