"""How a function scales and how its events are delivered, from which `make generate` writes its manifest.

docs/autoscaling.md has the measurements. Plain data, as each function loads it at its start.
"""

from dataclasses import dataclass
from typing import Literal

Load = Literal["cache", "database", "hash", "export", "event", "schedule"]
"""What a function waits for. knative/base/classes sets the target, the concurrency and the resources of each."""

THREADS: dict[Load, int] = {
    "cache": 2,  # Redis answers within milliseconds: more threads only hand the interpreter lock around
    "database": 4,  # each thread takes a connection, and waits for the database most of its time
    "hash": 4,  # one hash for each core at a time; the other threads wait for the database
    "export": 2,  # each request holds its whole document in memory
    "event": 6,  # one for each partition of the topic, as each has one event under way
    "schedule": 2,  # one works, the other answers the probes
}
"""Requests that a pod works on at once."""


@dataclass(frozen=True)
class Scaling:
    """The class of load, and the most pods. One pod is enough for most functions; the second is for a burst."""

    load: Load
    max_pods: int = 2

    @property
    def threads(self) -> int:
        return THREADS[self.load]


DATABASE = Scaling("database")
"""Of a function with a route, where it states nothing else."""
EVENT = Scaling("event")
"""Of a function with a Trigger. One pod has a thread for each event; two keep within 70 % of the target."""
SCHEDULE = Scaling("schedule", max_pods=1)
"""Of a function with a schedule. Two pods would only skip each other's rows."""


@dataclass(frozen=True)
class Delivery:
    """How a Trigger delivers an event, until it gives it to keep_dead_letter.

    Always in order: the next event of a partition waits for the one before it. The pauses between tries double. With
    Knative's broker ten retries pause for 614 s, and take up to 779 s when the function does not answer; with our own
    dispatcher three minutes.
    """

    retries: int = 10
    backoff_seconds: float = 0.3
    timeout_seconds: int = 15
