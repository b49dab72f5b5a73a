"""Changing one's own profile."""

import json
import unicodedata
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from shared.postgresql.tables import account, outbox
from shared.postgresql.transactions import transaction
from shared.users import profiles
from shared.users.profiles import Profile
from tests.conftest import User, bearer, call, client, create_user, events_of, session_of
from tests.servers import redis_client


def merged(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """MergePatch of RFC 7396, 2, for flat objects whose members always exist: one that is removed is null."""
    return target | patch


def forget(user: User) -> None:
    redis_client().delete(profiles.key(user.id), profiles.key(user.id) + ":put")


def test_what_is_given_changes_and_the_rest_stays(active_user: User) -> None:
    tokens = session_of(active_user)
    before = call("get_profile", tokens).json
    response = call("update_profile", tokens, {"name": "Kim Min-jun"})
    assert (response.status_code, response.json) == (200, before | {"name": "Kim Min-jun"})
    assert call("get_profile", tokens).json == response.json
    response = call("update_profile", tokens, {"locale": "en"})
    assert response.json == before | {"name": "Kim Min-jun", "locale": "en"}
    assert call("get_profile", tokens).json == response.json


def test_a_change_that_is_sent_again_shows_though_who_made_it_died_before_telling_the_cache(active_user: User) -> None:
    tokens = session_of(active_user)
    call("get_profile", tokens)
    with transaction() as connection:
        connection.execute(update(account).where(account.c.id == active_user.id).values(name="Kim"))
    assert call("get_profile", tokens).json["name"] != "Kim"
    assert call("update_profile", tokens, {"name": "Kim"}).json["name"] == "Kim"
    assert call("get_profile", tokens).json["name"] == "Kim"


def test_null_removes_the_name(active_user: User) -> None:
    tokens = session_of(active_user)
    assert call("update_profile", tokens, {"name": None}).json["name"] is None
    forget(active_user)
    assert call("get_profile", tokens).json["name"] is None


def test_a_merge_patch_is_taken_under_its_own_media_type(active_user: User) -> None:
    response = client("update_profile").patch(
        "/api/v1/users/me",
        data=json.dumps({"name": "Kim"}),
        content_type="application/merge-patch+json",
        headers=bearer(session_of(active_user)),
    )
    assert (response.status_code, response.json and response.json["name"]) == (200, "Kim")


def test_a_name_is_shown_composed_and_without_space_around_it(active_user: User) -> None:
    name = unicodedata.normalize("NFD", "이서연")
    response = call(
        "update_profile", session_of(active_user), {"name": f" {name}\N{NO-BREAK SPACE}", "locale": "en-US"}
    )
    assert (response.json["name"], response.json["locale"]) == ("이서연", "en")


def test_the_same_name_from_another_keyboard_is_no_change(active_user: User) -> None:
    tokens = session_of(active_user)
    assert call("update_profile", tokens, {"name": unicodedata.normalize("NFD", "김민준")}).status_code == 200
    assert "profile_updated" not in events_of(active_user)


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({"locale": None}, "/locale"),
        ({"locale": "fr"}, "/locale"),
        ({"name": ""}, "/name"),
        ({"name": " "}, "/name"),
        ({"name": "\u0000"}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"name": 7}, "/name"),
        ({"name": {"first": "Kim"}}, "/name"),
        ({"name": "Kim", "email": "kim@example.com"}, "/email"),
        ({"roles": ["admin"]}, "/roles"),
        (["name"], ""),
        ("Kim", ""),
    ],
    ids=str,
)
def test_a_patch_that_is_not_valid_changes_nothing(active_user: User, patch: Any, pointer: str) -> None:
    tokens = session_of(active_user)
    before = call("get_profile", tokens).json
    response = call("update_profile", tokens, patch)
    assert response.status_code == 422
    assert response.json["errors"][0]["pointer"] == pointer
    forget(active_user)
    assert call("get_profile", tokens).json == before
    assert "profile_updated" not in events_of(active_user)


def test_the_event_names_the_fields_that_changed_and_nothing_of_what_is_in_them(active_user: User) -> None:
    tokens = session_of(active_user)
    call("update_profile", tokens, {"name": "Kim", "locale": "ko"})
    call("update_profile", tokens, {"name": "Lee", "locale": "en"})
    with transaction() as connection:
        announced = connection.scalars(
            select(outbox.c.data)
            .where(outbox.c.subject == active_user.id, outbox.c.type == "com.aegis.user.profile_updated.v1")
            .order_by(outbox.c.position)
        ).all()
    user_id = str(active_user.id)
    assert announced == [
        {"user_id": user_id, "fields": ["name"]},
        {"user_id": user_id, "fields": ["locale", "name"]},
    ]


