"""The record of a run and its verdict."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from loadtests.alerts import Alert, Sample, Subject

QUIET, FIRED, NOT_JUDGED = 0, 1, 2

FEWEST_REQUESTS = 50
MOST_FAILED = 0.1
"""Maximum share of requests that can fail without an alert, as with a 4xx. With more, the load was not as intended."""


@dataclass
class Run:
    """What happened, second by second."""

    scenario: str
    url: str
    judge: str
    before: frozenset[Subject] = frozenset()
    """Alerts that were active before it began."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    samples: dict[int, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    users: dict[int, int] = field(default_factory=dict)
    alerts: dict[int, list[Alert]] = field(default_factory=dict)
    pods: dict[int, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    verdict: str = ""

    @property
    def seconds(self) -> int:
        return max(self.users, default=0)

    @property
    def all_samples(self) -> list[Sample]:
        return [sample for samples in self.samples.values() for sample in samples]

    def fired(self) -> dict[Subject, tuple[int, float]]:
        """Return each alert that fired only during the run, with its first second and its value then."""
        found: dict[Subject, tuple[int, float]] = {}
        for second, active in sorted(self.alerts.items()):
            for alert in active:
                if alert.state == "firing" and alert.subject not in self.before:
                    found.setdefault(alert.subject, (second, alert.value))
        return found


def verdict(run: Run) -> int:
    """Set the verdict in words and return the exit code."""
    code, run.verdict = _verdict(run)
    if run.before:
        named = ", ".join(str(subject) for subject in sorted(run.before))
        run.verdict += f" Ignored, as active before the run: {named}."
    return code


def _verdict(run: Run) -> tuple[int, str]:
    if fired := run.fired():
        lines = [f"{subject}, first after {second} s with {value:.3g}" for subject, (second, value) in fired.items()]
        return FIRED, f"FIRED: {'; '.join(lines)}."
    requests = len(run.all_samples)
    failed = sum(sample.failed for sample in run.all_samples)
    if requests - failed < FEWEST_REQUESTS:
        return NOT_JUDGED, (
            f"NOT JUDGED: {requests - failed} of {requests} requests succeeded, but at least {FEWEST_REQUESTS} are "
            "needed for a verdict. Check that the service is running and that its /inbox receives mails."
        )
    if failed > MOST_FAILED * requests:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(run.errors.items()))
        return NOT_JUDGED, f"NOT JUDGED: {failed} of {requests} requests failed, but no alert fired: {reasons}."
    return QUIET, f"QUIET: {requests} requests, {failed} failed, no alert fired."
