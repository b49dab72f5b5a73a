"""Start setting up an authenticator app as a second factor."""

import base64
import secrets

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from typing_extensions import TypedDict

from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.second_factors import SECRET_BYTES, seal_secret
from shared.postgresql.tables import account, totp
from shared.runtime.problems import Problem


class TotpEnrolment(TypedDict):
    secret: str
    uri: str


class TotpAlreadyEnabled(Problem):
    status = 409
    title = "The account already has an authenticator app"
    detail = "Nothing was changed. Remove it first, then set up another."


@http_function(
    "POST",
    "/api/v1/users/me/totp",
    status=201,
    recent_login=True,
    problems=[TotpAlreadyEnabled],
)
def enroll_totp(caller: Caller) -> TotpEnrolment:
    """Start setting up an authenticator app.

    Show `uri` as a QR code, or `secret` (base 32) to type in. The app then shows a new six-digit code every 30 seconds
    (TOTP, RFC 6238). Confirm one within 15 minutes; until then, logging in requires no code. Calling this again before
    the confirmation replaces the secret.
    """
    import pyotp

    secret = secrets.token_bytes(SECRET_BYTES)
    row = {
        "secret": seal_secret(caller.user_id, secret),
        "created_at": func.now(),
        "last_step": 0,
    }
    replace_unconfirmed = (
        insert(totp)
        .values(account_id=caller.user_id, **row)
        .on_conflict_do_update(index_elements=["account_id"], set_=row, where=totp.c.confirmed_at.is_(None))
        .returning(select(account.c.email).where(account.c.id == caller.user_id).scalar_subquery())
    )
    with change(caller) as connection:
        email = connection.scalar(replace_unconfirmed)
    if email is None:
        raise TotpAlreadyEnabled
    app = pyotp.TOTP(base64.b32encode(secret).decode(), name=email, issuer="Aegis")
    return TotpEnrolment(secret=app.secret, uri=app.provisioning_uri())
