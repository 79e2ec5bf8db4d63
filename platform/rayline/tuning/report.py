"""The report of a search: one HTML file with everything in it, and each picture as a PNG.

No script, no font and no style comes from elsewhere: the file opens anywhere, and for ever.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.spec import TuneSpec
from rayline.tuning.figures import StepFigures
from rayline.tuning.importance import importance
from rayline.tuning.outcome import RefusedDraw, TrialOutcome
from rayline.tuning.pictures import curves, importance_bars, parallel, pareto

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
figure { margin: 1.5rem 0; } svg { height: auto; max-width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; }
.front td:first-child { font-weight: bold; }
"""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a report is made of."""

    spec: TuneSpec
    run_id: str
    trials: list[TrialOutcome]
    """Best first."""
    refused: list[RefusedDraw]
    steps: dict[int, list[StepFigures]]
    """By trial, every step that it did."""


def write_report(findings: Findings, file: Path) -> list[Path]:
    """Write the report and, beside it, its pictures as PNG, whose files are given back. Needs
    matplotlib."""
    pictures = _pictures(findings)
    body = [_head(findings), _trials_table(findings)]
    written = []
    for name, (caption, figure) in pictures.items():
        png = file.with_name(f"{name}.png")
        figure.savefig(png, dpi=110)
        written.append(png)
        body.append(
            f"<figure>{_svg(figure, name)}<figcaption>{escape(caption)}</figcaption></figure>"
        )
    body.append(_refused_table(findings.refused))
    title = escape(f"search {findings.spec.name}")
    file.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n",
        encoding="utf-8",
    )
    return written


def _pictures(findings: Findings) -> dict[str, tuple[str, Figure]]:
    """Name to caption and picture."""
    spec, trials = findings.spec, findings.trials
    goal = spec.goals[0]
    found = importance(trials, spec.space, goal)
    window = spec.metric_window_steps
    told = f"Loss of every trial, mean of {window} steps; grey ones were stopped early."
    pictures = {"curves": (told, curves(trials, findings.steps, window))}
    told = f"Every trial's values; the darker, the better its {goal.metric}."
    pictures["parallel"] = (told, parallel(trials, spec.space, goal))
    if found.shares:
        pictures["importance"] = (
            f"What decided the {goal.metric} of finished trials, by {found.method}.",
            importance_bars(found),
        )
    if len(spec.goals) > 1:
        pictures["pareto"] = (
            "Finished trials; no other is better in all objectives than the green ones.",
            pareto(trials, spec.goals),
        )
    return pictures


def _svg(figure: Figure, salt: str) -> str:
    """The picture as markup; `salt` keeps the ids of several pictures in one page apart."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    markup = text.getvalue()
    return markup[markup.index("<svg") :]


def _head(findings: Findings) -> str:
    spec = findings.spec
    counts = Counter(trial.status for trial in findings.trials)
    told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())
    goals = ", ".join(
        f"{'large' if goal.sign < 0 else 'small'} {goal.metric}" for goal in spec.goals
    )
    return (
        f"<h1>Search {escape(spec.name)}</h1><p>{len(findings.trials)} trials: {escape(told)}; "
        f"{len(findings.refused)} draws refused before anything was placed. Searched by "
        f"{escape(spec.search)} for {escape(goals)}. Run {escape(findings.run_id)}.</p>"
    )


def _trials_table(findings: Findings) -> str:
    fields = list(findings.spec.space)
    metrics = sorted({name for trial in findings.trials for name in trial.values})
    head = ["trial", "status", *metrics, "steps", *fields, "run", "why"]
    rows = []
    for trial in findings.trials:
        cells = [
            f"{trial.number}{' *' if trial.on_front and len(findings.spec.goals) > 1 else ''}",
            trial.status.replace("_", " "),
            *[f"{trial.values[name]:.5g}" if name in trial.values else "" for name in metrics],
            trial.steps,
            *[_short(trial.params.get(field)) for field in fields],
            (trial.run_id or "")[:8],
            trial.problem,
        ]
        rows.append(_row(cells, "front" if trial.on_front else ""))
    note = "<p>* on the Pareto front</p>" if len(findings.spec.goals) > 1 else ""
    return f"<h2>Trials, best first</h2>{_table(head, rows)}{note}"


def _refused_table(refused: Sequence[RefusedDraw]) -> str:
    if not refused:
        return ""
    rows = [
        _row(
            [
                draw.draw,
                draw.kind,
                ", ".join(f"{k}={v}" for k, v in draw.params.items()),
                draw.reason,
            ]
        )
        for draw in refused
    ]
    return f"<h2>Refused draws</h2>{_table(['draw', 'by', 'values', 'why'], rows)}"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    inside = f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table>{inside}</table></div>'


def _row(cells: Sequence[object], kind: str = "") -> str:
    inside = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
