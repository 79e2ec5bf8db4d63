"""Going on with a search whose driver ended: which one, whether it is the same, what came to an end
meanwhile."""

from __future__ import annotations

from pathlib import Path

from rayline.errors import SpecError
from rayline.spec import TuneSpec
from rayline.tracking import list_runs
from rayline.tuning.course import Course
from rayline.tuning.figures import figures_of, read_steps
from rayline.tuning.history import History
from rayline.tuning.journal import JOURNAL_FILE, Row, SearchRow, read_rows
from rayline.tuning.leavings import STEPS_FILE, read_ended
from rayline.tuning.space import trial_folder, trial_name

_MAY_CHANGE = ("trials", "concurrent", "budget.", "prune.", "job.resources.placement_timeout_s")
"""What a search that goes on may have otherwise than before."""
_MOST_RUNS = 10_000


def search_folder(folder: Path, run_id: str) -> Path:
    """Where everything of one start of a search lies, in the folder of its spec: no trial goes on
    from another search's checkpoint."""
    return folder / run_id[:8]


def find_search(folder: Path, which: str | None) -> tuple[Path, SearchRow, list[Row]]:
    """Folder, first line and lines of the search `which` (the id of its run, or its beginning), or
    of the newest one below `folder` that is not over. Raises SpecError where there is none."""
    found = sorted(
        folder.glob(f"*/{JOURNAL_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    ended = []
    for file in found:
        rows = read_rows(file.read_text(encoding="utf-8"), str(file))
        if not rows or not isinstance(rows[0], SearchRow):
            continue
        if which is not None and rows[0].run_id.startswith(which):
            return file.parent, rows[0], rows
        if which is None and History.of(rows).closed is None:
            return file.parent, rows[0], rows
        ended.append(rows[0].run_id)
    raise SpecError(
        "search",
        f"{folder} holds no search {'that is not over' if which is None else 'of this id'}",
        value=which,
        allowed=", ".join(ended),
        fix="name one that is over, to add trials to it, or start a new one without --resume"
        if ended
        else "start one: rayline tune SPEC",
    )


def refuse_other(spec: TuneSpec, begun: SearchRow, rows: list[Row]) -> None:
    """Raise SpecError where the spec is not that of the search, or it has nothing left to do."""
    before, now = TuneSpec.parse(begun.spec, origin=begun.run_id).flat(), spec.flat()
    for name in sorted(before.keys() | now.keys()):
        if not name.startswith(_MAY_CHANGE) and before.get(name) != now.get(name):
            raise SpecError(
                name,
                "is not what the search began with, so its trials would not compare",
                value=now.get(name),
                allowed=str(before.get(name)),
                fix="put it back, or start a new search without --resume (warm_start learns from "
                "this one)",
            )
    history = History.of(rows)
    if len(history.trials) > spec.trials:
        raise SpecError("trials", "fewer than were begun", value=spec.trials)
    if history.closed is not None and not _has_more(spec, history):
        raise SpecError(
            "search",
            f"is over: {history.closed}",
            value=begun.run_id,
            fix="raise trials to add some, or start a new one without --resume",
        )


def _has_more(spec: TuneSpec, history: History) -> bool:
    unfinished = history.in_phase("waiting", "running", "paused")
    return bool(unfinished) or (spec.population is None and len(history.trials) < spec.trials)


def adopt(course: Course, folder: Path, search_run_id: str) -> None:
    """Take in what trials came to that the driver before did not hear of: which runs they opened,
    and which of their gangs came to an end."""
    spec = course.spec
    children = list_runs(spec.job.tracking, limit=_MOST_RUNS, parent_run_id=search_run_id)
    by_name = {child.name: child.run_id for child in children}
    for trial in course.history.in_phase("waiting"):
        trial.run_id = trial.run_id or by_name.get(trial_name(spec, trial.number))
        own = Path(trial_folder(spec, trial.number, str(folder)))
        end = read_ended(own, trial.segment)
        if end is None:
            continue
        steps = read_steps(own / STEPS_FILE)
        values = figures_of(steps, spec.metric_window_steps, spec.price_per_worker_hour)
        course.ended(trial.number, {**end, "values": values})
