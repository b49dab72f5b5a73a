"""What an operator reads when the settings are wrong."""

import json

import pytest

from shared.runtime import database_url
from shared.runtime.settings import InvalidSettings, load

pytestmark = pytest.mark.no_service

KEY = json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "1", "x": "A" * 43, "y": "A" * 43, "d": "A" * 43}]})


def problems(environment: dict[str, str], *uses: str) -> list[str]:
    with pytest.raises(InvalidSettings) as raised:
        load(environment, uses)  # type: ignore[arg-type]
    return raised.value.problems


def test_all_problems_are_listed_at_once() -> None:
    environment = {"LOG_LEVEL": "LOUD", "THREADS": "0", "REDIS_URL": "http://redis", "JWT_REFRESH_SECRET_KEY": "short"}
    assert problems(environment, "database", "access_tokens") == [
        "JWT_PUBLIC_KEYS is not set (access_tokens needs it)",
        "PUBLIC_URL is not set (access_tokens needs it)",
        "DATABASE_URL is not set (database needs it)",
        "LOG_LEVEL is not one of DEBUG, INFO, WARNING, ERROR",
        "THREADS is not a number from 1 to 64",
        "JWT_REFRESH_SECRET_KEY has fewer than 32 characters",
        "REDIS_URL is not a URL with the scheme redis or rediss or redis+cluster",
    ]


def test_a_process_is_of_development_unless_it_is_told_otherwise() -> None:
    assert load({}).environment == "development"
    assert load({"ENVIRONMENT": "staging"}).environment == "staging"


@pytest.mark.parametrize("environment", ["prod", "Production", "production "])
def test_an_environment_is_one_of_the_three(environment: str) -> None:
    assert problems({"ENVIRONMENT": environment}) == ["ENVIRONMENT is not one of development, staging, production"]


@pytest.mark.parametrize(
    "name",
    ["PUBLIC_URL", "EMAIL_SERVICE_URL", "SMS_SERVICE_URL", "BUSINESS_REGISTRY_API_URL", "BREACHED_PASSWORDS_URL"],
)
def test_production_refuses_to_send_in_plain_text(name: str) -> None:
    plain, encrypted = {name: "http://api.example.com"}, {name: "https://api.example.com"}
    assert problems({"ENVIRONMENT": "production"} | plain) == [f"{name} must be an https URL in production"]
    assert load({"ENVIRONMENT": "production"} | encrypted)
    assert load({"ENVIRONMENT": "staging"} | plain)


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_a_function_that_clients_call_does_not_start_without_the_key_of_the_gateway(environment: str) -> None:
    assert problems({"ENVIRONMENT": environment}, "gateway") == ["GATEWAY_KEY is not set (gateway needs it)"]
    assert problems({"ENVIRONMENT": environment, "GATEWAY_KEY": " , "}, "gateway") == [
        "GATEWAY_KEY is not a list of keys of at least 32 visible ASCII characters"
    ]
    assert load({"ENVIRONMENT": environment})


def test_development_needs_no_key_of_the_gateway() -> None:
    assert load({"ENVIRONMENT": "development"}, ["gateway"]).gateway_keys == ()


def test_a_key_of_the_gateway_can_be_replaced_by_another_beside_it() -> None:
    assert load({"GATEWAY_KEY": f"{'n' * 32}, {'o' * 32}"}).gateway_keys == (b"n" * 32, b"o" * 32)


@pytest.mark.parametrize("keys", ["k" * 31, "k" * 32 + ",short", "k" * 31 + "\u00fc", "k" * 16 + " " + "k" * 16])
def test_a_key_of_the_gateway_that_is_short_or_fits_no_header_is_refused(keys: str) -> None:
    assert problems({"GATEWAY_KEY": keys}) == [
        "GATEWAY_KEY is not a list of keys of at least 32 visible ASCII characters"
    ]


@pytest.mark.parametrize("threads", ["x", "-1", "65", "1.5", "²"])
def test_threads_are_a_number_from_1_to_64(threads: str) -> None:
    assert problems({"THREADS": threads}) == ["THREADS is not a number from 1 to 64"]


@pytest.mark.parametrize(
    "keys",
    [
        "secret",
        "{}",
        '{"keys": []}',
        '{"keys": [{"kty": "RSA"}]}',
        "[]",
        '{"keys": 1}',
        KEY.replace("A" * 43, "secret"),
    ],
)
def test_a_malformed_signing_key_is_named_and_not_shown(keys: str) -> None:
    (problem,) = problems({"JWT_SECRET_KEY": keys})
    assert "JWT_SECRET_KEY" in problem
    assert "secret" not in problem.replace("JWT_SECRET_KEY", "")


def test_a_function_needs_only_what_it_uses() -> None:
    assert load({}).database_url == ""


def test_an_empty_value_counts_as_missing() -> None:
    assert problems({"DATABASE_URL": ""}, "database") == ["DATABASE_URL is not set (database needs it)"]


def test_the_parts_of_the_guide_make_the_urls() -> None:
    settings = load(
        {"DB_HOST": "postgres-service", "DB_PORT": "5432", "DB_NAME": "aegis_user", "DB_USER": "user"}
        | {"DB_PASSWORD": "p@ss/word", "REPLICA_DB_HOST": "replica-service", "REDIS_HOST": "redis-service"}
    )
    assert settings.database_url == "postgresql://user:p%40ss%2Fword@postgres-service:5432/aegis_user"
    assert settings.replica_database_url == "postgresql://user:p%40ss%2Fword@replica-service:5432/aegis_user"
    assert settings.redis_url == "redis://redis-service:6379/0"


