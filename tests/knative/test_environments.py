"""What the figures of the environments add up to, and what each of them must have."""

import hashlib
import json
import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from knative import check
from knative.kubernetes.overlays import pods
from knative.release.gateway import public_listener
from shared.events import kafka
from shared.framework.registry import HTTP_FUNCTIONS, load_all, uses
from shared.runtime.manifests import functions
from shared.runtime.resource_names import function_name
from shared.runtime.settings import Settings, load
from tests.conftest import ROOT
from tests.knative.environments import (
    ENVIRONMENTS,
    Objects,
    container,
    functions_of,
    objects_of,
    scaling,
    variables,
)

pytestmark = pytest.mark.no_service

HOT = {"get-profile", "login", "refresh-token"}
WARM = {"development": 0, "staging": 2, "production": 3}
"""Pods of each hot function at rest: the guide's replicas (2.2), but nothing in development."""
HOSTS = {
    "development": "dev-api.aegis.example.com",
    "staging": "staging-api.aegis.example.com",
    "production": "api.aegis.example.com",
}

POOLERS = ("pgbouncer", "pgbouncer-replica")
OF_A_BUCKET = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
"""What may write into the bucket of the backups, of which production alone has one."""

THREADS = 4
"""Of a process that states none; each may open a connection. The relay holds one more."""


