"""Which process is given which secret: those that it uses, and no other."""

import copy
from base64 import b64decode
from typing import Any

import pytest

from knative import check
from knative.kubernetes import overlays
from knative.kubernetes.jobs import derived
from knative.local import up
from knative.release.checks import with_settings
from shared.framework.registry import load_all, uses
from shared.runtime.settings import REQUIRED_BY, SECRETS, load, secrets_of
from tests.knative.environments import ENVIRONMENTS, container, functions_of, objects_of, released

pytestmark = pytest.mark.no_service

OF_OWNER = {"DB_OWNER", "DB_OWNER_PASSWORD"}
OF_SIGNERS = {"login", "login_with_passkey", "login_with_second_factor", "refresh_token"}


def secrets(item: dict[str, Any]) -> set[str]:
    found = container(item)
    assert not [source for source in found.get("envFrom", ()) if "secretRef" in source]
    return {variable["name"] for variable in found["env"] if "secretKeyRef" in variable.get("valueFrom", {})}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_function_is_given_the_secrets_that_it_uses_and_no_other(environment: str) -> None:
    load_all()
    for service in functions_of(objects_of(environment)):
        name = service["metadata"]["name"].replace("-", "_")
        assert secrets(service) == secrets_of(uses(name)), name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_relay_and_migration_are_given_the_password_of_the_database_alone(environment: str) -> None:
    assert secrets(objects_of(environment)["Deployment", "relay"]) == {"DB_USER", "DB_PASSWORD"}
    assert secrets(objects_of(environment, "migration")["Job", "migrate"]) == {"DB_USER", "DB_PASSWORD"} | OF_OWNER


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_owner_of_the_tables_is_known_to_the_database_the_migration_and_the_backups_alone(environment: str) -> None:
    objects = objects_of(environment) | objects_of(environment, "migration")
    users = {
        item["metadata"]["name"]
        for item in objects.values()
        for pod in overlays.pods(item)
        if "'name': 'postgres-owner'" in str(pod)
    }
    assert {"migrate", "backup"} <= users <= {"migrate", "backup", "drill", "postgres", "postgres-replica"}


def test_jobs_that_only_look_are_not_given_the_owner() -> None:
    environment = released("production")
    for job in (
        derived(environment.migration, "smoke", ["python"]),
        derived(with_settings(environment), "settings", ["python"]),
    ):
        assert not OF_OWNER & {variable["name"] for variable in container(job)["env"]}


@pytest.mark.parametrize("environment", ["development", "staging"])
def test_functions_and_pgbouncer_connect_as_another_role_than_the_owner(environment: str) -> None:
    objects = objects_of(environment)
    login, owner = (
        {key: b64decode(value).decode() for key, value in objects["Secret", name]["data"].items()}
        for name in ("user-service-secrets", "postgres-owner")
    )
    assert (login["DB_USER"], owner["username"]) == ("aegis_functions", "aegis")
    assert login["DB_PASSWORD"] != owner["password"]
    for (kind, name), item in objects.items():
        if kind == "Deployment" and "pgbouncer" in name:
            assert "postgres-owner" not in str(item)


def test_cloudnativepg_makes_both_roles_and_neither_is_a_superuser() -> None:
    objects = objects_of("production")
    spec = objects["Cluster", "postgres"]["spec"]
    roles = {role["name"]: role for role in spec["managed"]["roles"]}
    assert roles.keys() == {"aegis", "aegis_functions"}
    assert not any({"superuser", "createrole", "createdb", "replication"} & role.keys() for role in roles.values())
    assert roles["aegis_functions"]["passwordSecret"]["name"] == "postgres-functions"
    assert "inRoles" not in roles["aegis_functions"]
    assert not spec.get("enableSuperuserAccess")
    initdb = spec["bootstrap"]["initdb"]
    assert (initdb["owner"], initdb["secret"]["name"]) == ("aegis", "postgres-owner")
    sources = {
        name: {entry["remoteRef"]["key"] for entry in objects["ExternalSecret", name]["spec"]["data"]}
        for name in ("user-service-secrets", "postgres-functions", "postgres-owner")
    }
    assert sources["user-service-secrets"] == sources["postgres-functions"] != sources["postgres-owner"]


def test_keys_of_providers_and_of_tokens_reach_those_alone_that_use_them() -> None:
    given = up.secrets_of_functions()
    for name, function in {
        "EMAIL_API_KEY": "send_email",
        "SMS_API_KEY": "send_sms",
        "BUSINESS_REGISTRY_API_KEY": "verify_business",
    }.items():
        assert {one for one, names in given.items() if name in names} == {function}
    for name in ("JWT_REFRESH_SECRET_KEY", "JWT_SECRET_KEY"):
        assert {one for one, names in given.items() if name in names} == OF_SIGNERS
    assert given["jwks"] == {"JWT_PUBLIC_KEYS", "GATEWAY_KEY"}
    assert given["openid_configuration"] == {"GATEWAY_KEY"}


def test_a_secret_that_a_function_does_not_use_is_found() -> None:
    objects = copy.deepcopy(list(objects_of("development").values()))
    by_name = {item["metadata"]["name"]: item for item in objects if item["kind"] == "Service"}
    container(by_name["jwks"])["env"].append(
        {"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "user-service-secrets", "key": "DB_PASSWORD"}}}
    )
    container(by_name["logout"])["envFrom"].append({"secretRef": {"name": "user-service-secrets"}})
    container(by_name["send-sms"])["env"] = [
        variable for variable in container(by_name["send-sms"])["env"] if variable["name"] != "SMS_API_KEY"
    ]
    assert sorted(check.problems_of(objects)) == [
        "Service jwks: gets DB_PASSWORD, which it does not use",
        "Service logout: gets a whole Secret",
        "Service send-sms: does not get SMS_API_KEY, which it uses",
    ]


def test_locally_a_function_starts_with_what_its_manifest_names_and_learns_no_other_secret() -> None:
    load_all()
    everything = {name: f"secret-{name}" for name in ("BACKUP_MANIFEST_KEY", "BACKUP_IDENTITY", *secrets_of(SECRETS))}
    everything |= {"DATABASE_URL": "postgresql://aegis:secret-DB_PASSWORD@localhost/aegis", "LOG_LEVEL": "INFO"}
    for name, given in up.secrets_of_functions().items():
        settings = up.of_function(everything, given)
        assert settings["LOG_LEVEL"] == "INFO"
        learned = {one for one in everything if f"secret-{one}" in "".join(settings.values())}
        assert learned <= secrets_of(uses(name)), name


def test_every_required_secret_can_be_given() -> None:
    """What the settings ask for in vain would keep a function from starting."""
    public = {"DATABASE_URL", "REDIS_URL", "KAFKA_BOOTSTRAP_SERVERS", "PUBLIC_URL"}
    public |= {"BACKUP_STORE", "BACKUP_RECIPIENTS", "BACKUP_MANIFEST_KEY"}  # of the Secret backup-secrets, as a whole
    of_providers = {name for name in sum(REQUIRED_BY.values(), ()) if name.endswith(("_URL", "_FROM"))}
    assert {name for names in REQUIRED_BY.values() for name in names} <= public | of_providers | secrets_of(SECRETS)
    assert load({}, ())


def test_the_job_that_looks_at_the_settings_has_the_secrets_of_all_functions() -> None:
    job = with_settings(released("production"))
    sources = container(job)["envFrom"]
    assert sources == [{"secretRef": {"name": "user-service-secrets"}}]
