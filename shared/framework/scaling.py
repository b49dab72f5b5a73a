"""How a function scales and how its events are delivered. `make generate` writes its manifest from this.

docs/autoscaling.md has the measurements. Plain data, because each function loads it at its start.
"""

from dataclasses import dataclass
from typing import Literal

Load = Literal["cache", "database", "hash", "export", "event", "schedule"]
"""What a function waits for. knative/base/classes sets the target, the concurrency and the resources of each."""

THREADS: dict[Load, int] = {
    "cache": 2,  # Redis answers within milliseconds: more threads would only compete for the interpreter lock
    "database": 4,  # each thread takes a connection, and mostly waits for the database
    "hash": 4,  # one hash for each core at a time; the other threads wait for the database
    "export": 2,  # each request holds its whole document in memory
    "event": 6,  # one for each partition of the topic: events of a partition come one at a time
    "schedule": 2,  # one works, the other answers the probes
}
"""Requests that a pod handles at once."""


@dataclass(frozen=True)
class Scaling:
    """The class of load, and the maximum number of pods. Most functions need one; the second absorbs bursts."""

    load: Load
    max_pods: int = 2

    @property
    def threads(self) -> int:
        return THREADS[self.load]


DATABASE = Scaling("database")
"""The default of a function with a route."""
EVENT = Scaling("event")
"""The default of a function with a Trigger. One pod has a thread for each event; two keep within 70 % of the target."""
SCHEDULE = Scaling("schedule", max_pods=1)
"""The default of a function with a schedule. Two pods would only skip each other's rows."""


@dataclass(frozen=True)
class Delivery:
    """How a Trigger delivers an event before it passes it to keep_dead_letter.

    Always in order: an event waits for the one before it in its partition. The pauses between attempts double. With
    Knative's broker, ten retries pause for 614 s, and take up to 779 s if the function does not answer. With our
    dispatcher, they take three minutes.
    """

    retries: int = 10
    backoff_seconds: float = 0.3
    timeout_seconds: int = 15
