"""Where a version of a registered model came from, hop by hop, as far as the store tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayline.tracking import RunSummary, VersionRecord

_SHOWN_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Hop:
    """One station on the way."""

    kind: str
    """run, check, version or deployment."""
    name: str
    detail: str
    run_id: str | None = None


def hops(version: VersionRecord, runs: Mapping[str, RunSummary]) -> tuple[Hop, ...]:
    """From the run to where the version is served. `runs`: those that are known, by id."""
    found = []
    run = runs.get(version.run_id or "")
    if version.run_id is not None:
        name = version.run_id[:8] if run is None else run.name
        detail = "" if run is None else f"{run.status}, step {run.step}, {run.plan}".strip(", ")
        found.append(Hop("run", name, detail, version.run_id))
    if version.verification:
        found.append(Hop("check", "logits compared", verified(version.verification)))
    aliases = ", ".join(version.aliases)
    label = f"{version.name} version {version.version}"
    found.append(Hop("version", label, f"alias {aliases}" if aliases else "no alias"))
    if version.served is not None:
        found.append(Hop("deployment", version.served.name, f"{version.served.at:%Y-%m-%d %H:%M}"))
    return tuple(found)


def verified(figures: Mapping[str, str]) -> str:
    """What an export's check found, in a line."""
    difference, tolerance = figures.get("logit_difference"), figures.get("logit_tolerance")
    if difference is None or tolerance is None:
        return ", ".join(f"{key} {text}" for key, text in figures.items())
    return (
        f"logits differ by {_short(difference)} of the largest, {_short(tolerance)} allowed, over "
        f"{figures.get('probed_tokens', '?')} tokens"
    )


def _short(number: str) -> str:
    try:
        return f"{float(number):.{_SHOWN_DIGITS}g}"
    except ValueError:
        return number
