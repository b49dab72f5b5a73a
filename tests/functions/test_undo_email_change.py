"""Undoing a change of the e-mail address from the old mailbox."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import func, update

from shared.postgresql.tables import former_email
from shared.postgresql.transactions import transaction
from tests.authenticator import with_passkey
from tests.conftest import PASSWORD, User, call, events_of, inbox, log_in, mailed_token, passkey_session_of, row_of

OLD_IS_TOLD = "다른 주소로 변경되었습니다"


def change(user: User, address: str, tokens: dict[str, Any] | None = None) -> None:
    """Changes the address, as who knows the password and reads the new mailbox does."""
    response = call("change_email", tokens or log_in(user), {"email": address, "password": PASSWORD})
    assert response.status_code == 202, response.text
    assert verify(mailed_token(address)).status_code == 204


def verify(token: str) -> Any:
    return call("verify_email", body={"token": token, "password": PASSWORD})


def undo(token: str) -> Any:
    return call("undo_email_change", body={"token": token})


def test_the_old_address_brings_itself_back_and_all_sessions_end(active_user: User) -> None:
    thief = User(active_user.id, f"thief-{active_user.email}")
    change(active_user, thief.email)
    tokens = log_in(thief)
    assert undo(mailed_token(active_user.email, OLD_IS_TOLD)).status_code == 204
    assert call("get_profile", tokens).status_code == 401
    assert call("login", body={"email": thief.email, "password": PASSWORD}).status_code == 401
    assert call("get_profile", log_in(active_user)).json["email"] == active_user.email
    assert "email_change_undone" in events_of(active_user)


def test_it_works_once_also_for_two_at_once(active_user: User) -> None:
    change(active_user, f"thief-{active_user.email}")
    token = mailed_token(active_user.email, OLD_IS_TOLD)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(answer.status_code for answer in pool.map(undo, [token] * 2)) == [204, 400]
    assert undo(token).json["type"] == "urn:aegis:problem:invalid-link"


def test_after_seven_days_it_is_too_late_and_the_address_is_free(active_user: User) -> None:
    change(active_user, f"new-{active_user.email}")
    token = mailed_token(active_user.email, OLD_IS_TOLD)
    kept = row_of(active_user, former_email)
    assert (kept.expires_at - kept.replaced_at).days == 7
    with transaction() as connection:
        connection.execute(update(former_email).where(former_email.c.id == kept.id).values(expires_at=func.now()))
    assert undo(token).status_code == 400
    call("register", body={"email": active_user.email, "password": PASSWORD})
    assert mailed_token(active_user.email, "이메일 주소를 확인해 주세요")


def test_the_first_of_several_owners_undoes_all_changes_after_theirs(active_user: User) -> None:
    second, third = (f"{name}-{active_user.email}" for name in ("second", "third"))
    change(active_user, second)
    change(User(active_user.id, second), third)
    later = mailed_token(second, OLD_IS_TOLD)
    assert undo(mailed_token(active_user.email, OLD_IS_TOLD)).status_code == 204
    assert undo(later).status_code == 400
    log_in(active_user)


def test_open_links_and_codes_are_void(active_user: User) -> None:
    thief = User(active_user.id, f"thief-{active_user.email}")
    change(active_user, thief.email)
    call("request_password_reset", body={"email": thief.email})
    reset = mailed_token(thief.email, "비밀번호를 설정")
    assert undo(mailed_token(active_user.email, OLD_IS_TOLD)).status_code == 204
    assert call("reset_password", body={"token": reset, "password": "a wholly new choice of words"}).status_code == 400


def test_nobody_takes_the_old_address_meanwhile_and_nobody_is_told_so(active_user: User, address: str) -> None:
    change(active_user, f"new-{active_user.email}")
    token = mailed_token(active_user.email, OLD_IS_TOLD)
    before = len(inbox(active_user.email))
    taken = call("register", body={"email": active_user.email, "password": PASSWORD})
    free = call("register", body={"email": f"free-{address}", "password": PASSWORD})
    assert (taken.status_code, taken.data) == (free.status_code, free.data)
    assert mailed_token(f"free-{address}")
    assert len(inbox(active_user.email)) == before
    assert undo(token).status_code == 204


def test_the_owner_goes_back_to_the_old_address_by_another_change(active_user: User) -> None:
    new = f"new-{active_user.email}"
    change(active_user, new)
    call("change_email", log_in(User(active_user.id, new)), {"email": active_user.email, "password": PASSWORD})
    assert verify(mailed_token(active_user.email, "새 이메일 주소를 확인")).status_code == 204
    log_in(active_user)


def test_it_gets_around_no_factor(active_user: User) -> None:
    with_passkey(active_user)
    change(active_user, f"new-{active_user.email}", passkey_session_of(active_user))
    response = undo(mailed_token(active_user.email, OLD_IS_TOLD))
    assert (response.status_code, response.data) == (204, b"")
    assert call("enroll_totp", log_in(active_user)).json["reason"] == "passkey-missing"


def test_an_unknown_token_is_refused() -> None:
    assert undo("A" * 43).status_code == 400