@pytest.fixture(params=ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def objects(environment: str) -> Objects:
    return objects_of(environment)


def test_it_is_sound(objects: Objects) -> None:
    assert list(check.problems_of(list(objects.values()))) == []


def test_its_migration_is_sound_and_the_servers_in_it_are_those_of_the_environment(environment: str) -> None:
    everything, migration = objects_of(environment), objects_of(environment, "migration")
    assert list(check.problems_of(list(migration.values()))) == []
    assert ("Job", "migrate") in migration
    assert {key for key, item in migration.items() if everything.get(key) != item} == {("Job", "migrate")}


def test_every_function_is_in_it(objects: Objects) -> None:
    assert {function_name(service["metadata"]["name"]) for service in functions_of(objects)} == set(functions())


def test_the_image_comes_from_one_place(environment: str) -> None:
    """So that a release sets its tag once."""
    images = {
        container_["image"]
        for part in ("", "migration")
        for item in objects_of(environment, part).values()
        for pod in pods(item)
        for container_ in [*pod["containers"], *pod.get("initContainers", ())]
        if "aegis" in container_["image"]
    }
    assert len(images) == 1
    stating = [file for file in (check.OVERLAYS / environment).rglob("*.yaml") if "images:" in file.read_text("utf-8")]
    assert [file.parent.name for file in stating] == ["image"]


def test_a_tag_that_moves_is_pulled_anew_and_any_other_comes_from_the_node(environment: str, tmp_path: Path) -> None:
    """The guide's 8.1 and 8.2. Functions have no need of it: Knative resolves the tag for each revision."""
    assert set(pull_policies(objects_of(environment)).values()) == {"IfNotPresent"}
    for part in ("", "migration"):
        with_component = rendered_with(f"{environment}/{part}", tmp_path, "knative/components/pull_always")
        policies = pull_policies(with_component)
        assert policies.keys() == pull_policies(objects_of(environment, part)).keys()
        for (kind, _), policy in policies.items():
            assert policy == ("IfNotPresent" if kind == "Service" else "Always")


def pull_policies(objects: Objects) -> dict[tuple[str, str], str]:
    """Of the containers that have our image."""
    return {
        key: container_["imagePullPolicy"]
        for key, item in objects.items()
        for pod in pods(item)
        for container_ in pod["containers"]
        if "aegis" in container_["image"]
    }


def test_postgresql_has_the_guides_volume_except_in_development(environment: str, tmp_path: Path) -> None:
    """The guide's 5.1: 100Gi of the class fast-ssd. Clusters of tests have a default class alone."""
    wanted = {"development": {("1Gi", None)}}.get(environment, {("100Gi", "fast-ssd")})
    assert volumes_of_postgresql(objects_of(environment)) == wanted
    assert volumes_of_postgresql(objects_of(environment, "data")) == wanted
    if environment == "staging":
        small = rendered_with("staging", tmp_path, "tests/cluster/small")
        assert settings_of(small).breached_passwords_url == ""
        assert volumes_of_postgresql(small) == {("100Gi", None)}


def volumes_of_postgresql(objects: Objects) -> set[tuple[str, str | None]]:
    """Size and class of each."""
    if cluster := objects.get(("Cluster", "postgres")):
        return {(cluster["spec"]["storage"]["size"], cluster["spec"]["storage"].get("storageClass"))}
    return {
        (claim["spec"]["resources"]["requests"]["storage"], claim["spec"].get("storageClassName"))
        for (kind, name), item in objects.items()
        if kind == "StatefulSet" and name.startswith("postgres")
        for claim in item["spec"]["volumeClaimTemplates"]
    }


def test_a_changed_setting_is_a_new_revision(objects: Objects) -> None:
    """Functions name the ConfigMap by the hash of its content: an older revision keeps its settings."""
    ((_, name),) = [key for key in objects if key[0] == "ConfigMap" and key[1].startswith("user-service-config")]
    assert name != "user-service-config"
    for item in [*functions_of(objects), objects["Deployment", "relay"]]:
        named = [source["configMapRef"] for source in container(item)["envFrom"] if "configMapRef" in source]
        assert named == [{"name": name}]


def test_each_environment_has_settings_that_its_processes_take(environment: str) -> None:
    assert settings_of(objects_of(environment)).environment == environment


def test_new_passwords_are_looked_up_among_stolen_ones_except_in_development(environment: str) -> None:
    url = settings_of(objects_of(environment)).breached_passwords_url
    assert url == ("" if environment == "development" else "https://api.pwnedpasswords.com")


def test_production_on_a_test_cluster_may_have_the_sandbox_which_speaks_http(tmp_path: Path) -> None:
    settings = settings_of(rendered_with("production", tmp_path, "tests/cluster/production", "tests/cluster/small"))
    assert settings.environment == "staging"
    assert settings.email_service_url == "http://sandbox"


def test_whatever_logs_is_told_which_environment_it_is(environment: str) -> None:
    untold = {
        container_["name"]
        for part in ("", "migration")
        for item in objects_of(environment, part).values()
        for pod in pods(item)
        for container_ in pod["containers"]
        if "aegis" in container_["image"]
        if not any("configMapRef" in source for source in container_.get("envFrom", ()))
        if "ENVIRONMENT" not in {variable["name"] for variable in container_["env"]}
    }
    assert untold <= {"ping"}  # which prints one line for who reads its Job


SECRETS_OF_FILES = {"gateway-key", "user-service-secrets", "postgres-owner", "backup-secrets"}


def test_no_secret_of_production_is_in_a_file(objects: Objects, environment: str) -> None:
    secrets = {name for kind, name in objects if kind == "Secret"}
    of_the_drill = {"drill-secrets"} if environment == "staging" else set()
    assert secrets == (set() if environment == "production" else SECRETS_OF_FILES | of_the_drill)


def test_production_fetches_every_secret_that_development_makes() -> None:
    for name, more in (("user-service-secrets", set()), ("postgres-owner", set()), ("backup-secrets", OF_A_BUCKET)):
        made = objects_of("development")["Secret", name]["data"].keys()
        spec = objects_of("production")["ExternalSecret", name]["spec"]
        composed = spec["target"].get("template", {}).get("data", {}).keys()
        assert {entry["secretKey"] for entry in spec["data"]} | composed == made | more


def test_the_gateway_serves_its_host_by_https_alone_except_in_development(objects: Objects, environment: str) -> None:
    gateway = objects["Gateway", "api"]
    listeners = {listener["name"]: listener for listener in gateway["spec"]["listeners"]}
    outside = listeners.keys() - inside_listeners(objects)
    assert {listeners[name]["hostname"] for name in outside} == {HOSTS[environment]}
    assert public_listener(gateway)["name"] == ("http" if environment == "development" else "https")
    routes = {name: item["spec"] for (kind, name), item in objects.items() if kind == "HTTPRoute"}
    listened = {name: {parent.get("sectionName") for parent in route["parentRefs"]} for name, route in routes.items()}
    if environment == "development":
        assert outside == {"http"}
        assert all(names == {None} for names in listened.values())  # each listener
        return
    assert "cert-manager.io/cluster-issuer" in gateway["metadata"]["annotations"]
    assert listened.pop("redirect") == {"http"}
    assert all(names == {"https"} | inside_listeners(objects) for names in listened.values())
    ((redirect,),) = [rule["filters"] for rule in routes["redirect"]["rules"]]
    assert redirect["requestRedirect"] == {"scheme": "https", "statusCode": 301}


def inside_listeners(objects: Objects) -> set[str]:
    """The names of those that pods of the cluster call."""
    listeners = objects["Gateway", "api"]["spec"]["listeners"]
    return {listener["name"] for listener in listeners if listener["hostname"].startswith("user-service")}


def test_the_gateway_speaks_the_versions_of_tls_that_are_recommended(objects: Objects, environment: str) -> None:
    """ASVS 5.0, 12.1.1; RFC 9325, 3.1.1."""
    tls = objects["ClientTrafficPolicy", "api"]["spec"].get("tls")
    assert tls == (None if environment == "development" else {"minVersion": "1.2", "maxVersion": "1.3"})


def test_pods_of_the_cluster_call_the_api_by_every_name_of_the_guides_service(objects: Objects) -> None:
    service, namespace = "user-service", "aegis-user-service"
    qualified = f"{service}.{namespace}"
    names = [service, qualified, f"{qualified}.svc", f"{qualified}.svc.cluster.local"]
    listeners = {listener["hostname"]: listener for listener in objects["Gateway", "api"]["spec"]["listeners"]}
    assert [(listeners[name]["protocol"], listeners[name]["port"]) for name in names] == [("HTTP", 80)] * 4
    # How Envoy Gateway names the Service of a Gateway.
    digest = hashlib.sha256(f"{namespace}/api".encode()).hexdigest()[:8]
    assert objects["Service", service]["spec"] == {
        "type": "ExternalName",
        "externalName": f"envoy-{namespace}-api-{digest}.envoy-gateway-system.svc.cluster.local",
    }


def test_nobody_outside_of_the_cluster_gets_plain_http_by_a_name_of_its_service(objects: Objects) -> None:
    policy = objects["SecurityPolicy", "inside"]["spec"]
    assert {(target["kind"], target["name"]) for target in policy["targetRefs"]} == {("Gateway", "api")}
    assert {target["sectionName"] for target in policy["targetRefs"]} == inside_listeners(objects)
    assert policy["authorization"]["defaultAction"] == "Deny"
    (rule,) = policy["authorization"]["rules"]
    assert rule["action"] == "Allow"
    assert not any(ip_network(block).is_global for block in rule["principal"]["clientCIDRs"])


def test_the_gateway_answers_health_checks_without_a_function(objects: Objects) -> None:
    (rule,) = objects["HTTPRoute", "health"]["spec"]["rules"]
    assert {(match["method"], match["path"]["type"], match["path"]["value"]) for match in rule["matches"]} == {
        ("GET", "Exact", "/health"),
        ("HEAD", "Exact", "/health"),
    }
    assert "backendRefs" not in rule
    (filter_,) = rule["filters"]
    answer = objects[filter_["extensionRef"]["kind"], filter_["extensionRef"]["name"]]["spec"]["directResponse"]
    assert (answer["statusCode"], answer["contentType"]) == (200, "application/json")
    assert json.loads(answer["body"]["inline"]) == {"status": "up"}


def test_the_gateway_leads_to_functions_alone_and_in_development_to_the_inbox(
    objects: Objects, environment: str
) -> None:
    """The inbox shows every link that resets a password."""
    backends = {
        backend["name"]
        for (kind, _), item in objects.items()
        if kind == "HTTPRoute"
        for rule in item["spec"]["rules"]
        for backend in rule.get("backendRefs", ())
    }
    assert backends == {"kourier-internal"} | ({"sandbox"} if environment == "development" else set())


def test_the_restricted_pod_security_standard_is_enforced(environment: str) -> None:
    for part in ("", "migration"):
        labels = objects_of(environment, part)["Namespace", "aegis-user-service"]["metadata"]["labels"]
        for mode in ("enforce", "audit", "warn"):
            assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
            assert labels[f"pod-security.kubernetes.io/{mode}-version"] == f"v{check.KUBERNETES}"


def test_monitoring_is_on_except_in_development(objects: Objects, environment: str) -> None:
    assert (("PrometheusRule", "user-service-alerts") in objects) == (environment != "development")


def test_hot_functions_stay_warm_and_all_others_go_to_zero(objects: Objects, environment: str) -> None:
    warm = {
        service["metadata"]["name"]: int(scaling(service)["min-scale"])
        for service in functions_of(objects)
        if scaling(service)["min-scale"] != "0"
    }
    assert warm == (dict.fromkeys(HOT, WARM[environment]) if WARM[environment] else {})


def test_scaling_is_stated_for_every_function_and_within_reason(objects: Objects, environment: str) -> None:
    for service in functions_of(objects):
        stated = scaling(service)
        assert stated.keys() == {
            "target",
            "target-utilization-percentage",
            "target-burst-capacity",
            "min-scale",
            "max-scale",
            "window",
            "scale-down-delay",
            "panic-window-percentage",
            "panic-threshold-percentage",
        } | ({"scale-to-zero-pod-retention-period"} if environment == "development" else set())
        name, spec = service["metadata"]["name"], service["spec"]["template"]["spec"]
        assert int(stated["min-scale"]) <= int(stated["max-scale"])
        assert int(stated["target"]) <= spec["containerConcurrency"]
        is_scheduled = service["metadata"]["labels"]["aegis.example.com/class"] == "schedule"
        goes_at_once = environment == "development" or is_scheduled
        assert stated["scale-down-delay"] == ("0s" if goes_at_once else "300s"), name


def test_an_event_function_takes_as_many_at_once_as_the_topic_has_partitions(objects: Objects) -> None:
    for service in functions_of(objects):
        if service["metadata"]["labels"]["aegis.example.com/class"] == "event":
            assert int(scaling(service)["target"]) == kafka.PARTITIONS
            assert int(variables(service)["THREADS"]) == kafka.PARTITIONS


def test_each_pooler_keeps_what_functions_prepare(objects: Objects) -> None:
    stated = [
        item["spec"]["pgbouncer"]["parameters"].get("max_prepared_statements")
        if kind == "Pooler"
        else variables(item).get("MAX_PREPARED_STATEMENTS")
        for (kind, name), item in objects.items()
        if kind == "Pooler" or (kind == "Deployment" and name.startswith("pgbouncer"))
    ]
    assert stated
    assert all(int(number or 0) >= 100 for number in stated)


def test_the_connections_of_all_pods_at_full_scale_fit(objects: Objects) -> None:
    """Also while a release replaces each of them, with one pod of PgBouncer taking all, and after a failover."""
    load_all()
    clients = dict.fromkeys(POOLERS, 0)
    for service in functions_of(objects):
        name, threads = function_name(service["metadata"]["name"]), int(variables(service)["THREADS"])
        function = HTTP_FUNCTIONS.get(name)
        if "database" in uses(name):
            clients["pgbouncer"] += int(scaling(service)["max-scale"]) * threads
        if function and function.may_lag:
            clients["pgbouncer-replica"] += int(scaling(service)["max-scale"]) * threads
    pooled = 0
    for pooler in POOLERS:
        if has_pooler(objects, pooler):
            most_clients, pods, pool = pooling(objects, pooler)
            assert 2 * clients[pooler] <= most_clients
            # All of one PostgreSQL: a replica that was promoted keeps what it has, and gets the primary's.
            pooled += (pods + 1) * pool
    relays = objects["Deployment", "relay"]["spec"]["replicas"] + 1
    migration = 1
    release_checks = 2
    processes = relays + migration + release_checks
    backup_and_drill = 2 * 3
    for_superusers = 3
    taken = pooled + processes * (THREADS + 1) + backup_and_drill + for_superusers
    assert taken <= max_connections(objects)


def test_reads_that_may_lag_have_a_replica_where_there_is_one(objects: Objects, environment: str) -> None:
    (settings,) = [item["data"] for (kind, name), item in objects.items() if name.startswith("user-service-config")]
    replica = settings.get("REPLICA_DB_HOST")
    assert replica == (None if environment == "development" else "pgbouncer-replica")
    assert has_pooler(objects, "pgbouncer-replica") == bool(replica)
    if pooler := objects.get(("Pooler", "pgbouncer-replica")):
        assert pooler["spec"]["type"] == "ro"
    elif replica:
        host = variables(objects["Deployment", replica])["DB_HOST"]
        assert objects["Service", host]["spec"]["selector"] == {"app": "postgres", "role": "replica"}


def has_pooler(objects: Objects, name: str) -> bool:
    return ("Pooler", name) in objects or ("Deployment", name) in objects


def pooling(objects: Objects, name: str) -> tuple[int, int, int]:
    """Clients of one PgBouncer, how many of it there are, and its connections to PostgreSQL."""
    if ("Pooler", name) in objects:
        pooler = objects["Pooler", name]["spec"]
        parameters = pooler["pgbouncer"]["parameters"]
        return int(parameters["max_client_conn"]), pooler["instances"], int(parameters["default_pool_size"])
    stated = variables(objects["Deployment", name])
    pods = objects["Deployment", name]["spec"].get("replicas", 1)
    return int(stated["MAX_CLIENT_CONN"]), pods, int(stated["DEFAULT_POOL_SIZE"])


def max_connections(objects: Objects) -> int:
    """PostgreSQL's limit."""
    if cluster := objects.get(("Cluster", "postgres")):
        return int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])
    return int(configuration(objects)["max_connections"])


