"""What the PrometheusRule files of production say, and the same on a shorter scale of time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[1] / "knative" / "components" / "monitoring"
SCALE = 30
"""A Prometheus of our own counts a minute as 2 s: windows and `for` are divided by this."""
LATENCY, ERRORS = "UserServiceHighLatency", "UserServiceHighErrorRate"

PASSING_OF_TIME = ("certmanager_", "kube_cronjob_")
"""How the metrics begin that no load moves: an alert on them alone judges no run."""

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
_WINDOW = re.compile(rf"\[({_DURATION})(?:(:)({_DURATION})?)?\]")
_OFFSET = re.compile(rf"\boffset\s+(-?)({_DURATION})")
_SCRAPES_OF_A_RATE = 3

Rule = dict[str, Any]


def groups(folder: Path = RULES) -> list[dict[str, Any]]:
    """The groups of rules, recording and alerting, in all PrometheusRule files of a folder."""
    documents = [
        document for file in sorted(folder.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text("utf-8"))
    ]
    return [
        group
        for document in documents
        if document and document.get("kind") == "PrometheusRule"
        for group in document["spec"]["groups"]
    ]


def alerting(folder: Path = RULES) -> list[Rule]:
    """The rules that alert."""
    return [rule for group in groups(folder) for rule in group["rules"] if "alert" in rule]


def judging(folder: Path = RULES) -> list[Rule]:
    """The alerting rules that a load can set off: not those on what time alone brings, as a certificate's expiry."""
    recorded = {rule["record"]: rule["expr"] for group in groups(folder) for rule in group["rules"] if "record" in rule}

    def metrics(expression: str) -> Iterator[str]:
        for name in re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r'"[^"]*"', "", expression)):
            if name in recorded:
                yield from metrics(recorded[name])
            else:
                yield name

    return [
        rule for rule in alerting(folder) if not any(name.startswith(PASSING_OF_TIME) for name in metrics(rule["expr"]))
    ]


def seconds(duration: str) -> float:
    """Seconds of a Prometheus duration such as 5m, 1h30m or 500ms.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(_DURATION, duration):
        raise ValueError(f"{duration!r} is not a duration such as 30s, 5m or 1h30m")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def fires_after(rule: Rule) -> float:
    """Seconds for which a rule must hold before it fires."""
    return seconds(str(rule.get("for", "0s")))


def threshold(name: str) -> float:
    """The number above which an alert holds: the first that its expression compares with."""
    expression = next(rule["expr"] for rule in alerting() if rule["alert"] == name)
    return float(re.findall(r">=?\s*([0-9.]+)", expression)[0])


def latency_thresholds() -> list[float]:
    """Seconds: that of the alert on latency, and those of the objectives, whose expressions name a bucket's edge."""
    edges = {
        float(edge)
        for group in groups()
        for rule in group["rules"]
        for edge in re.findall(r'le="([\d.]+)"', rule["expr"])
    }
    return sorted({threshold(LATENCY), *edges})


def scaled(folder: Path = RULES) -> list[dict[str, Any]]:
    """The groups for a Prometheus that scrapes every second: each span of time is divided by SCALE."""
    return [{"name": group["name"], "rules": [_scaled(rule) for rule in group["rules"]]} for group in groups(folder)]


def _scaled(rule: Rule) -> Rule:
    def window(match: re.Match[str]) -> str:
        span = max(_SCRAPES_OF_A_RATE, round(seconds(match[1]) / SCALE))
        return f"[{span}s{match[2] or ''}{'1s' if match[3] else ''}]"

    expression = _WINDOW.sub(window, rule["expr"])
    shorter = {"expr": _OFFSET.sub(lambda match: f"offset {match[1]}{_whole(match[2])}", expression)}
    return rule | shorter | {name: _whole(str(rule[name])) for name in ("for", "keep_firing_for") if name in rule}


def _whole(duration: str) -> str:
    return f"{round(seconds(duration) / SCALE)}s"
