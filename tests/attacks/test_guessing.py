"""Guesses at a password, from as many addresses as it takes, and what they cost the owner."""

from tests.attacks.attacker import USERS, Caller
from tests.conftest import PASSWORD, create_user, issue, mailed_token, session_of

WRONG = "wrong horse battery staple"


def test_a_link_takes_no_endless_guesses_at_the_password(address: str) -> None:
    assert Caller().send("POST", USERS, {"email": address, "password": PASSWORD}).status == 202
    guess = {"token": mailed_token(address), "password": WRONG}
    answers = [Caller().send("POST", f"{USERS}/email/verify", guess) for _ in range(12)]
    assert [answer.status for answer in answers] == [403] * 10 + [429] * 2
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert answers[-1].problem == "too-many-requests"


def test_guesses_at_a_password_count_together_wherever_it_is_asked_for(address: str) -> None:
    user = create_user(address)
    thief = Caller(access_token=session_of(user)["access_token"])
    link = {"token": issue(user, "change_email"), "password": WRONG}
    ways = [
        ("PUT", f"{USERS}/me/password", {"current_password": WRONG, "new_password": f"{WRONG} {address}"}),
        ("POST", f"{USERS}/me/email", {"email": f"new-{address}", "password": WRONG}),
        ("POST", f"{USERS}/me/withdrawal", {"password": WRONG}),
        ("POST", f"{USERS}/email/verify", link),
    ]
    answers = [thief.send(*ways[number % 4]) for number in range(14)]
    assert [answer.status for answer in answers] == [403] * 10 + [429] * 4
    assert {answer.problem for answer in answers[10:]} == {"too-many-requests"}
    right = {"password": PASSWORD}
    assert thief.send("POST", f"{USERS}/me/withdrawal", right).status == 429, "the right one would tell it from others"
