"""What is put in Redis, on one and on a cluster whose nodes hold a part of the keys each."""

import contextlib
import uuid

import pytest

from shared.postgresql.transactions import last_transaction_open, transaction
from shared.redis import cache

pytestmark = pytest.mark.usefixtures("any_redis")

USERS = [uuid.uuid4() for _ in range(20)]
"""So many that each node of a cluster has some of them."""


def names_of_all() -> list[str]:
    return [cache.key(user, "profile") for user in USERS]


def test_what_was_put_for_many_users_at_once_is_there_for_each() -> None:
    cache.put(*names_of_all(), value="new", seconds=60)
    assert [cache.get(name) for name in names_of_all()] == [[b"new"]] * len(USERS)


def test_all_that_is_wanted_of_one_user_comes_at_once() -> None:
    names = [cache.key(USERS[0], name) for name in ("session:1", "profile", "session:2")]
    cache.put(names[0], value="ended", seconds=60)
    cache.put(names[1], value="kim", seconds=60)
    assert cache.get(*names) == [b"ended", b"kim", None]


def test_who_only_read_overwrites_nothing() -> None:
    for name in names_of_all():
        cache.put_if_absent(name, "first", seconds=60)
        cache.put_if_absent(name, "second", seconds=60)
        assert cache.get(name) == [b"first"]


def test_of_two_who_change_one_thing_at_a_time_neither_is_taken_for_the_last() -> None:
    for name in names_of_all():
        cache.put_unless_contended(name, "one", seconds=60, apart=5)
        assert cache.get(name) == [b"one"]
        cache.put_unless_contended(name, "other", seconds=60, apart=5)
        assert cache.get(name) == [b""]


def test_redis_that_answers_is_up() -> None:
    assert cache.is_up()


def test_what_a_transaction_puts_is_there_after_its_commit() -> None:
    with transaction():
        cache.put(*names_of_all(), value="new", seconds=60)
        assert [cache.get(name) for name in names_of_all()] == [[None]] * len(USERS)
    assert [cache.get(name) for name in names_of_all()] == [[b"new"]] * len(USERS)


def test_what_a_transaction_puts_waits_for_a_commit_that_comes_later() -> None:
    (name, *_) = names_of_all()
    with last_transaction_open():
        with transaction():
            cache.put(name, value="new", seconds=60)
        assert cache.get(name) == [None]
    assert cache.get(name) == [b"new"]


def test_what_a_transaction_puts_is_forgotten_when_it_is_rolled_back() -> None:
    (name, *_) = names_of_all()
    with contextlib.suppress(KeyError), transaction():
        cache.put(name, value="new", seconds=60)
        raise KeyError
    assert cache.get(name) == [None]
