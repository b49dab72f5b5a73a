"""A Redis cluster that loses nodes and gets others: nobody notices, and what was ended stays ended."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from redis import Redis

from knative.local.servers import LOOPBACK
from knative.local.supervisor import Process, Supervisor
from shared.http import rate_limits
from shared.redis import cache
from shared.redis.cluster import ClusteredRedis
from shared.runtime.problems import TooManyRequests
from shared.runtime.settings import settings
from tests.conftest import User, call, log_in, wait_for
from tests.servers import is_done_by, kill, redis_client, redis_node

Nodes = Mapping[int, Process]

LIMITS, KIM = {"email": "2/hour"}, {"email": "kim@example.com"}
COUNTS = "aegis:limit:{login}"


def node(port: int) -> Redis:
    return Redis(port=port, password=urlsplit(settings().redis_url).password)


def master_of(key: str) -> int:
    """The port of the node that holds a key."""
    found = cast(ClusteredRedis, cache.client()).cluster.get_node_from_key(key)
    assert found
    return int(found.port)


def kill_master_of(key: str, nodes: Nodes) -> int:
    """Kills the node that holds a key, once its replica holds it as well."""
    port = master_of(key)
    replication = node(port).info("replication")
    wait_for(lambda: node(port).info("replication")["slave0"]["offset"] >= replication["master_repl_offset"])
    kill(nodes[port])
    return port


def forget_node(lost: Redis, nodes: Nodes) -> None:
    """Lets a cluster be as if a node had never joined it."""
    id_ = lost.execute_command("CLUSTER MYID")
    wait_for(lambda: all(id_.decode() in str(node(port).execute_command("CLUSTER NODES")) for port in nodes))
    for port in nodes:  # who has forgotten it tells the others, which then know no such node
        is_done_by(node(port), "CLUSTER", "FORGET", id_)


def is_kept(key: str) -> bool:
    """Whether what is put there can be read."""
    cache.put(key, value=(word := secrets.token_hex()), seconds=60)
    return cache.get(key) == [word.encode()]


def status(tokens: dict[str, Any]) -> int:
    return int(call("get_profile", tokens).status_code)


def test_when_a_master_dies_who_is_logged_in_stays_so_and_who_is_not_does_not(
    own_redis_cluster: Nodes, active_user: User
) -> None:
    stays, ended, ends = log_in(active_user), log_in(active_user), log_in(active_user)
    assert call("logout", ended).status_code == 204
    assert [status(tokens) for tokens in (stays, ended, ends)] == [200, 401, 200]

    dead = kill_master_of(cache.key(active_user.id, "profile"), own_redis_cluster)
    assert call("logout", ends).status_code == 204
    assert call("update_profile", stays, {"name": "이서연"}).status_code == 200
    statuses = set()

    def has_replica_taken_over() -> bool:
        statuses.add((status(stays), status(ended), status(log_in(active_user))))
        return is_kept(cache.key(active_user.id, "test"))

    wait_for(has_replica_taken_over)
    assert statuses == {(200, 401, 200)}
    assert master_of(cache.key(active_user.id, "profile")) != dead
    wait_for(lambda: status(ends) == 401 and call("get_profile", stays).json["name"] == "이서연")


def test_when_a_master_dies_its_counts_stay(own_redis_cluster: Nodes) -> None:
    for _ in range(2):
        rate_limits.enforce("login", LIMITS, KIM)
    kill_master_of(COUNTS, own_redis_cluster)
    wait_for(lambda: is_kept(COUNTS))
    with pytest.raises(TooManyRequests):
        rate_limits.enforce("login", LIMITS, KIM)
    rate_limits.forgive("login", LIMITS, KIM)
    (standing,) = rate_limits.enforce("login", LIMITS, KIM)
    assert standing.remaining == 1


def test_when_all_replicas_die_nobody_notices(own_redis_cluster: Nodes, active_user: User) -> None:
    stays, ended = log_in(active_user), log_in(active_user)
    replicas = [port for port in own_redis_cluster if node(port).info("replication")["role"] == "slave"]
    kill(*(own_redis_cluster[port] for port in replicas))
    assert call("logout", ended).status_code == 204
    assert [status(tokens) for tokens in (stays, ended)] == [200, 401]
    wait_for(lambda: all(is_kept(f"test:{number}") for number in range(30)))


def test_all_keys_of_one_user_are_in_one_slot(own_redis_cluster: Nodes, active_user: User) -> None:
    tokens = log_in(active_user)

    def names() -> list[bytes]:
        assert status(tokens) == 200
        return list(redis_client().scan_iter(f"*{active_user.id}*"))

    wait_for(lambda: len(names()) == 2)  # session and profile
    client = node(next(iter(own_redis_cluster)))
    assert len({client.execute_command("CLUSTER", "KEYSLOT", name) for name in names()}) == 1


def test_when_the_node_of_the_url_dies_a_process_that_knows_the_others_goes_on(own_redis_cluster: Nodes) -> None:
    assert cache.is_up()
    kill(own_redis_cluster[urlsplit(settings().redis_url).port or 0])
    keys = [f"test:{number}" for number in range(30)]
    wait_for(lambda: all(is_kept(key) for key in keys))


def test_keys_that_move_to_a_node_which_has_just_joined_are_missed_and_fail_nobody(
    own_redis_cluster: Nodes, supervisor: Supervisor, tmp_path: Path
) -> None:
    """redis-py follows nobody to a node that it has not heard of."""
    assert is_kept("test")
    old = node(master_of("test"))
    process, port, bus_port = redis_node(tmp_path, str(urlsplit(settings().redis_url).password))
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=30)
    old.execute_command("CLUSTER", "MEET", LOOPBACK, port, bus_port)
    new, slot = node(port), old.execute_command("CLUSTER", "KEYSLOT", "test")
    ids = [each.execute_command("CLUSTER MYID") for each in (old, new)]
    wait_for(lambda: is_done_by(new, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0]))
    wait_for(lambda: is_done_by(old, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1]))

    assert cache.get("test", "{test}:other") == [None, None]
    cache.put("{test}:other", value="new", seconds=60)

    old.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
    wait_for(lambda: cache.get("{test}:other") == [b"new"])
    forget_node(new, own_redis_cluster)
    kill(process)
