"""Limits on the mails and texts that anyone can make the service send, per mailbox and in total."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.http.rate_limits import enforce, take_back
from shared.runtime import metrics
from shared.runtime.problems import ServiceUnavailable, TooManyRequests
from shared.runtime.settings import settings
from shared.text.mailboxes import counted_mailbox

PER_MAILBOX = "10/hour;30/day"
"""Mails to an unverified address, of all kinds together."""


def count_text() -> None:
    """Count one text of the whole service.

    Raises:
        TooManyRequests: TEXTS_PER_HOUR is reached.
    """
    try:
        enforce("texts", {"service": f"{settings().texts_per_hour}/hour"}, {"service": "all"})
    except TooManyRequests:
        metrics.MESSAGES_WITHHELD.inc("text", "service")
        raise


@contextmanager
def mail_to_unverified(address: str) -> Iterator[bool]:
    """Yield whether a mail may go to an unverified address. It counts, unless the block raises ServiceUnavailable.

    Mails to verified addresses do not count: they are sent even when the limit is reached.
    """
    mailbox = {"mailbox": PER_MAILBOX}, {"mailbox": counted_mailbox(address)}
    service = {"service": f"{settings().unverified_mails_per_hour}/hour"}, {"service": "all"}
    counted: list[tuple[dict[str, str], dict[str, str]]] = []
    for whose, (limits, subjects) in {"mailbox": mailbox, "service": service}.items():
        try:
            enforce("mails", limits, subjects)
        except TooManyRequests:
            metrics.MESSAGES_WITHHELD.inc("mail", whose)
            for limit in counted:
                take_back("mails", *limit)
            yield False
            return
        counted.append((limits, subjects))
    try:
        yield True
    except ServiceUnavailable:  # the event will be delivered again
        for limit in counted:
            take_back("mails", *limit)
        raise
