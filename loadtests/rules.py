"""The rules in production's PrometheusRule files, and the same on a shorter time scale."""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[1] / "knative" / "components" / "monitoring"
SCALE = 30
"""The local Prometheus divides windows and `for` by this: a minute becomes 2 s."""
LATENCY, ERRORS = "UserServiceHighLatency", "UserServiceHighErrorRate"

PASSING_OF_TIME = ("certmanager_", "kube_cronjob_")
"""Prefixes of metrics that load does not influence. Alerts on them do not judge a run."""

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
_WINDOW = re.compile(rf"\[({_DURATION})(?:(:)({_DURATION})?)?\]")
_OFFSET = re.compile(rf"\boffset\s+(-?)({_DURATION})")
_SCRAPES_OF_A_RATE = 3

Rule = dict[str, Any]


@cache
def groups(folder: Path = RULES) -> list[dict[str, Any]]:
    """Return the groups of recording and alerting rules in all PrometheusRule files of a folder."""
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
    """Return the alerting rules."""
    return [rule for group in groups(folder) for rule in group["rules"] if "alert" in rule]


def judging(folder: Path = RULES) -> list[Rule]:
    """Return the alerting rules that load can trigger, without those that depend on time, as a certificate's expiry."""
    return [
        rule
        for rule in alerting(folder)
        if not re.search(rf"\b({'|'.join(PASSING_OF_TIME)})", _in_full(rule["expr"], folder))
    ]


def seconds(duration: str) -> float:
    """Return the seconds of a Prometheus duration such as 5m, 1h30m or 500ms.

    Raises:
        ValueError: it is malformed.
    """
    if not re.fullmatch(_DURATION, duration):
        raise ValueError(f"{duration!r} is not a duration such as 30s, 5m or 1h30m")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def fires_after(rule: Rule) -> float:
    """Return the seconds that a rule must hold before it fires."""
    return seconds(str(rule.get("for", "0s")))


def threshold(name: str) -> float:
    """Return the threshold of an alert: the first number that its expression compares with."""
    expression = next(rule["expr"] for rule in alerting() if rule["alert"] == name)
    return float(re.findall(r">=?\s*([0-9.]+)", expression)[0])


def latency_thresholds() -> list[float]:
    """Return the latency thresholds in seconds: of the alert, and of the objectives, which are bucket bounds."""
    edges = {
        float(edge)
        for group in groups()
        for rule in group["rules"]
        for edge in re.findall(r'le="([\d.]+)"', rule["expr"])
    }
    return sorted({threshold(LATENCY), *edges})


def scaled(folder: Path = RULES, run_seconds: float = math.inf) -> list[dict[str, Any]]:
    """Return the groups for a Prometheus that scrapes every second: all durations are divided by SCALE.

    It has no history, so alerts, and alternatives joined by `or`, that look back further than the run lasts are left
    out: in a window that has just begun, one slow request would use up the budget.
    """
    found = []
    for group in groups(folder):
        rules = [one for rule in group["rules"] if (one := _within(rule, folder, run_seconds * SCALE))]
        found.append({"name": group["name"], "rules": [_scaled(rule) for rule in rules]})
    return found


def too_long_for(run_seconds: float, folder: Path = RULES) -> list[str]:
    """Return the alerts that are left out for a run of this length."""
    kept = {rule.get("alert") for group in scaled(folder, run_seconds) for rule in group["rules"]}
    return [rule["alert"] for rule in judging(folder) if rule["alert"] not in kept]


def _within(rule: Rule, folder: Path, longest: float) -> Rule | None:
    """Return a rule without alternatives that look back for more than `longest` seconds, or None if none is left."""
    if "record" in rule:
        return rule
    kept = [part for part in _alternatives(rule["expr"]) if _looks_back(_in_full(part, folder)) <= longest]
    return rule | {"expr": "\nor ".join(kept)} if kept else None


def _alternatives(expression: str) -> list[str]:
    """Split an expression at each `or` outside parentheses."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[({\[]|[)}\]]|\bor\b", expression):
        if match[0] != "or":
            depth += 1 if match[0] in "({[" else -1
        elif not depth:
            parts.append(expression[start : match.start()])
            start = match.end()
    return [part.strip() for part in [*parts, expression[start:]]]


def _looks_back(expression: str) -> float:
    """Return the seconds of the longest window in an expression."""
    return max((seconds(match[1]) for match in _WINDOW.finditer(expression)), default=0.0)


def _in_full(expression: str, folder: Path) -> str:
    """Return an expression followed by those of all recording rules that it uses."""
    recorded: dict[str, str] = {}
    for group in groups(folder):
        for rule in group["rules"]:
            if "record" in rule:
                recorded[rule["record"]] = recorded.get(rule["record"], "") + "\n" + rule["expr"]
    texts, names = [expression], set(recorded)
    for text in texts:
        found = {name for name in names if re.search(rf"(?<![\w:]){re.escape(name)}(?![\w:])", text)}
        names -= found
        texts += [recorded[name] for name in found]
    return "\n".join(texts)


def _scaled(rule: Rule) -> Rule:
    def window(match: re.Match[str]) -> str:
        span = max(_SCRAPES_OF_A_RATE, round(seconds(match[1]) / SCALE))
        return f"[{span}s{match[2] or ''}{'1s' if match[3] else ''}]"

    expression = _WINDOW.sub(window, rule["expr"])
    shorter = {"expr": _OFFSET.sub(lambda match: f"offset {match[1]}{_whole(match[2])}", expression)}
    return rule | shorter | {name: _whole(str(rule[name])) for name in ("for", "keep_firing_for") if name in rule}


def _whole(duration: str) -> str:
    return f"{round(seconds(duration) / SCALE)}s"
