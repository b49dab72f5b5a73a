"""The metrics of the relay, read from the database at each scrape, so that every relay reports the same values."""

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Row, extract, func, select, text

from shared.events import dead_letters
from shared.postgresql.tables import backup, outbox
from shared.postgresql.transactions import transaction
from shared.runtime.metrics import SERVICE
from shared.runtime.problems import ServiceUnavailable

# Registered only by the relay, because all processes of `make up` are forks of one that has imported this module.
_leads = Gauge("relay_leads", "1 in the relay that sends, 0 in one that stands by.", ["service"], registry=None)
_sent = Counter("relay_sent_events_total", "Events that the broker has taken.", ["service"], registry=None)
_errors = Counter("relay_errors_total", "Times that it had to begin anew.", ["service", "cause"], registry=None)
LEADS, SENT = _leads.labels(SERVICE), _sent.labels(SERVICE)
ERRORS = {cause: _errors.labels(SERVICE, cause) for cause in ("database", "broker", "bug")}


def register() -> None:
    """Add these metrics to those of this process."""
    for collector in (_leads, _sent, _errors, OutboxCollector()):
        REGISTRY.register(collector)


# `aegis backup` ends before Prometheus could scrape it.
_NEWEST_BACKUP = (
    select(extract("epoch", func.now() - backup.c.taken_at).label("seconds"), backup.c.size)
    .order_by(backup.c.taken_at.desc())
    .limit(1)
)


class OutboxCollector(Collector):
    """Reports the outbox, dead letters, replicas and backups; reports nothing while the database is unreachable."""

    def collect(self) -> Iterator[Metric]:
        age = extract("epoch", func.now() - func.min(outbox.c.occurred_at))
        waiting = select(func.count(), func.coalesce(age, 0)).where(outbox.c.sent_at.is_(None))
        try:
            with transaction() as connection:
                count, seconds = connection.execute(waiting).one()
                dead = dead_letters.count(connection)
                replicas = _replicas(connection)
                newest = connection.execute(_NEWEST_BACKUP).first()
        except ServiceUnavailable:
            return
        events = GaugeMetricFamily("outbox_waiting_events", "Events that wait to be sent.", labels=["service"])
        events.add_metric([SERVICE], count)
        oldest = GaugeMetricFamily("outbox_waiting_seconds", "Age of the oldest event that waits.", labels=["service"])
        oldest.add_metric([SERVICE], float(seconds))
        untaken = GaugeMetricFamily(
            "dead_letters", "Events that a function did not take.", labels=["service", "function"]
        )
        for function, number in dead.items():
            untaken.add_metric([SERVICE, function], number)
        lag = GaugeMetricFamily(
            "replication_lag_seconds", "How far a replica is behind the primary.", labels=["service", "replica"]
        )
        for replica in replicas:
            lag.add_metric([SERVICE, replica.name], float(replica.seconds))
        since = GaugeMetricFamily("backup_age_seconds", "Since the newest backup was begun.", labels=["service"])
        size = GaugeMetricFamily("backup_size_bytes", "Of the newest backup, encrypted.", labels=["service"])
        if newest:
            since.add_metric([SERVICE], float(newest.seconds))
            size.add_metric([SERVICE], newest.size)
        yield from (events, oldest, untaken, lag, since, size)


def _replicas(connection: Connection) -> Sequence[Row[Any]]:
    """Return the connected replicas by their application name; none if the owner of the tables lacks pg_monitor.

    Without that role, PostgreSQL shows the rows but hides their values.
    """
    return connection.execute(text("SELECT name, seconds FROM public.replication_lag()")).all()
