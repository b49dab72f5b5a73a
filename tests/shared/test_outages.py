"""Dependencies that go away: what the caller sees, and that it recovers by itself."""

from sqlalchemy import func, select

from knative.local.supervisor import Process, Supervisor
from shared.database import transaction
from shared.tables import account
from tests.conftest import PASSWORD, bearer, client, create_user, log_in, post, wait_for
from tests.servers import kill, start_again

PROFILE = "/api/v1/users/me"
LOGIN = "/api/v1/users/login"


def test_without_postgresql_a_caller_is_told_to_come_back_and_soon_served_again(
    own_database: Process, supervisor: Supervisor, address: str
) -> None:
    user = create_user(address)
    log_in(user)
    kill(own_database)
    credentials = {"email": address, "password": PASSWORD}
    for _ in range(3):
        response = post("login", LOGIN, credentials)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json["type"] == "urn:aegis:problem:service-unavailable"
    registration = post("register", "/api/v1/users", {"email": "new-" + address, "password": PASSWORD})
    assert registration.status_code == 503

    start_again(supervisor, own_database)
    wait_for(lambda: post("login", LOGIN, credentials).status_code == 200)
    with transaction() as connection:
        assert connection.scalar(select(func.count()).select_from(account)) == 1


def test_a_restarted_postgresql_costs_no_request(own_database: Process, supervisor: Supervisor, address: str) -> None:
    user = create_user(address)
    log_in(user)
    kill(own_database)
    start_again(supervisor, own_database)
    wait_for(database_is_up)
    log_in(user)


def database_is_up() -> bool:
    from shared.server import database_is_up as is_up

    return is_up()


def test_ready_says_that_postgresql_is_down(own_database: Process, supervisor: Supervisor) -> None:
    from shared.server import create_app

    kill(own_database)
    response = create_app("get_profile").test_client().get("/health/ready")
    assert response.status_code == 503
    assert response.json == {"status": "down", "dependencies": {"cache": "up", "database": "down"}}


def test_without_redis_everything_works(own_redis: Process, supervisor: Supervisor, address: str) -> None:
    tokens = log_in(create_user(address))
    assert client("get_profile").get(PROFILE, headers=bearer(tokens)).status_code == 200
    kill(own_redis)
    assert client("get_profile").get(PROFILE, headers=bearer(tokens)).status_code == 200
    refreshed = post("refresh_token", "/api/v1/users/token/refresh", {"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 200
    assert client("logout").post("/api/v1/users/logout", headers=bearer(tokens)).status_code == 204
    assert client("get_profile").get(PROFILE, headers=bearer(tokens)).status_code == 401


def test_ready_says_that_redis_is_down_and_stays_ready(own_redis: Process) -> None:
    from shared.server import create_app

    kill(own_redis)
    response = create_app("get_profile").test_client().get("/health/ready")
    assert response.status_code == 200
    assert response.json == {"status": "up", "dependencies": {"cache": "down", "database": "up"}}
