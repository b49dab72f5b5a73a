"""Attacks that make the service send, and that make it believe."""

import secrets

from tests.attacks.attacker import USERS, Caller
from tests.conftest import PASSWORD, create_user, inbox, session_of, wait_for


def test_one_mailbox_under_many_spellings_gets_no_more_mail_than_under_one() -> None:
    name = secrets.token_hex(8)
    spellings = [f"{name[: 1 + n % 15]}.{name[1 + n % 15 :]}+{n}@gmail.com" for n in range(30)]
    answers = [Caller().send("POST", USERS, {"email": one, "password": PASSWORD}).status for one in spellings]
    assert answers == [202] * 20 + [429] * 10
    wait_for(lambda: sum(len(inbox(one)) for one in spellings) >= 10)
    assert sum(len(inbox(one)) for one in spellings) == 10


def test_no_text_goes_abroad_or_to_a_satellite(address: str) -> None:
    caller = Caller(access_token=session_of(create_user(address))["access_token"])
    for number in ("+12015550123", "+447400123456", "+881623456789", "+870773111632"):
        answer = caller.send("POST", f"{USERS}/me/phone", {"phone": number})
        assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/phone")
        assert inbox(number) == []


def test_a_password_made_of_what_everybody_knows_is_refused() -> None:
    email = f"jiwoo.park+{secrets.token_hex(4)}@example.com"
    for password in (
        "jiwoo.park2026!!",
        "aegis-user-service",
        "Password123456789!",
        "1q2w3e4r5t6y7u8i9o0p",
        "correcthorsebatterystaple",
    ):
        answer = Caller().send("POST", USERS, {"email": email, "password": password})
        assert (answer.status, answer.body["errors"][0]["code"]) == (422, "password_common")