@pytest.mark.parametrize("end", ["", "/", "/api", "/api/"])
def test_the_registry_may_be_named_as_the_guide_names_it(end: str) -> None:
    """The guide's 4.2 has https://api.odcloud.kr/api."""
    named = load({"BUSINESS_REGISTRY_API_URL": f"https://api.odcloud.kr{end}"}, set())
    assert named.business_registry_api_url == "https://api.odcloud.kr"


def test_a_url_wins_over_its_parts() -> None:
    url = "postgresql://user@elsewhere/aegis"
    assert load({"DATABASE_URL": url, "DB_HOST": "postgres-service"}).database_url == url


def test_signing_keys_are_read_in_order() -> None:
    assert [key.kid for key in load({"JWT_SECRET_KEY": KEY}).signing_keys] == ["1"]


def test_who_only_verifies_tokens_needs_no_private_key() -> None:
    (private,) = json.loads(KEY)["keys"]
    public = json.dumps({"keys": [{name: value for name, value in private.items() if name != "d"}]})
    settings = load({"JWT_PUBLIC_KEYS": public, "PUBLIC_URL": "https://api.example.com"}, ["access_tokens"])
    assert [key.kid for key in settings.public_keys] == ["1"]
    assert settings.signing_keys == ()
    assert problems({"JWT_PUBLIC_KEYS": public, "PUBLIC_URL": "https://api.example.com"}, "token_signing") == [
        "JWT_SECRET_KEY is not set (token_signing needs it)"
    ]


def test_private_keys_are_not_taken_for_public_ones() -> None:
    assert problems({"JWT_PUBLIC_KEYS": KEY}) == [
        "JWT_PUBLIC_KEYS is not a JWK Set (RFC 7517) of public P-256 keys with kid"
    ]


def test_who_signs_verifies_with_the_same_keys() -> None:
    settings = load({"JWT_SECRET_KEY": KEY, "PUBLIC_URL": "https://api.example.com"}, ["access_tokens"])
    assert [key.kid for key in settings.public_keys] == ["1"]


def test_access_tokens_are_for_aegis_unless_a_setting_says_otherwise() -> None:
    assert load({}).audiences == ("aegis",)
    named = "https://api.example.com, urn:example:orders,aegis"
    assert load({"JWT_AUDIENCE": named}).audiences == ("https://api.example.com", "urn:example:orders", "aegis")


@pytest.mark.parametrize(
    "audience", ["two words", "aegis,", ",", "https:", ":", "1:2", 'a"b', "a" * 256, "한국", "a\nb"]
)
def test_an_audience_is_a_name_or_a_uri(audience: str) -> None:
    assert problems({"JWT_AUDIENCE": audience}) == [
        "JWT_AUDIENCE is not a list of names or URIs such as aegis or https://api.example.com"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://[",
        "postgresql://h:abc/x",
        "mysql://h/x",
        "postgresql:///x",
        "h",
        "postgresql://h/x?sslmode=require",
        "postgresql://h,h2/x",
        "postgresql://h,h2:abc/x?target_session_attrs=read-write",
        "postgresql://h,/x?target_session_attrs=read-write",
        "postgresql://h,h2/x?target_session_attrs=primary",
    ],
)
def test_a_url_that_would_fail_later_fails_at_the_start(url: str) -> None:
    (problem,) = problems({"DATABASE_URL": url})
    assert problem.startswith("DATABASE_URL ")


def test_several_servers_may_stand_in_a_url_of_postgresql() -> None:
    url = "postgresql://kim:p%40ss@one,two:5433,[::1]/aegis?target_session_attrs=read-write"
    named = database_url.parse(load({"DATABASE_URL": url}).database_url)
    assert (named.user, named.password, named.database) == ("kim", "p@ss", "aegis")
    assert named.addresses == (("one", 5432), ("two", 5433), ("::1", 5432))


def test_where_backups_go_and_what_opens_them_is_checked() -> None:
    recipient, key = f"age1{'q' * 58}", "k" * 32
    given = {"BACKUP_RECIPIENTS": recipient, "BACKUP_MANIFEST_KEY": f"{key}, {key}", "BACKUP_KEEP_DAILY": "14"}
    settings = load({"BACKUP_STORE": "s3://bucket/aegis", **given}, ["backups"])
    assert (settings.backup_recipients, settings.backup_manifest_keys) == ((recipient,), (key.encode(), key.encode()))
    assert settings.backup_keep == (14, 4, 12)
    wrong = {"BACKUP_RECIPIENTS": recipient[:-1], "BACKUP_MANIFEST_KEY": key[:-1], "BACKUP_IDENTITY": recipient}
    environment = {"BACKUP_STORE": "backups", **wrong, "BACKUP_KEEP_DAILY": "0"}
    assert problems(environment) == [
        "BACKUP_STORE is neither an absolute path nor s3://BUCKET/PREFIX",
        "BACKUP_RECIPIENTS is not a list of age recipients (age1...)",
        "BACKUP_MANIFEST_KEY has a key of fewer than 32 characters",
        "BACKUP_IDENTITY is not an age identity (AGE-SECRET-KEY-1...)",
        "BACKUP_KEEP_DAILY is not a number from 1 to 366",
    ]


@pytest.mark.parametrize("rest", ["?tenant=1", "#part"])
def test_an_issuer_has_neither_query_nor_fragment(rest: str) -> None:
    """RFC 8414, 2."""
    (problem,) = problems({"PUBLIC_URL": f"https://api.example.com/aegis{rest}"})
    assert problem.startswith("PUBLIC_URL has ")


def test_a_cluster_of_redis_has_one_database() -> None:
    url = "redis+cluster://:secret@redis:6379"
    assert load({"REDIS_URL": f"{url}/0"}).redis_url == f"{url}/0"
    assert problems({"REDIS_URL": f"{url}/1"}) == ["REDIS_URL names the database /1, but a cluster has only /0"]
