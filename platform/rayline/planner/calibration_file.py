"""Calibration files: the curves with what they were fitted on, as JSON.

The first that there is holds: one that a command names; the one of this machine, which `rayline
plan calibrate` writes; the one that comes with the package, fitted on published runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from rayline.errors import SpecError
from rayline.planner.curves import Curves

SHIPPED = "calibration.json"
LOCAL = Path("~/.rayline/calibration.json")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Curves, and where they come from."""

    curves: Curves
    date: str = ""
    """When they were fitted."""
    fitted_on: dict[str, int] = field(default_factory=dict)
    """Runs of each source that they were fitted on."""
    origin: str = "shipped"
    """The file."""


def shipped_calibration() -> Calibration:
    """The one that comes with the package."""
    file = resources.files("rayline.planner").joinpath(SHIPPED)
    return _parsed(json.loads(file.read_text(encoding="utf-8")), "shipped")


def local_calibration() -> Calibration | None:
    """The one of this machine; None where there is none."""
    file = LOCAL.expanduser()
    return read_calibration(file) if file.is_file() else None


def best_calibration(file: Path | None = None) -> Calibration:
    """The one in `file`, else this machine's, else the one that comes with the package."""
    if file is not None:
        return read_calibration(file)
    return local_calibration() or shipped_calibration()


def read_calibration(file: Path) -> Calibration:
    """The calibration in a file. Raises SpecError where it is none."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        return _parsed(tree, str(file))
    except OSError as wrong:
        raise SpecError(str(file), f"can't be read: {wrong.strerror}") from None
    except (ValueError, TypeError, KeyError) as wrong:
        raise SpecError(
            str(file),
            f"is no calibration: {wrong}",
            fix="rayline plan calibrate RUNS.csv --out FILE writes one",
        ) from None


def write_calibration(calibration: Calibration, file: Path) -> None:
    """Write it, whole or not at all."""
    tree = asdict(calibration)
    del tree["origin"]
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(_rounded(tree), indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    return float(f"{tree:.5g}") if isinstance(tree, float) else tree


def _parsed(tree: dict[str, Any], origin: str) -> Calibration:
    known = {one.name for one in fields(Curves)}
    given = {name: value for name, value in tree["curves"].items() if name in known}
    defaults = asdict(Curves())
    for name, value in given.items():
        if isinstance(value, dict):
            defaults[name].update({key: float(figure) for key, figure in value.items()})
        else:
            defaults[name] = float(value)
    return Calibration(
        curves=Curves(**defaults),
        date=str(tree.get("date", "")),
        fitted_on=dict(tree.get("fitted_on", {})),
        origin=origin,
    )
