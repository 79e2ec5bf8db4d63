"""Filling in: what runs of earlier drivers could not send is sent, once their store answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayline.spec import TrackingSpec
from rayline.tracking.delivery import Delivery
from rayline.tracking.spool import FOLDER, Spool, left_behind, read_description
from rayline.tracking.store import first_line, without_password

_log = logging.getLogger(__name__)

_DEPTH = 4
"""Folders below the one that is named in which jobs are looked for."""


@dataclass(frozen=True, slots=True)
class FilledRun:
    """One run that had not been recorded in full."""

    name: str
    run_id: str
    """MLflow's id, or the run's key where no store knows of it yet."""
    uri: str
    """The store that it belongs to."""
    folder: str
    """What waited lies, or lay, here."""
    rows: int
    """Rows that the store got now, or that would be sent."""
    problem: str | None
    """Why not everything was sent; None where the store has it all."""


def fill_in(
    folder: Path,
    *,
    tracking: TrackingSpec | None = None,
    dry_run: bool = False,
) -> list[FilledRun]:
    """Send what waits in a job's folder, oldest first; what a driver that lives is sending itself
    is left alone. `tracking` is the store instead of the one that each run names. Never raises
    because of a store."""
    filled = []
    for place in left_behind(folder):
        found = _look(place) if dry_run else _fill(place, tracking)
        if found is not None:
            filled.append(found)
    return filled


def waiting_in(folder: Path) -> Iterator[Path]:
    """The folders of jobs, `folder` or below it, in which rows wait for a store."""
    top = folder.absolute()
    for place, below, _ in os.walk(top):
        here = Path(place)
        depth = len(here.relative_to(top).parts)
        if FOLDER in below and next(left_behind(here), None) is not None:
            below.remove(FOLDER)
            yield here
        below[:] = [
            name
            for name in sorted(below)
            if depth < _DEPTH and (name == ".rayline" or not name.startswith("."))
        ]


def _look(place: Path) -> FilledRun | None:
    spool = _reopened(place)
    if spool is None:
        return None
    spool.close()
    return _told(spool, spool.unsent, "not sent yet")


def _fill(place: Path, tracking: TrackingSpec | None) -> FilledRun | None:
    spool = _reopened(place)
    if spool is None:
        return None
    about = spool.description
    store = tracking or TrackingSpec(uri=about.uri, experiment=about.experiment)
    delivery = Delivery(store, spool)
    before = spool.unsent
    try:
        delivery.open()
        while spool.unsent:
            batch = spool.head()
            if not batch:
                raise OSError(f"the rows in {place} cannot be read")
            delivery.send(batch)
            spool.drop(len(batch))
        if about.ending is not None:
            delivery.end(about.ending)
    # MLflow lets errors of everything beneath it through; the next time may go well.
    except Exception as wrong:  # noqa: BLE001
        spool.close()
        return _told(spool, before - spool.unsent, first_line(wrong))
    spool.remove()
    return _told(spool, before, None)


def _reopened(place: Path) -> Spool | None:
    try:
        return Spool.reopen(place)
    except (OSError, ValueError) as wrong:
        # Another process may have sent and deleted it just now.
        if read_description(place) is not None:
            _log.warning("tracking: %s cannot be read: %s", place, wrong)
        return None


def _told(spool: Spool, rows: int, problem: str | None) -> FilledRun:
    about = spool.description
    return FilledRun(
        name=about.name,
        run_id=about.run_id or about.key,
        uri=without_password(about.uri),
        folder=str(spool.folder),
        rows=rows,
        problem=problem,
    )
