"""The alerting rules: each fires when it should and is silent when it should be (promtool)."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from knative.release import gate
from loadtests import rules
from loadtests.rules import LATENCY
from shared.runtime import metrics
from tests.conftest import ROOT
from tests.knative.environments import objects_of
from tests.shared.test_metrics import documented

pytestmark = pytest.mark.no_service

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="NO PROMTOOL: install Prometheus to test the alerting rules")

GROUPS = rules.groups()
EVERY_RULE: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in EVERY_RULE if "alert" in rule}
RUNBOOKS = ROOT / "docs" / "runbooks.md"

FOREIGN = {
    "kube_pod_container_status_restarts_total",
    "kube_cronjob_created",
    "kube_cronjob_status_last_successful_time",
    "kube_deployment_status_replicas_available",
    "certmanager_certificate_expiration_timestamp_seconds",
    "kn_revision_pods_count",
    "kn_revision_pods_desired",
    "kn_revision_pods_requested",
}
"""Metrics of kube-state-metrics, cert-manager, and Knative Serving 1.21."""

SUBJECTS = {
    "UserServicePodCrashLooping": "pod",
    "UserServiceErrorBudgetBurnsFast": "slo",
    "UserServiceErrorBudgetBurnsSlowly": "slo",
    "UserServiceOutboxWaits": "",
    "UserServiceRelayWithoutLeader": "",
    "UserServiceRelayStandsStill": "",
    "UserServiceDispatcherStandsStill": "trigger",
    "UserServiceEventsAreLate": "trigger",
    "UserServiceRedisAway": "",
    "UserServiceReplicaLags": "replica",
    "UserServiceBackupTooOld": "",
    "UserServiceDrillFailed": "",
    "UserServiceCertificateExpires": "name",
    "UserServiceScaledToMax": "kn_service_name",
    "UserServiceFunctionDown": "kn_service_name",
    "UserServiceWorkerDown": "deployment",
}
"""The label that tells what an alert is about, where that is not the function."""

PROMQL = {
    *("sum", "max", "min", "count", "rate", "increase", "histogram_quantile"),
    *("avg_over_time", "changes", "min_over_time", "sum_over_time"),
    *("vector", "clamp_min", "absent", "time", "or", "and", "unless", "offset"),
}

HOUR, DAY = 60, 1440
Series = list[dict[str, str]]


class Case(NamedTuple):
    alert: str
    title: str
    series: Series
    fires: set[str]
    """For what, by the label of SUBJECTS."""
    minutes: int = 20
    """After so many it is asked whether the alert fires."""
    step: int = 1
    """Minutes between two samples, and between two evaluations."""


def series(name: str, values: str, /, **labels: str) -> dict[str, str]:
    stated = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{stated}}}", "values": values}


def own(name: str, values: str, /, **labels: str) -> dict[str, str]:
    return series(name, values, service="user-service", **labels)


def requests(function: str, status: int, values: str, pod: str = "a", path: str = "/api/v1/users/login") -> Series:
    labels = {"function": function, "status": str(status), "method": "POST", "endpoint": path, "pod": pod}
    return [own("http_requests_total", values, **labels)]


def durations(
    function: str, fast: int, slow: int, *, edge: float = 1.0, method: str = "POST", length: int = 30, pod: str = "a"
) -> Series:
    """Requests a step that took less than the edge, and that took longer."""
    labels = {"function": function, "status": "200", "method": method, "endpoint": "/api/v1/users/x", "pod": pod}
    edges = (0.3, 1.0, 2.0, 10.0)
    buckets = {str(one): fast + (slow if one > edge else 0) for one in edges} | {"+Inf": fast + slow}
    if edge == 1.0:
        buckets["0.3"] = fast
    name = "http_request_duration_seconds"
    return [
        own(f"{name}_count", f"0+{fast + slow}x{length}", **labels),
        *(own(f"{name}_bucket", f"0+{count}x{length}", le=le, **labels) for le, count in buckets.items()),
    ]


def knative(desired: str, requested: str, ready: str, revision: str = "login-r1") -> Series:
    labels = {"k8s_namespace_name": "aegis-user-service", "kn_service_name": "login", "kn_revision_name": revision}
    values = {"desired": desired, "requested": requested, "count": ready}
    return [series(f"kn_revision_pods_{name}", value, **labels) for name, value in values.items()]


def restarts(values: str) -> Series:
    labels = {"namespace": "aegis-user-service", "pod": "login-1", "container": "function"}
    return [series("kube_pod_container_status_restarts_total", values, **labels)]


def dead_letters(function: str, values: str, pod: str = "a") -> Series:
    return [own("dead_letters", values, function=function, pod=pod)]


def relay(leads: str, waiting: str, sent: str, pod: str = "a") -> Series:
    return [
        own("relay_leads", leads, pod=pod),
        own("outbox_waiting_events", waiting, pod=pod),
        own("relay_sent_events_total", sent, pod=pod),
    ]


def group(lag: str, offset: str, partition: str = "0", name: str = "g", pod: str = "a") -> Series:
    """What a relay shows of a consumer group in a partition."""
    labels = {"trigger": "send-email", "consumergroup": name, "topic": "t", "partition": partition, "pod": pod}
    return [
        own("kafka_consumergroup_lag", lag, **labels),
        own("kafka_consumergroup_current_offset", offset, **labels),
    ]


def cache_reads(hit: str, unavailable: str) -> Series:
    labels = {"function": "get_profile", "cache": "session"}
    return [
        own("cache_reads_total", hit, outcome="hit", **labels),
        own("cache_reads_total", unavailable, outcome="unavailable", **labels),
    ]


def lag(values: str, pod: str = "a") -> Series:
    return [own("replication_lag_seconds", values, replica="b", pod=pod)]


def withheld(function: str, channel: str, limit: str) -> Series:
    return [own("messages_withheld_total", "0+3x30", function=function, channel=channel, limit=limit)]


def look_ups(clean: str, unavailable: str) -> Series:
    name, function = "breached_password_checks_total", "register"
    return [
        own(name, clean, function=function, outcome="clean"),
        own(name, unavailable, function=function, outcome="unavailable"),
    ]


def available(values: str) -> Series:
    labels = {"namespace": "aegis-user-service", "deployment": "relay"}
    return [series("kube_deployment_status_replicas_available", values, **labels)]


def cron_job(name: str, *succeeded: str) -> Series:
    """A CronJob, and when it last succeeded."""
    labels = {"namespace": "aegis-user-service", "cronjob": name}
    named = "kube_cronjob_status_last_successful_time"
    return [series("kube_cronjob_created", "0x90", **labels), *(series(named, one, **labels) for one in succeeded)]


def backups(*succeeded: str) -> Series:
    return cron_job("backup", *succeeded)


def certificate(expires: int) -> Series:
    labels = {"namespace": "aegis-user-service", "name": "aegis-tls"}
    return [series("certmanager_certificate_expiration_timestamp_seconds", f"{expires}x30", **labels)]


def started(seconds: str, pods: str, values: str) -> Series:
    """Pods that all took so long to start, and when each was there."""
    return [
        own("process_start_to_ready_seconds", values.replace("S", seconds), function="login", instance=pod)
        for pod in pods
    ]


ERROR_RATE, CRASHES, DEAD = "UserServiceHighErrorRate", "UserServicePodCrashLooping", "UserServiceDeadLetters"
FAST, SLOWLY = "UserServiceErrorBudgetBurnsFast", "UserServiceErrorBudgetBurnsSlowly"
OUTBOX, LEADER, RELAY = "UserServiceOutboxWaits", "UserServiceRelayWithoutLeader", "UserServiceRelayStandsStill"
DISPATCHER, LATE = "UserServiceDispatcherStandsStill", "UserServiceEventsAreLate"
POOL, REDIS, REPLICA = "UserServicePoolExhausted", "UserServiceRedisAway", "UserServiceReplicaLags"
BACKUP, DRILL = "UserServiceBackupTooOld", "UserServiceDrillFailed"
SENDS, UNCHECKED = "UserServiceSendsTooMuch", "UserServiceBreachedPasswordsUnchecked"
CERTIFICATE = "UserServiceCertificateExpires"
MAX, DOWN, WORKER = "UserServiceScaledToMax", "UserServiceFunctionDown", "UserServiceWorkerDown"
COLD = "UserServiceColdStartsOverBudget"

CASES = [
    Case(ERROR_RATE, "a tenth fails", requests("login", 200, "0+89x30") + requests("login", 503, "0+11x30"), {"login"}),
    Case(ERROR_RATE, "fewer fail", requests("login", 200, "0+95x30") + requests("login", 503, "0+5x30"), set()),
    Case(
        ERROR_RATE,
        "many errors among very many requests",
        requests("login", 200, "0+60000x30") + requests("login", 500, "0+600x30"),
        set(),
    ),
    Case(
        ERROR_RATE,
        "one function fails, another does not",
        requests("login", 500, "0+10x30") + requests("register", 200, "0+1000x30"),
        {"login"},
    ),
    Case(ERROR_RATE, "callers err", requests("login", 401, "0+100x30"), set()),
    Case(ERROR_RATE, "all of three requests a minute fail", requests("login", 500, "0+3x30"), set()),
    Case(ERROR_RATE, "the pod that failed is gone", requests("login", 500, "0+50x9 _x30"), set()),
    Case(
        ERROR_RATE,
        "pods restart and count anew",
        requests("login", 200, "0+90x9 0+90x30") + requests("login", 500, "0+20x9 0+20x30"),
        {"login"},
    ),
    Case(
        ERROR_RATE,
        "a pod restarts and nothing fails",
        requests("login", 200, "0+90x9 0+90x30") + requests("login", 500, "70x9 0x30"),
        set(),
    ),
    Case(ERROR_RATE, "nobody calls", requests("login", 200, "5x30") + requests("login", 500, "5x30"), set()),
    Case(ERROR_RATE, "no series", [], set()),
    Case(LATENCY, "one in ten is slow", durations("login", 90, 10), {"login"}),
    Case(LATENCY, "one in fifty is slow", durations("login", 98, 2), set()),
    Case(
        LATENCY,
        "one pod of many has one slow request",
        durations("login", 1000, 0) + durations("login", 0, 1, pod="b"),
        set(),
    ),
    Case(LATENCY, "all of three requests a minute are slow", durations("login", 0, 3), set()),
    Case(LATENCY, "no requests at all", durations("login", 0, 0), set()),
    Case(LATENCY, "no series", [], set()),
    Case(CRASHES, "a pod restarts again and again", restarts("0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 9"), {"login-1"}),
    Case(CRASHES, "a pod restarted once", restarts("0 0 1x18"), set()),
    Case(CRASHES, "the pod is gone", restarts("0 1 2 3 4 _x60"), set(), minutes=30),
    Case(
        DEAD,
        "an event became a dead letter",
        dead_letters("send_email", "0x9 1x20") + dead_letters("send_email", "0x9 1x20", pod="b"),
        {"send_email"},
    ),
    Case(
        DEAD,
        "the dead letters were sent again",
        dead_letters("send_email", "2x9 _x20") + dead_letters("send_sms", "1x9 0x20"),
        set(),
    ),
    Case(
        FAST,
        "one in fifty fails for an hour",
        requests("login", 200, "0+98x90") + requests("login", 500, "0+2x90"),
        {"success"},
        minutes=80,
    ),
    Case(
        FAST,
        "one in a thousand fails",
        requests("login", 200, "0+999x90") + requests("login", 500, "0+1x90"),
        set(),
        minutes=80,
    ),
    Case(
        FAST,
        "it is over",
        requests("login", 200, "0+90x120") + requests("login", 500, "0+10x59 590x60"),
        set(),
        minutes=100,
    ),
    Case(
        FAST,
        "one in a hundred fails for half a day",
        requests("login", 200, "0+198x360") + requests("login", 500, "0+2x360"),
        {"success"},
        minutes=12 * HOUR,
        step=2,
    ),
    Case(
        FAST,
        "all of five requests in an hour fail",
        requests("login", 500, "0x10 1x10 2x10 3x10 4x10 5x60"),
        set(),
        minutes=62,
    ),
    Case(
        FAST,
        "events fail, and are tried again",
        requests("login", 200, "0+100x90") + requests("send_email", 503, "0+50x90", path="/"),
        set(),
        minutes=80,
    ),
    Case(
        FAST,
        "unknown paths hide no errors",
        requests("login", 500, "0+2x90")
        + requests("login", 200, "0+98x90", pod="b")
        + requests("fallback", 404, "0+100000x90", path="/*"),
        {"success"},
        minutes=80,
    ),
    Case(
        FAST,
        "pods restart and count anew",
        requests("login", 200, "0+98x40 0+98x50") + requests("login", 500, "0+2x40 0+2x50"),
        {"success"},
        minutes=80,
    ),
    Case(FAST, "a pod restarts and nothing fails", requests("login", 200, "0+98x40 0+98x50"), set(), minutes=80),
    Case(FAST, "no series", [], set(), minutes=80),
    Case(
        FAST,
        "a fifth of the reads is slow",
        durations("get_profile", 80, 20, edge=0.3, method="GET", length=90),
        {"reads_under_300ms"},
        minutes=80,
    ),
    Case(
        FAST,
        "a fifth of the writes is",
        durations("login", 80, 20, edge=0.3, length=90),
        set(),
        minutes=80,
    ),
    Case(FAST, "nearly all take more than a second", durations("login", 20, 80, length=90), {"under_1s"}, minutes=80),
    Case(FAST, "a twentieth does", durations("login", 95, 5, length=90), set(), minutes=80),
    Case(
        SLOWLY,
        "four in a thousand fail for a day",
        requests("login", 200, "0+996x800") + requests("login", 500, "0+4x800"),
        {"success"},
        minutes=26 * HOUR,
        step=2,
    ),
    Case(
        SLOWLY,
        "fifteen in ten thousand fail for three days",
        requests("login", 200, "0+1997x2200") + requests("login", 500, "0+3x2200"),
        {"success"},
        minutes=3 * DAY,
        step=2,
    ),
    Case(
        SLOWLY,
        "as many fail as the objective allows",
        requests("login", 200, "0+10000x2200") + requests("login", 500, "0+9x2200"),
        set(),
        minutes=3 * DAY,
        step=2,
    ),
    Case(
        SLOWLY,
        "five failed in the first hour of a new Prometheus",
        requests("login", 200, "0+1x90") + requests("login", 500, "0x20 0+1x5 5x90"),
        set(),
        minutes=60,
    ),
    Case(
        SLOWLY,
        "six failed among few",
        requests("login", 200, "0+1x800") + requests("login", 500, "0x600 0+1x6 6x800"),
        set(),
        minutes=22 * HOUR,
        step=2,
    ),
    Case(OUTBOX, "events wait", [own("outbox_waiting_seconds", "0+60x30", pod=pod) for pod in "ab"], {""}),
    Case(OUTBOX, "events wait for a moment", [own("outbox_waiting_seconds", "0x10 90 200 0x20")], set(), minutes=12),
    Case(OUTBOX, "the database is away, and nothing is said", [own("outbox_waiting_seconds", "0+60x5 _x30")], set()),
    Case(LEADER, "none of two leads", relay("0x30", "0x30", "0x30") + relay("0x30", "0x30", "0x30", pod="b"), {""}),
    Case(LEADER, "one leads", relay("1x30", "0x30", "0x30") + relay("0x30", "0x30", "0x30", pod="b"), set()),
    Case(
        LEADER,
        "the lead goes over",
        relay("1x18 0x10", "0x30", "0x30") + relay("0x19 1x10", "0x30", "0x30", pod="b"),
        set(),
    ),
    Case(LEADER, "the relays are gone", relay("1x9 _x30", "0x30", "0x30"), {""}),
    Case(LEADER, "there was never one", [], {""}),
    Case(RELAY, "nothing is sent", relay("1x30", "5x30", "100x30"), {""}),
    Case(RELAY, "it sends, and more comes", relay("1x30", "5x30", "0+100x30"), set()),
    Case(RELAY, "nothing waits", relay("1x30", "0x30", "100x30"), set()),
    Case(
        RELAY,
        "another relay sends",
        relay("0x30", "5x30", "0x30") + relay("1x30", "5x30", "0+9x30", pod="b"),
        set(),
    ),
    Case(RELAY, "the relay restarts and sends", relay("1x30", "5x30", "0+100x9 0+100x30"), set()),
    Case(RELAY, "no series", [], set()),
    Case(DISPATCHER, "a function takes nothing", group("3x30", "50x30"), {"send-email"}, minutes=25),
    Case(
        DISPATCHER,
        "and both relays say so",
        group("0+1x40", "50x40") + group("0+1x40", "50x40", pod="b"),
        {"send-email"},
        minutes=30,
    ),
    Case(DISPATCHER, "it takes some, and more comes", group("3x30", "50+2x30"), set(), minutes=25),
    Case(
        DISPATCHER,
        "one partition stands still, and others go on",
        group("3x30", "50x30") + group("3x30", "50+2x30", partition="1"),
        set(),
        minutes=25,
    ),
    Case(DISPATCHER, "nothing waits", group("0x30", "50x30"), set(), minutes=25),
    Case(DISPATCHER, "an event is given up after Knative's 13 minutes", group("1x13 0x20", "50x13 51x20"), set()),
    Case(DISPATCHER, "the relay restarts", group("3x9", "50x9") + group("0 _x9 3x30", "50+2x40", pod="b"), set()),
    Case(DISPATCHER, "the broker is away, and nothing is said", group("3x5 _x30", "50x5 _x30"), set(), minutes=25),
    Case(DISPATCHER, "no series", [], set()),
    Case(LATE, "an event waits", group("1x30", "50x30"), {"send-email"}),
    Case(
        LATE,
        "and those behind it, by both relays",
        group("0+5x30", "50x30") + group("0+5x30", "50x30", pod="b"),
        {"send-email"},
    ),
    Case(
        LATE,
        "one partition is late, and others go on",
        group("3x30", "50x30") + group("3x30", "0+50x30", partition="1"),
        {"send-email"},
    ),
    Case(LATE, "it is six minutes behind", group("60x40", "0+10x40"), {"send-email"}, minutes=30),
    Case(LATE, "it is four minutes behind", group("40x40", "0+10x40"), set(), minutes=30),
    Case(LATE, "an event waited for seven minutes", group("0x10 1x7 0x20", "50x17 51x20"), set(), minutes=19),
    Case(
        LATE,
        "the topic is another one, and all of it comes again",
        group("0x9 _x30", "5000x9 _x30") + group("_x10 40 0x20", "_x10 0 40x20", name="of-the-new-topic"),
        set(),
    ),
    Case(LATE, "the broker is away, and nothing is said", group("3x5 _x30", "50x5 _x30"), set()),
    Case(LATE, "no series", [], set()),
    Case(POOL, "many wait in vain", [own("database_pool_timeouts_total", "0+2x30", function="login")], {"login"}),
    Case(POOL, "two did", [own("database_pool_timeouts_total", "0x16 1 2x20", function="login")], set()),
    Case(POOL, "a pod restarts", [own("database_pool_timeouts_total", "50x16 0x20", function="login")], set()),
    Case(POOL, "it was long ago", [own("database_pool_timeouts_total", "0+9x5 45x30", function="login")], set()),
    Case(REDIS, "Redis does not answer", cache_reads("100x30", "0+50x30"), {""}),
    Case(REDIS, "it misses a few", cache_reads("0+50x30", "0+5x30"), set()),
    Case(REDIS, "nearly nobody reads", cache_reads("100x30", "0+1x30"), set()),
    Case(REDIS, "another node took over", cache_reads("0+50x15 765x1 0+50x20", "0x16 50x20"), set()),
    Case(REDIS, "no series", [], set()),
    Case(SENDS, "mails are withheld", withheld("send_email", "mail", "service"), {"send_email"}),
    Case(SENDS, "texts are withheld", withheld("request_phone_code", "text", "service"), {"request_phone_code"}),
    Case(SENDS, "one mailbox has had enough", withheld("send_email", "mail", "mailbox"), set()),
    Case(SENDS, "nothing is withheld", [], set()),
    Case(UNCHECKED, "the list is away", look_ups("0+1x40", "0+4x40"), {"register"}, minutes=30),
    Case(UNCHECKED, "it misses a few", look_ups("0+9x40", "0+1x40"), set(), minutes=30),
    Case(UNCHECKED, "no list is asked", [], set(), minutes=30),
    Case(
        REPLICA,
        "a replica is behind",
        [own("replication_lag_seconds", "40x30", replica="b", pod=pod) for pod in "xy"],
        {"b"},
    ),
    Case(REPLICA, "for a moment", lag("0x17 40x2 0x20"), set()),
    Case(REPLICA, "no replica, or none that we see", [], set()),
    Case(BACKUP, "the last one is too old", backups("3600x60"), {""}, minutes=28 * HOUR, step=30),
    Case(BACKUP, "it is of last night", backups("72000x60"), set(), minutes=28 * HOUR, step=30),
    Case(BACKUP, "none has succeeded yet, on the first day", backups(), set(), minutes=20 * HOUR, step=30),
    Case(BACKUP, "none has ever succeeded", backups(), {""}, minutes=28 * HOUR, step=30),
    Case(BACKUP, "nobody makes backups", [], {""}),
    Case(
        BACKUP,
        "the database knows of none as new",
        backups("72000x60") + [own("backup_age_seconds", "100000x60", pod=pod) for pod in "xy"],
        {""},
        minutes=28 * HOUR,
        step=30,
    ),
    Case(
        BACKUP,
        "and of one of last night",
        [*backups("72000x60"), own("backup_age_seconds", "30000x60")],
        set(),
        minutes=28 * HOUR,
        step=30,
    ),
    Case(DRILL, "it has failed on Sunday", cron_job("drill", "3600x90"), {""}, minutes=8 * DAY, step=180),
    Case(DRILL, "it is of last Sunday", cron_job("drill", "3600x90"), set(), minutes=7 * DAY, step=180),
    Case(DRILL, "there is none here", [], set()),
    Case(CERTIFICATE, "ten days are left", certificate(10 * 86400), {"aegis-tls"}),
    Case(CERTIFICATE, "forty are", certificate(40 * 86400), set()),
    Case(CERTIFICATE, "without TLS", [], set()),
    Case(MAX, "the load asks for more", knative("14x30", "10x30", "10x30"), {"login"}),
    Case(MAX, "it has what it asks for", knative("10x30", "10x30", "10x30"), set()),
    Case(MAX, "a burst", knative("2x15 14x2 2x20", "2x15 10x2 2x20", "2x15 10x2 2x20"), set()),
    Case(MAX, "the autoscaler has just started", knative("3x30", "-1x30", "3x30"), set()),
    Case(MAX, "at zero", knative("0x30", "0x30", "0x30"), set()),
    Case(DOWN, "no pod becomes ready", knative("3x30", "3x30", "0x30"), {"login"}),
    Case(DOWN, "some are", knative("3x30", "3x30", "1x30"), set()),
    Case(DOWN, "a cold start", knative("0x17 1x20", "0x17 1x20", "0x18 1x20"), set(), minutes=18),
    Case(DOWN, "at zero", knative("0x30", "0x30", "0x30"), set()),
    Case(
        DOWN,
        "the pods of the release before serve",
        knative("1x30", "1x30", "0x30", revision="login-r2") + knative("1x30", "1x30", "1x30"),
        set(),
    ),
    Case(DOWN, "no series", [], set()),
    Case(WORKER, "no relay is available", available("0x30"), {"relay"}),
    Case(WORKER, "one of two is", available("1x30"), set()),
    Case(WORKER, "it is replaced", available("1x18 0 1x20"), set()),
    Case(WORKER, "there is no such Deployment", [], set()),
    Case(COLD, "three pods start slowly", started("9", "abc", "_x12 Sx20"), {"login"}),
    Case(COLD, "one does", started("9", "a", "_x12 Sx20") + started("1", "bcd", "_x12 Sx20"), set()),
    Case(COLD, "three did, long ago", started("9", "abc", "Sx40"), set(), minutes=35),
    Case(COLD, "no series", [], set()),
]


def promtool(folder: Path, *command: str) -> str:
    """What it finds fault with."""
    done = subprocess.run([PROMTOOL or "", *command], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def groups_for(alert: str) -> list[dict[str, Any]]:
    """The rule of an alert with the recording rules that it reads: to evaluate all of them takes long."""
    wanted, read = metrics_in(ALERTS[alert]["expr"]), {alert}
    while wanted - read:
        read |= wanted
        wanted = {name for rule in EVERY_RULE if rule.get("record") in read for name in metrics_in(rule["expr"])}
    return [
        {**one, "rules": [rule for rule in one["rules"] if rule.get("alert", rule.get("record")) in read]}
        for one in GROUPS
    ]


@needs_promtool
@pytest.mark.parametrize(
    "case",
    # Three days of averages over three days take seconds.
    [pytest.param(case, marks=[pytest.mark.slow] if case.alert == SLOWLY else []) for case in CASES],
    ids=[f"{case.alert.removeprefix('UserService')}: {case.title}" for case in CASES],
)
def test_an_alert_fires_when_it_should_and_only_then(tmp_path: Path, case: Case) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups_for(case.alert)}))
    subject = SUBJECTS.get(case.alert, "function")
    query = f'count by ({subject}) (ALERTS{{alertname="{case.alert}", alertstate="firing"}})'
    expected = [{"labels": f'{{{subject}="{one}"}}' if subject else "{}", "value": 1} for one in case.fires]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{case.step}m",
        "tests": [
            {
                "interval": f"{case.step}m",
                "input_series": case.series,
                "promql_expr_test": [{"expr": query, "eval_time": f"{case.minutes}m", "exp_samples": expected}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    assert promtool(tmp_path, "test", "rules", "test.yaml") == ""


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    assert {case.alert for case in CASES if case.fires} == ALERTS.keys()
    assert {case.alert for case in CASES if not case.fires} == ALERTS.keys()


@needs_promtool
def test_the_rules_are_valid_as_they_are_and_scaled_for_a_load_test(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    (tmp_path / "scaled.yaml").write_text(yaml.safe_dump({"groups": rules.scaled()}))
    for file in ("rules.yaml", "scaled.yaml"):
        done = subprocess.run(
            [PROMTOOL or "", "check", "rules", file], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_how_bad_and_what_to_do() -> None:
    for rule in ALERTS.values():
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert "for" in rule


def test_the_release_gate_takes_nothing_that_is_missing_for_an_alert() -> None:
    """Of a revision that has no requests yet there are no series; relay and dispatcher have no revision at all."""
    asked = {name: gate.of_release(rule["expr"], 12, 60) for name, rule in ALERTS.items()}
    assert all(asked[name] for name in (ERROR_RATE, LATENCY, CRASHES, POOL))
    assert [name for name, expression in asked.items() if "absent(" in expression or "vector(" in expression] == []


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOKS.read_text("utf-8"), re.MULTILINE)
    assert sections == list(ALERTS)
    assert [rule["annotations"]["runbook_url"] for rule in ALERTS.values()] == [
        f"runbooks#{section.lower()}" for section in sections
    ]
    assert set(re.findall(r"UserService\w+", (ROOT / "docs" / "alerts.md").read_text("utf-8"))) == ALERTS.keys()


def test_on_a_cluster_the_runbooks_have_an_address() -> None:
    (manifest,) = (one for one in objects_of("staging").values() if one["kind"] == "PrometheusRule")
    base = manifest["metadata"]["annotations"]["aegis.example.com/runbooks"]
    urls = [
        rule["annotations"]["runbook_url"]
        for group in manifest["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert urls == [f"{base}#{name.lower()}" for name in ALERTS]


def test_rules_ask_for_metrics_that_there_are() -> None:
    assert others_in(rule["expr"] for rule in EVERY_RULE) == FOREIGN


def others_in(expressions: Iterable[str]) -> set[str]:
    """The metrics in these that are neither of our processes nor of recording rules."""
    exposed = {
        shown
        for name, (kind, _) in documented().items()
        for shown in ([f"{name}_bucket", f"{name}_count"] if kind == "histogram" else [name])
    }
    recorded = {rule["record"] for rule in EVERY_RULE if "record" in rule}
    return {name for expression in expressions for name in metrics_in(expression)} - exposed - recorded


def metrics_in(expression: str) -> set[str]:
    """The names in an expression that are neither labels nor PromQL's."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on) \([^)]*\)', "", expression)
    return set(re.findall(r"\b[a-z][\w:]*", bare)) - PROMQL


def test_every_threshold_of_a_latency_is_an_edge_of_the_buckets() -> None:
    assert rules.threshold(LATENCY) in metrics.BUCKETS
    edges = [edge for rule in EVERY_RULE for edge in re.findall(r'le="([^"]*)"', rule["expr"])]
    assert edges
    assert {float(edge) for edge in edges} <= set(metrics.BUCKETS)
