"""Change the caller's password."""

from shared.framework.http_function import http_function
from shared.framework.scaling import Scaling
from shared.identity import credentials
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.identity.credentials import WrongPassword
from shared.identity.passwords import check_acceptable, hash_password
from shared.text.fields import NewPassword, Password, RequestBody
from shared.users import profiles


class PasswordChange(RequestBody):
    current_password: Password
    new_password: NewPassword


@http_function(
    "PUT",
    "/api/v1/users/me/password",
    status=204,
    scaling=Scaling("hash"),  # at most two pods, so that log-ins get the cores
    recent_login=True,
    limits={"address": "60/minute", "account": "10/hour"},
    problems=[WrongPassword],
)
def change_password(body: PasswordChange, caller: Caller) -> None:
    """Change the password.

    All other sessions end, a pending change of the e-mail address is cancelled, and the user is notified by mail. This
    session continues. Limited to ten attempts an hour.
    """
    proved = credentials.require_password(caller.user_id, body.current_password)
    password = body.new_password.get_secret_value()
    check_acceptable(password, proved.email, proved.name, pointer="/new_password")
    password_hash = hash_password(password)

    with change(caller) as connection:
        credentials.replace_password(
            connection, caller.user_id, password_hash, instead_of=proved.password_hash, but=caller.session_id
        )
        profiles.refresh(connection, caller.user_id)
