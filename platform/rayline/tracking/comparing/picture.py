"""The curves of two runs, one over the other, as PNG or as an HTML page that stands alone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayline.errors import SpecError

if TYPE_CHECKING:
    from rayline.tracking.comparing.runs import RunDiff

_KINDS = (".png", ".svg", ".html")
_COLUMNS = 2
_STYLE = """
body{font:14px system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}
:root{color-scheme:light dark}img{max-width:100%}table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid #8888;padding:.2em .6em;text-align:left;overflow-wrap:anywhere}
"""


def draw_diff(diff: RunDiff, file: Path) -> Path:
    """Write the picture and return its file; the ending says what it is. Needs matplotlib. Raises
    SpecError for another ending, and where the runs share no curve."""
    if file.suffix not in _KINDS:
        raise SpecError(
            "--picture", "no such kind of picture", value=str(file), allowed=", ".join(_KINDS)
        )
    if not diff.points:
        raise SpecError("--picture", "the runs have no metric in common", value=str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure = _figure(diff)
    if file.suffix == ".html":
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=120)
        file.write_text(_page(diff, drawn.getvalue()), encoding="utf-8")
    else:
        figure.savefig(file, dpi=120)
    return file


def _figure(diff: RunDiff) -> Any:
    from matplotlib.figure import Figure

    rows = math.ceil(len(diff.points) / _COLUMNS)
    figure = Figure(figsize=(10, 3 * rows), layout="constrained")
    parted = {curve.metric: curve.parted_at for curve in diff.curves}
    for place, (metric, (a, b)) in enumerate(diff.points.items(), start=1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        _line(axes, a, f"a: {diff.a.name} {diff.a.run_id[:8]}", "-")
        _line(axes, b, f"b: {diff.b.name} {diff.b.run_id[:8]}", "--")
        at = parted[metric]
        if at is not None:
            axes.axvline(at, color="grey", lw=1, ls=":")
        axes.set(title=metric, xlabel="step")
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend()
    return figure


def _line(axes: Any, curve: Mapping[int, float], label: str, style: str) -> None:
    steps = sorted(curve)
    axes.plot(steps, [curve[step] for step in steps], style, lw=1.4, label=label)


def _page(diff: RunDiff, png: bytes) -> str:
    a, b = (f"{escape(run.name)} {run.run_id[:8]}" for run in (diff.a, diff.b))
    picture = base64.b64encode(png).decode()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{a} and {b}</title><style>{_STYLE}</style>",
        f"<h1>{a} (a) and {b} (b)</h1>",
        f'<img alt="Curves of both runs" src="data:image/png;base64,{picture}">',
    ]
    for title in ("spec", "plan", "environment"):
        rows = "".join(
            f"<tr><td>{escape(one.key)}<td>{escape(str(one.a))}<td>{escape(str(one.b))}"
            for one in getattr(diff, title)
        )
        parts.append(f"<h2>{title}</h2>")
        parts.append(f"<table><tr><th>what<th>a<th>b{rows}</table>" if rows else "<p>the same")
    return "\n".join(parts)
