"""The report of a run: one self-contained HTML page."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, FileSystemLoader

from loadtests.record import Record

WORDS = {0: "quiet", 1: "fired", 2: "not judged"}
"""By exit code."""
BLUE, ORANGE, PURPLE, RED, AMBER, GREY = "#3b82f6", "#e08a00", "#a855f7", "#dc2626", "#f0b429", "#8a94a6"
COLORS = (BLUE, ORANGE, PURPLE, "#10b981", "#e11d74", "#0ea5b7", "#b45309", "#6366f1", "#84a110", GREY)
PLOT_HEIGHT, LANE_HEIGHT = 380, 17
"""Pixels of the latency plot, and of each active alert above it."""
SLOWEST = 6
"""How many functions have a latency line."""
# On touch screens, dragging on a plot scrolls the page.
FINGER = "if (matchMedia('(pointer: coarse)').matches) Plotly.relayout('{plot_id}', {dragmode: false});"


def write_report(recorded: Record, compared: Record | None, file: Path) -> None:
    """Write the report of a run, compared with an earlier one if given."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html").render(
        run=recorded,
        word=WORDS[recorded["exit_code"]],
        started=moment(recorded),
        compared=compared,
        compared_at=moment(compared) if compared else "",
        compared_functions=compared["functions"] if compared else {},
        spells=spells(recorded),
        plots=[
            (title, html(figure, first=not number)) for number, (title, figure) in enumerate(plots(recorded, compared))
        ],
    )
    file.write_text(page, "utf-8")


def moment(recorded: Record) -> str:
    return f"{datetime.fromisoformat(recorded['started_at']):%Y-%m-%d %H:%M} UTC"


def plots(recorded: Record, compared: Record | None) -> Iterator[tuple[str, go.Figure]]:
    over_time = recorded["over_time"]
    yield "Latency seen by users", latency(recorded, compared)
    slowest = sorted(recorded["functions"], key=lambda name: -recorded["functions"][name]["p95"])[:SLOWEST]
    yield (
        "The slowest functions, 95th percentile",
        lines(
            recorded, {name: recorded["p95_of_functions"][name] for name in slowest}, "ms", limits=True, connect=True
        ),
    )
    requests = lines(recorded, {"requests": over_time["requests"]}, "a second")
    requests.add_trace(
        go.Bar(x=seconds(recorded), y=over_time["failed"], name="failed", marker_color=RED, marker_line_width=0)
    )
    yield "Requests and failures", requests
    yield "People", lines(recorded, {"people": over_time["people"]}, "")
    if recorded["pods"]:
        yield "Pods of each function", lines(recorded, recorded["pods"], "", shape="hv")


def seconds(recorded: Record) -> list[int]:
    return list(range(0, recorded["seconds"], recorded["step"]))


def latency(recorded: Record, compared: Record | None) -> go.Figure:
    """Plot percentiles and thresholds, with bands behind them and a lane above for each active alert."""
    shares = {name: recorded["over_time"][name] for name in ("p50", "p95", "p99")}
    figure = lines(recorded, shares, "ms", limits=True)
    if compared:
        figure.add_trace(
            go.Scatter(
                x=seconds(compared),
                y=compared["over_time"]["p95"],
                name=f"p95 on {moment(compared)}",
                line={"color": GREY, "dash": "dot", "width": 1.5},
            )
        )
    for name, color in (("pending", AMBER), ("firing", RED)):
        for start, end in union([(s["from"], s["until"]) for s in recorded["alerts"] if s["state"] == name]):
            figure.add_vrect(x0=start, x1=end, fillcolor=color, opacity=0.14, line_width=0, layer="below")
    # Firing ones first, as in the table.
    lanes = list(dict.fromkeys((spell["alert"], spell["about"]) for spell in spells(recorded)))
    height = PLOT_HEIGHT + LANE_HEIGHT * len(lanes)
    share = LANE_HEIGHT / height
    for spell in recorded["alerts"]:
        top = 1 - share * lanes.index((spell["alert"], spell["about"]))
        figure.add_shape(
            type="rect", xref="x", yref="paper", x0=spell["from"], x1=spell["until"], y0=top - 0.8 * share, y1=top,
            line_width=0, opacity=0.9, fillcolor=RED if spell["state"] == "firing" else AMBER,
        )  # fmt: skip
    for number, (alert, about) in enumerate(lanes):
        own = [spell for spell in recorded["alerts"] if (spell["alert"], spell["about"]) == (alert, about)]
        start, end = own[0]["from"], own[-1]["until"]
        is_before = start > recorded["seconds"] - end  # the label goes where there is more room
        figure.add_annotation(
            text=f"{alert.removeprefix('UserService')} {about}", x=start if is_before else end, xref="x", yref="paper",
            xanchor="right" if is_before else "left", y=1 - share * (number + 0.4), yanchor="middle", showarrow=False,
            font_size=10,
        )  # fmt: skip
    figure.update_layout(height=height, yaxis_domain=[0, 1 - share * len(lanes) - 0.02])
    return figure


def spells(recorded: Record) -> list[dict[str, Any]]:
    """Return the periods with active alerts, firing ones first."""
    return sorted(recorded["alerts"], key=lambda spell: (spell["state"], spell["from"]))


def union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge spans of time that overlap or touch."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def lines(
    recorded: Record,
    series: dict[str, list[float | None]],
    unit: str,
    *,
    limits: bool = False,
    connect: bool = False,
    shape: str = "linear",
) -> go.Figure:
    """Plot lines over the seconds of a run.

    Args:
        limits: show the thresholds on latency.
        connect: connect lines across seconds without data.
    """
    figure = go.Figure()
    for number, (name, values) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        figure.add_trace(
            go.Scatter(
                x=seconds(recorded),
                y=values,
                name=name,
                mode="lines+markers",
                marker_size=3,
                connectgaps=connect,
                line={"color": color, "width": 1.8, "shape": shape},
            )
        )
    if limits:
        for limit in recorded["thresholds"]["objectives"]:
            is_alert = limit == recorded["thresholds"]["latency"]
            figure.add_hline(
                y=limit,
                line={"color": RED if is_alert else GREY, "dash": "dash", "width": 1.2},
                annotation={"text": f"{limit:.0f} ms" + (", the alert on p95" if is_alert else ""), "font_size": 11},
                annotation_position="top right",
            )
    figure.update_layout(
        height=300,
        margin={"l": 52, "r": 12, "t": 8, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": GREY},
        hovermode="x unified",
        hoverlabel={"bgcolor": "#1f2937", "font_color": "#f9fafb", "bordercolor": "#1f2937"},
        legend={"orientation": "h", "y": -0.14, "yanchor": "top", "x": 0},
        showlegend=True,
        bargap=0,
    )
    figure.update_xaxes(
        range=[0, recorded["seconds"]], ticksuffix=" s", ticklabelstandoff=4, gridcolor=GREY, zeroline=False
    )
    figure.update_yaxes(
        rangemode="tozero",
        tickformat=",",
        ticksuffix=f" {unit}" if unit == "ms" else "",
        gridcolor=GREY,
        zeroline=False,
        fixedrange=True,
    )
    return figure


def html(figure: go.Figure, *, first: bool) -> str:
    """Return the figure as a part of a page. The first one includes the library."""
    text: Any = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=first,
        config={"responsive": True, "displayModeBar": False},
        post_script=FINGER,
    )
    return str(text)
