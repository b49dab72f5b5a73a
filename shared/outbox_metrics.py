"""What the relay shows to Prometheus: read from the database at each scrape, so that it is true whoever leads."""

from collections.abc import Iterator

from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import extract, func, select

from shared import dead_letters
from shared.database import transaction
from shared.metrics import SERVICE
from shared.problems import ServiceUnavailable
from shared.tables import outbox

LEADS = Gauge("relay_leads", "1 in the relay that sends, 0 in one that stands by.", ["service"]).labels(SERVICE)
SENT = Counter("relay_sent_events_total", "Events that the broker has taken.", ["service"]).labels(SERVICE)


class OutboxCollector(Collector):
    """Nothing while the database is away."""

    def collect(self) -> Iterator[Metric]:
        age = extract("epoch", func.now() - func.min(outbox.c.occurred_at))
        waiting = select(func.count(), func.coalesce(age, 0)).where(outbox.c.sent_at.is_(None))
        try:
            with transaction() as connection:
                count, seconds = connection.execute(waiting).one()
                dead = dead_letters.count(connection)
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
        yield from (events, oldest, untaken)
