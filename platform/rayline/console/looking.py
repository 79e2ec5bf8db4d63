"""Sight: everything that the routes ask for, put together from `rayline.Client` as values.

Whatever cannot be asked just now (no cluster, a gateway that is down, a store that nobody has made)
is told in words beside an empty list: a console that shows the rest is worth more than an error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rayline.console.access_views import USAGE_BY, key_rows, usage_rows
from rayline.console.command_lines import CommandLines
from rayline.console.deployment_views import DeploymentView, deployment_view
from rayline.console.lineage import hops, verified
from rayline.console.plan_pictures import plan_svg
from rayline.console.run_views import MEASURES, RunView, run_rows, run_view
from rayline.console.search_views import search_rows, search_view
from rayline.console.settings import ConsoleSettings
from rayline.errors import RaylineError, SpecError
from rayline.sdk import Client
from rayline.spec import UsageQuery
from rayline.spec.job_file import SPEC_FILE
from rayline.tracking import (
    RunState,
    list_children,
    list_files,
    list_runs,
    list_versions,
    read_curves,
    read_gangs,
    read_job,
    read_state,
    read_text,
)
from rayline.tracking.lineage import as_svg
from rayline.tracking.store import first_line, without_password

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")
_MOST_RUNS = 500


@dataclass(frozen=True, slots=True)
class Sight:
    """What one console sees."""

    settings: ConsoleSettings
    client: Client
    lines: CommandLines

    def runs(self, limit: int) -> dict[str, Any]:
        """The newest runs."""
        found, problem = all_asked(lambda: list_runs(self.settings.tracking, limit))
        return {
            "rows": run_rows(found),
            "problem": problem,
            "lines": {"list": self.lines.runs(limit)},
        }

    def state(self, run_id: str) -> RunState:
        """One run without its history. Raises SpecError."""
        return read_state(self.settings.tracking, run_id)

    def run_view(self, state: RunState, silent_s: float = 0.0) -> RunView:
        """One run with what is drawn of it. Raises SpecError."""
        keys = [measure.key for measure in MEASURES]
        curves = read_curves(self.settings.tracking, state.summary.run_id, keys)
        return run_view(state, curves, silent_s)

    def run(self, run_id: str) -> dict[str, Any]:
        """One run, and the lines that show it, follow it, go on with it and stop it. Raises
        SpecError."""
        state = self.state(run_id)
        return {"view": self.run_view(state), "lines": self.run_lines(state)}

    def run_lines(self, state: RunState) -> dict[str, str]:
        """Those of one run."""
        run_id, job = state.summary.run_id, state.tags.get("rayline.job")
        lines = {"show": self.lines.run(run_id)}
        if state.summary.status == "running":
            lines["follow"] = self.lines.attach(run_id)
            if job is not None:
                lines["log"] = self.lines.logs(job)
                lines["stop"] = self.lines.stop(job)
        elif state.summary.status in ("failed", "interrupted"):
            lines["go on"] = self.lines.resume(run_id)
        return lines

    def spec(self, run_id: str) -> dict[str, str]:
        """The job as it was started, as YAML, or why there is none."""
        text, problem = asked(lambda: read_text(self.settings.tracking, run_id, SPEC_FILE), "")
        return {"text": without_password(text), "problem": problem}

    def plan_picture(self, run_id: str) -> dict[str, str]:
        """The planner's drawing as SVG, or why there is none."""
        svg, problem = asked(lambda: self._drawn_plan(run_id), "")
        return {"svg": svg, "problem": problem}

    def _drawn_plan(self, run_id: str) -> str:
        tracking = self.settings.tracking
        state = read_state(tracking, run_id)
        job = read_job(tracking, run_id)
        gangs = read_gangs(state.tags)
        nodes = len({seat.node for seat in gangs[-1].seats}) if gangs else None
        try:
            told = read_text(tracking, run_id, "plan.json")
        except SpecError:
            told = None
        return plan_svg(job, told, nodes)

    def searches(self) -> dict[str, Any]:
        """The searches among the newest runs."""
        found, problem = all_asked(lambda: list_runs(self.settings.tracking, _MOST_RUNS))
        return {
            "rows": search_rows(found),
            "problem": problem,
            "lines": {"list": self.lines.runs(_MOST_RUNS)},
        }

    def search(self, run_id: str) -> dict[str, Any]:
        """One search. Raises SpecError."""
        tracking = self.settings.tracking
        state = read_state(tracking, run_id)
        view = search_view(state, list_children(tracking, run_id), list_files(tracking, run_id))
        return {"view": view, "lines": {"show": self.lines.run(run_id)}}

    def report(self, run_id: str) -> str:
        """The report that a search left. Raises SpecError."""
        return read_text(self.settings.tracking, run_id, "report.html")

    def models(self) -> dict[str, Any]:
        """Registered models with their versions, and where each came from."""
        tracking = self.settings.tracking
        versions, problem = all_asked(lambda: list_versions(tracking))
        wanted = {version.run_id for version in versions if version.run_id}
        runs = {}
        for run_id in wanted:
            state, _ = asked(partial(read_state, tracking, run_id), None)
            if state is not None:
                runs[run_id] = state.summary
        rows = [
            {
                "version": version,
                "verified": verified(version.verification),
                "hops": hops(version, runs),
            }
            for version in versions
        ]
        return {"rows": rows, "problem": problem, "lines": {"list": self.lines.models()}}

    def lineage(self, name: str, version: int) -> dict[str, Any]:
        """From data to usage, as SVG, or why it cannot be drawn."""
        of = f"{name}/{version}"
        svg, problem = asked(lambda: as_svg(self.client.lineage(of)), "")
        line = self.lines.lineage(name, version)
        return {"svg": svg, "problem": problem, "lines": {"show": line}}

    def deployments(self) -> dict[str, Any]:
        """Served models, and the lines for what can be done about each."""
        views, problem = self.served()
        lines = {
            view.name: {
                "show": self.lines.served(view.name),
                "canary": self.lines.canary(
                    view.name, view.percent if view.goal is None else view.goal
                ),
                "promote": self.lines.promote(view.name),
                "rollback": self.lines.roll_back(view.name),
            }
            for view in views
        }
        return {"rows": views, "problem": problem, "lines": lines}

    def served(self) -> tuple[list[DeploymentView], str]:
        """Every served model; why not, where the cluster cannot be asked."""
        if self.settings.address is None:
            return [], "No cluster was named: rayline console --address auto joins one."
        names, problem = all_asked(self.client.deployments)
        views = []
        for name in names:
            status, wrong = asked(partial(self.client.served, name), None)
            problem = problem or wrong
            if status is not None:
                views.append(deployment_view(status))
        return views, problem

    def jobs(self) -> dict[str, Any]:
        """Jobs that were submitted to the cluster."""
        lines = {"list": self.lines.jobs()}
        if self.settings.jobs_url is None:
            told = "No cluster was named: rayline console --address auto joins one."
            return {"rows": [], "problem": told, "lines": lines}
        found, problem = all_asked(self.client.jobs)
        rows = [
            {
                "id": job.job_id,
                "state": job.state,
                "entrypoint": job.entrypoint,
                "started_at": job.started_at,
                "ended_at": job.ended_at,
                "reason": job.reason,
                "line": self.lines.logs(job.job_id),
                "stop": self.lines.stop(job.job_id),
            }
            for job in found
        ]
        return {"rows": rows, "problem": problem, "lines": lines}

    def access(self, by: str) -> dict[str, Any]:
        """Keys, and usage by key, team, model, variant or day."""
        keys, problem = all_asked(self.client.keys)
        query = UsageQuery.parse({"by": by if by in USAGE_BY else "key"})
        sums, wrong = all_asked(lambda: self.client.usage(query))
        return {
            "keys": key_rows(keys, time.time()),
            "usage": usage_rows(sums),
            "by": query.by,
            "problem": problem or wrong,
            "lines": {"keys": self.lines.keys(), "usage": self.lines.usage(query.by)},
        }


def asked(ask: Callable[[], T], otherwise: U) -> tuple[T | U, str]:
    """What somebody answers; `otherwise`, and why, where there is no answer."""
    try:
        return ask(), ""
    except RaylineError as wrong:
        return otherwise, f"{wrong.subject}: {wrong.problem}" + (
            f" ({wrong.fix})" if wrong.fix else ""
        )
    # Ray raises errors of many trees; one source that fails must not hide the others.
    except Exception as wrong:
        log.warning("a source does not answer", exc_info=True)
        return otherwise, f"It does not answer: {first_line(wrong)}"


def all_asked(ask: Callable[[], list[T]]) -> tuple[list[T], str]:
    """As `asked`, of several; none where there is no answer."""
    none: list[T] = []
    return asked(ask, none)


def known_models(cards: Sequence[dict[str, Any]]) -> list[str]:
    """The names on a gateway's list of models."""
    return [str(card["id"]) for card in cards]
