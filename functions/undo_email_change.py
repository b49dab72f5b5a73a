"""Undo a change of the e-mail address, with the token from the mail to the old address."""

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import DBAPIError

from shared.events.outbox import announce
from shared.events.types import EmailChangeUndone, UserPurged
from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import sessions
from shared.identity.tokens import hash_token
from shared.identity.verifications import InvalidLink
from shared.postgresql.tables import account, challenge, former_email, phone_verification, verification
from shared.postgresql.transactions import is_duplicate, transaction
from shared.runtime import logs
from shared.text.fields import OpaqueToken, RequestBody
from shared.users import profiles


class UndoneChange(RequestBody):
    token: OpaqueToken


@http_function(
    "POST",
    "/api/v1/users/email/undo",
    status=204,
    scaling=Scaling("database", max_pods=1),  # hardly ever called
    problems=[InvalidLink],
)
def undo_email_change(body: UndoneChange) -> None:
    """Undo a change of the e-mail address.

    The token from the mail to the old address works once, within seven days of the change. The old address is restored,
    all sessions end, and all open links and codes become invalid, including links that undo later changes. The password
    and factors stay as they are, and no session starts: set a new password next.
    """
    of_link = (
        select(*former_email.c["id", "account_id", "email", "canonical_email", "replaced_at"])
        .select_from(account.join(former_email))
        .where(
            former_email.c.token_hash == hash_token(body.token.get_secret_value()),
            former_email.c.expires_at > func.now(),
        )
        .with_for_update(of=account, key_share=True)
    )
    try:
        with transaction() as connection:
            found = connection.execute(of_link).first()
            if found is None:
                raise InvalidLink
            user_id = found.account_id
            logs.user_id.set(str(user_id))
            these = (former_email.c.account_id == user_id, former_email.c.replaced_at >= found.replaced_at)
            undone = connection.scalars(delete(former_email).where(*these).returning(former_email.c.id)).all()
            if found.id not in undone:
                raise InvalidLink  # it was used while this request waited
            # Another account may be waiting to verify this address; the caller has proved access to the mailbox.
            pending = delete(account).where(
                account.c.canonical_email == found.canonical_email, account.c.status == "pending"
            )
            if removed := connection.scalar(pending.returning(account.c.id)):
                announce(connection, UserPurged(user_id=removed))
            old = {"email": found.email, "canonical_email": found.canonical_email}
            connection.execute(
                update(account).where(account.c.id == user_id).values(new_email=None, new_canonical_email=None, **old)
            )
            for table in (verification, challenge, phone_verification):
                connection.execute(delete(table).where(table.c.account_id == user_id))
            sessions.end_all(connection, user_id)
            announce(connection, EmailChangeUndone(user_id=user_id))
            profiles.refresh(connection, user_id)
    except DBAPIError as error:
        if is_duplicate(error):
            raise InvalidLink from None
        raise
