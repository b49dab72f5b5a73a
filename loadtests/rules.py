"""What the PrometheusRule files of production say, and the same on a shorter scale of time."""

import math
import re
from functools import cache
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


@cache
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
    return [
        rule
        for rule in alerting(folder)
        if not re.search(rf"\b({'|'.join(PASSING_OF_TIME)})", _in_full(rule["expr"], folder))
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


def scaled(folder: Path = RULES, run_seconds: float = math.inf) -> list[dict[str, Any]]:
    """The groups for a Prometheus that scrapes every second: each span of time is divided by SCALE.

    It has no history. So an alert that looks back further than the run lasts is left out, or the part of it that does,
    where `or` joins it to others: in a window that has just begun, one slow request is a burnt budget.
    """
    found = []
    for group in groups(folder):
        rules = [one for rule in group["rules"] if (one := _within(rule, folder, run_seconds * SCALE))]
        found.append({"name": group["name"], "rules": [_scaled(rule) for rule in rules]})
    return found


def too_long_for(run_seconds: float, folder: Path = RULES) -> list[str]:
    """The alerts that are left out for a run of so many seconds."""
    kept = {rule.get("alert") for group in scaled(folder, run_seconds) for rule in group["rules"]}
    return [rule["alert"] for rule in judging(folder) if rule["alert"] not in kept]


def _within(rule: Rule, folder: Path, longest: float) -> Rule | None:
    """A rule without the alternatives that look back for more than so many seconds; None when none is left."""
    if "record" in rule:
        return rule
    kept = [part for part in _alternatives(rule["expr"]) if _looks_back(_in_full(part, folder)) <= longest]
    return rule | {"expr": "\nor ".join(kept)} if kept else None


def _alternatives(expression: str) -> list[str]:
    """What an expression joins by `or`, outside of all parentheses."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[({\[]|[)}\]]|\bor\b", expression):
        if match[0] != "or":
            depth += 1 if match[0] in "({[" else -1
        elif not depth:
            parts.append(expression[start : match.start()])
            start = match.end()
    return [part.strip() for part in [*parts, expression[start:]]]


def _looks_back(expression: str) -> float:
    """Seconds of the longest window in it."""
    return max((seconds(match[1]) for match in _WINDOW.finditer(expression)), default=0.0)


def _in_full(expression: str, folder: Path) -> str:
    """An expression, followed by those of all that it takes from recording rules."""
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