@pytest.mark.parametrize("patch", [{}, {"locale": "ko"}, {"name": "김민준", "locale": "ko"}], ids=str)
def test_a_patch_that_changes_nothing_announces_nothing(active_user: User, patch: dict[str, str]) -> None:
    tokens = session_of(active_user)
    before = call("get_profile", tokens)
    response = call("update_profile", tokens, patch)
    assert (response.status_code, response.json) == (200, before.json)
    assert response.headers["ETag"] == before.headers["ETag"]
    assert "profile_updated" not in events_of(active_user)


def test_the_etag_of_a_profile_is_one_whether_read_cached_or_just_changed(active_user: User) -> None:
    tokens = session_of(active_user)
    from_database, from_cache = (call("get_profile", tokens).headers["ETag"] for _ in range(2))
    assert from_database == from_cache
    changed = call("update_profile", tokens, {"name": "Kim"}, headers={"If-Match": from_cache})
    assert changed.status_code == 200
    put = call("get_profile", tokens).headers["ETag"]
    forget(active_user)
    assert put == call("get_profile", tokens).headers["ETag"] == changed.headers["ETag"] != from_cache
    again = call("update_profile", tokens, {"name": "Lee"}, headers={"If-Match": changed.headers["ETag"]})
    assert again.status_code == 200


@pytest.mark.parametrize("stale", ['"0123456789abcdef0123456789abcdef"', "nonsense", "", 'W/"x"'])
def test_a_change_to_another_state_is_a_412_and_changes_nothing(active_user: User, stale: str) -> None:
    tokens = session_of(active_user)
    response = call("update_profile", tokens, {"name": "Kim"}, headers={"If-Match": stale})
    assert (response.status_code, response.json["type"]) == (412, "urn:aegis:problem:precondition-failed")
    assert call("get_profile", tokens).json["name"] == "김민준"
    assert "profile_updated" not in events_of(active_user)


def test_any_state_may_be_asked_for(active_user: User) -> None:
    tokens = session_of(active_user)
    assert call("update_profile", tokens, {"name": "Kim"}, headers={"If-Match": "*"}).status_code == 200


def test_of_twenty_changes_to_one_state_one_is_made(active_user: User) -> None:
    tokens = session_of(active_user)
    state = call("get_profile", tokens).headers["ETag"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda n: call("update_profile", tokens, {"name": f"Kim {n}"}, headers={"If-Match": state}), range(20)
            )
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19
    (winner,) = [answer for answer in answers if answer.status_code == 200]
    assert call("get_profile", tokens).json == winner.json
    assert events_of(active_user).count("profile_updated") == 1


def test_after_many_changes_at_once_a_read_shows_the_last(active_user: User) -> None:
    tokens = session_of(active_user)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: call("update_profile", tokens, {"name": f"Kim {n}"}), range(24)))
    with transaction() as connection:
        stored = profiles.read(connection, active_user.id)
    assert call("get_profile", tokens).json == stored


def test_of_two_changes_put_in_the_wrong_order_neither_is_shown_from_the_cache(active_user: User) -> None:
    tokens = session_of(active_user)
    earlier: Profile = call("get_profile", tokens).json
    later = call("update_profile", tokens, {"name": "Kim"}).json
    profiles.put(earlier)
    assert call("get_profile", tokens).json == later


patches = st.fixed_dictionaries(
    {},
    optional={
        "name": st.none() | st.sampled_from(["김민준", "Kim", "O'Brien", "Zoë 👩‍👩‍👧", "x" * 100]),
        "locale": st.sampled_from(["ko", "en"]),
    },
)


@settings(max_examples=25)
@given(st.lists(patches, min_size=1, max_size=5))
def test_any_sequence_of_patches_is_what_rfc_7396_makes_of_it(sequence: list[dict[str, Any]]) -> None:
    user = create_user(f"{uuid.uuid4().hex[:12]}@example.com")
    tokens = session_of(user)
    expected: dict[str, Any] = call("get_profile", tokens).json
    for patch in sequence:
        expected = merged(expected, patch)
        assert call("update_profile", tokens, patch).json == expected
    assert call("get_profile", tokens).json == expected
    forget(user)
    assert call("get_profile", tokens).json == expected
