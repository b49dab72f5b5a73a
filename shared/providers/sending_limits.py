"""How many mails and texts strangers can make the service send: to one mailbox, and in all."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.http.rate_limits import enforce, take_back
from shared.runtime import metrics
from shared.runtime.problems import ServiceUnavailable, TooManyRequests
from shared.runtime.settings import settings
from shared.text.mailboxes import counted_mailbox

PER_MAILBOX = "10/hour;30/day"
"""Mails to addresses that nobody has verified, whatever function sends them."""


def count_text() -> None:
    """Counts one text of the whole service.

    Raises:
        TooManyRequests: TEXTS_PER_HOUR were sent.
    """
    try:
        enforce("texts", {"service": f"{settings().texts_per_hour}/hour"}, {"service": "all"})
    except TooManyRequests:
        metrics.MESSAGES_WITHHELD.inc("text", "service")
        raise


@contextmanager
def mail_to_unverified(address: str) -> Iterator[bool]:
    """Whether a mail may go to an unverified address. It counts, unless the block raises ServiceUnavailable.

    Mails to verified addresses do not count: their owners get them also when the limit is reached.
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
    except ServiceUnavailable:  # the event comes again
        for limit in counted:
            take_back("mails", *limit)
        raise
