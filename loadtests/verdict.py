"""What a run was, and what it says."""

from dataclasses import dataclass, field

from loadtests.alerts import Alert, Sample

QUIET, FIRED, NOT_JUDGED = 0, 1, 2

FEWEST_REQUESTS = 50
MOST_FAILED = 0.1
"""The share of requests that may fail without an alert, as by a 4xx: beyond it people did not do what they came for."""


@dataclass
class Run:
    """What happened, second by second."""

    scenario: str
    url: str
    judge: str
    samples: list[Sample] = field(default_factory=list)
    users: dict[int, int] = field(default_factory=dict)
    alerts: dict[int, list[Alert]] = field(default_factory=dict)
    pods: dict[int, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    verdict: str = ""

    @property
    def seconds(self) -> int:
        return max(self.users, default=0)

    def fired(self) -> dict[tuple[str, str], tuple[int, float]]:
        """For each alert and function that fired: its first second, and its value then."""
        found: dict[tuple[str, str], tuple[int, float]] = {}
        for second, active in sorted(self.alerts.items()):
            for alert in active:
                if alert.state == "firing":
                    found.setdefault((alert.name, alert.function), (second, alert.value))
        return found


def verdict(run: Run) -> int:
    """Sets the verdict in words, and returns the exit code."""
    fired = run.fired()
    if fired:
        lines = [
            f"{alert} for {function}, first after {second} s, with {value:.3g}"
            for (alert, function), (second, value) in fired.items()
        ]
        run.verdict = "FIRED: " + "; ".join(lines)
        return FIRED
    answered = sum(not sample.failed for sample in run.samples)
    if answered < FEWEST_REQUESTS:
        run.verdict = (
            f"NOT JUDGED: {answered} of {len(run.samples)} requests were answered, and {FEWEST_REQUESTS} are the "
            "fewest that say anything. Is the service up, and does its /inbox get the mails?"
        )
        return NOT_JUDGED
    failed = len(run.samples) - answered
    if failed > MOST_FAILED * len(run.samples):
        reasons = ", ".join(f"{reason} ({count})" for reason, count in sorted(run.errors.items()))
        run.verdict = f"NOT JUDGED: {failed} of {len(run.samples)} requests failed, and no alert tells why: {reasons}."
        return NOT_JUDGED
    run.verdict = f"QUIET: {len(run.samples)} requests, {failed} failed, no alert fired."
    return QUIET