def configuration(objects: Objects) -> dict[str, str]:
    """PostgreSQL's, by parameter."""
    (found,) = [
        item for (kind, name), item in objects.items() if kind == "ConfigMap" and name.startswith("postgres-config")
    ]
    lines = [line for line in found["data"]["postgresql.conf"].splitlines() if not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}


def test_a_backup_is_taken_each_night_and_tried_out_each_week_in_staging(objects: Objects, environment: str) -> None:
    jobs = {name: item["spec"] for (kind, name), item in objects.items() if kind == "CronJob"}
    assert ("drill" in jobs) == (environment == "staging")
    for name in jobs.keys() & {"backup", "drill"}:
        spec = jobs[name]
        assert spec["concurrencyPolicy"] == "Forbid"
        assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600
        (only,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert [*only["command"], *only["args"]] == ["python", "-m", "knative.aegis", name]
    assert (jobs["backup"]["schedule"], jobs["backup"]["timeZone"]) == ("0 17 * * *", "UTC")


def test_backups_go_to_a_volume_or_in_production_to_a_bucket(objects: Objects, environment: str) -> None:
    pod = objects["CronJob", "backup"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    ((_, settings),) = [key for key in objects if key[0] == "ConfigMap" and key[1].startswith("user-service-config")]
    where = objects["ConfigMap", settings]["data"]["BACKUP_STORE"]
    if environment == "production":
        assert where.startswith("s3://")
        assert "volumes" not in pod
        return
    ((volume,), (mount,)) = (pod["volumes"], pod["containers"][0]["volumeMounts"])
    assert where == mount["mountPath"]
    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in objects


def test_no_function_is_given_the_key_of_the_backups(objects: Objects) -> None:
    for item in [*functions_of(objects), objects["Deployment", "relay"]]:
        assert "backup-secrets" not in json.dumps(item)


def test_what_opens_backups_is_in_no_cluster_but_for_stagings_drill(objects: Objects, environment: str) -> None:
    for (kind, name), item in objects.items():
        told = json.dumps(item)
        if name != "drill-secrets" and kind in {"Secret", "ExternalSecret"}:
            assert "BACKUP_IDENTITY" not in told
            assert "BACKUP_KEY" not in told
        if "drill-secrets" in told and kind != "Secret":
            assert (environment, kind, name) == ("staging", "CronJob", "drill")


def settings_of(objects: Objects) -> Settings:
    """What a process reads of the ConfigMap, as far as no secret is needed."""
    ((_, name),) = [key for key in objects if key[0] == "ConfigMap" and key[1].startswith("user-service-config")]
    data = objects["ConfigMap", name]["data"]
    return load(data, ["cache", "kafka"])


def rendered_with(overlay: str, folder: Path, *components: str) -> Objects:
    """An environment, or a part of it, with more components, as tests/cluster applies it."""
    kustomization = {
        "resources": [os.path.relpath(check.OVERLAYS / overlay, folder.resolve())],
        "components": [os.path.relpath(ROOT / component, folder.resolve()) for component in components],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    kubectl = Path(sys.executable).parent / "kubectl"
    rendered = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return {
        (item["kind"], item["metadata"]["name"]): item for item in yaml.load_all(rendered, yaml.CSafeLoader) if item
    }


GUIDE = {"cpu": 1.0, "memory": 2048.0}
"""What the guide's pod requests in production (4.4), in cores and MiB; there are 3 of it, up to 10."""
SIDECAR = {"cpu": 0.025, "memory": 0.0}
"""What queue-proxy requests, which Knative adds to each pod."""


@pytest.mark.parametrize("resource", ["cpu", "memory"])
def test_functions_of_production_request_no_more_than_the_guide_s_pods(resource: str) -> None:
    at_rest = at_full_scale = 0.0
    for service in functions_of(objects_of("production")):
        one = quantity(container(service)["resources"]["requests"][resource]) + SIDECAR[resource]
        at_rest += int(scaling(service)["min-scale"]) * one
        at_full_scale += int(scaling(service)["max-scale"]) * one
    print(f"\n{resource}: {at_rest:.2f} at rest, {at_full_scale:.2f} at full scale")
    assert at_rest <= 3 * GUIDE[resource]
    assert at_full_scale <= 10 * GUIDE[resource]


def quantity(text: str) -> float:
    """Cores, or MiB."""
    for suffix, factor in {"m": 0.001, "Mi": 1.0, "Gi": 1024.0}.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def test_a_drained_node_takes_one_pod_at_a_time_of_what_has_several(environment: str) -> None:
    """And a budget never stops a drain: it lets one pod go, however many there are."""
    objects = objects_of(environment)
    budgets = [item["spec"] for (kind, _), item in objects.items() if kind == "PodDisruptionBudget"]
    assert all(budget["maxUnavailable"] == 1 for budget in budgets)
    covered = {json.dumps(budget["selector"]["matchLabels"]) for budget in budgets}
    for labels, several in several_pods(objects):
        assert not several or json.dumps(labels) in covered


def several_pods(objects: Objects) -> list[tuple[dict[str, str], bool]]:
    """The labels that select each kind of pod of ours, and whether there is more than one of it."""
    servers: list[tuple[dict[str, Any], bool]] = [
        (item["spec"]["selector"]["matchLabels"], item["spec"].get("replicas", 1) > 1)
        for (kind, _), item in objects.items()
        if kind in ("Deployment", "StatefulSet")
    ]
    warm = [
        ({"serving.knative.dev/service": service["metadata"]["name"]}, int(scaling(service)["min-scale"]) > 1)
        for service in functions_of(objects)
    ]
    return servers + warm
