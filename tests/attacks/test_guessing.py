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


def test_a_hundred_guesses_of_strangers_do_not_keep_out_an_owner_on_a_known_device(address: str) -> None:
    user = create_user(address)
    device = {"Device-Token": session_of(user)["device_token"]}
    log_in, guess = {"email": address, "password": PASSWORD}, {"email": address, "password": WRONG}
    spent = [Caller().send("POST", f"{USERS}/login", guess).status for _ in range(101)]
    assert set(spent[:100]) == {401}
    assert spent[100] == 429
    assert Caller().send("POST", f"{USERS}/login", log_in).status == 429
    answer = Caller().send("POST", f"{USERS}/login", log_in, **device)
    assert answer.status == 200
    # The thief of a device has the guesses of that device, and no more.
    guesses = [Caller().send("POST", f"{USERS}/login", guess, **device).status for _ in range(11)]
    assert guesses == [401] * 10 + [429]
    newer = {"Device-Token": answer.body["device_token"]}
    assert Caller().send("POST", f"{USERS}/login", log_in, **newer).status == 200


def test_an_owner_on_a_known_device_gets_a_link_whatever_strangers_have_asked_for(address: str) -> None:
    device = {"Device-Token": session_of(create_user(address))["device_token"]}
    path, body = f"{USERS}/password/forgot", {"email": address}
    assert [Caller().send("POST", path, body).status for _ in range(11)] == [202] * 10 + [429]
    # A device has few: the mailbox is not flooded from it, either.
    assert [Caller().send("POST", path, body, **device).status for _ in range(4)] == [202] * 3 + [429]


def test_a_device_token_of_another_account_is_no_key_to_this_one(address: str) -> None:
    create_user(address)
    attacker = create_user(f"attacker-{address}")
    device = {"Device-Token": session_of(attacker)["device_token"]}
    path, body = f"{USERS}/password/forgot", {"email": address}
    assert [Caller().send("POST", path, body, **device).status for _ in range(11)] == [202] * 10 + [429]
