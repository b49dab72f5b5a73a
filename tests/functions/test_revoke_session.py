"""Ending one of one's sessions."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import User, bearer, call, client, create_user, events_of, id_of, session_of


def test_its_tokens_are_refused_from_the_next_request_on(active_user: User) -> None:
    mine, lost = session_of(active_user), session_of(active_user)
    assert call("get_profile", lost).status_code == 200
    assert call("revoke_session", mine, session_id=id_of(lost)).status_code == 204
    assert call("get_profile", lost).status_code == 401
    assert call("refresh_token", body={"refresh_token": lost["refresh_token"]}).status_code == 401
    assert call("get_profile", mine).status_code == 200
    assert events_of(active_user)[-1:] == ["logged_out"]


def test_the_session_in_use_may_be_ended_too(active_user: User) -> None:
    tokens = session_of(active_user)
    assert call("revoke_session", tokens, session_id=id_of(tokens)).status_code == 204
    assert call("get_profile", tokens).status_code == 401


def test_a_session_of_somebody_else_is_a_404_and_goes_on(active_user: User) -> None:
    theirs = session_of(create_user("other-" + active_user.email))
    response = call("revoke_session", session_of(active_user), session_id=id_of(theirs))
    assert (response.status_code, response.json["type"]) == (404, "urn:aegis:problem:no-such-item")
    assert call("get_profile", theirs).status_code == 200


@pytest.mark.parametrize("id_", ["1", "not-an-id", "../me", "%00"])
def test_what_is_no_id_is_a_404(active_user: User, id_: str) -> None:
    response = client("revoke_session").delete(
        f"/api/v1/users/me/sessions/{id_}", headers=bearer(session_of(active_user))
    )
    assert response.status_code == 404


def test_of_many_who_end_it_at_once_one_does(active_user: User) -> None:
    mine, lost = session_of(active_user), session_of(active_user)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: call("revoke_session", mine, session_id=id_of(lost)), range(8)))
    assert sorted(answer.status_code for answer in answers) == [204] + [404] * 7
    assert events_of(active_user).count("logged_out") == 1
