"""Changes made by a session: one transaction that locks the account."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Connection, select

from shared.identity import authentication, factors
from shared.identity.access_tokens import Caller
from shared.identity.live_sessions import active
from shared.postgresql.pool import prepared
from shared.postgresql.tables import account, session
from shared.postgresql.transactions import transaction
from shared.runtime.problems import Unauthenticated

# Built once, because building a statement takes longer than executing it.
_GOES_ON = prepared(active().with_for_update(of=[account, session], key_share=True))


@contextmanager
def change(caller: Caller, *others: UUID) -> Iterator[Connection]:
    """Open a transaction that locks the caller's account, and check that their session may still change it.

    Since the request came in, the owner may have set another password or added a factor, or an administrator may have
    ended the session.

    Args:
        others: more accounts to lock. Locks are always taken in the same order, so that changes cannot deadlock.

    Raises:
        Unauthenticated: the session has ended, or the account is no longer active.
        ReauthenticationRequired: the operation requires the strongest factor of the account, which the session has not
            passed.
        ServiceUnavailable: see `transaction`.
    """
    with transaction() as connection:
        if others:
            accounts = select(account.c.id).where(account.c.id.in_([caller.user_id, *others])).order_by(account.c.id)
            connection.execute(accounts.with_for_update(key_share=True))
        parameters = {"user_id": caller.user_id, "session_id": caller.session_id}
        if connection.execute(_GOES_ON, parameters).first() is None:
            raise Unauthenticated
        if authentication.takes_strongest_factor.get():
            # A separate statement: the one that waited for the lock does not see what was committed meanwhile.
            factors.require_strongest(connection, caller)
        yield connection
