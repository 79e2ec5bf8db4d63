"""The routes that only look."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import HTMLResponse

from rayline.console.entering import answer, console_of, signed_in
from rayline.console.guarding import REPORT_POLICY

router = APIRouter(prefix="/api", dependencies=[Depends(signed_in)])

RunId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
"""As MLflow makes them; nothing else gets into a query of the store."""


@router.get("/runs")
def runs(request: Request, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> Response:
    """The newest runs."""
    return answer(console_of(request).sight.runs(limit))


@router.get("/runs/{run_id}")
def run(request: Request, run_id: RunId) -> Response:
    """One run."""
    return answer(console_of(request).sight.run(run_id))


@router.get("/runs/{run_id}/spec")
def spec(request: Request, run_id: RunId) -> Response:
    """The job as it was started."""
    return answer(console_of(request).sight.spec(run_id))


@router.get("/runs/{run_id}/plan")
def plan(request: Request, run_id: RunId) -> Response:
    """The planner's picture."""
    return answer(console_of(request).sight.plan_picture(run_id))


@router.get("/models/{name}/{version}/lineage")
def lineage(
    request: Request,
    name: Annotated[str, Path(max_length=128)],
    version: Annotated[int, Path(ge=1)],
) -> Response:
    """Where a version came from and what came of it."""
    return answer(console_of(request).sight.lineage(name, version))


@router.get("/searches")
def searches(request: Request) -> Response:
    """The searches."""
    return answer(console_of(request).sight.searches())


@router.get("/searches/{run_id}")
def search(request: Request, run_id: RunId) -> Response:
    """One search."""
    return answer(console_of(request).sight.search(run_id))


@router.get("/searches/{run_id}/report")
def report(request: Request, run_id: RunId) -> Response:
    """What a search wrote about itself: a page with scripts, so it is nobody's: it runs, but has no
    part in this one's session."""
    text = console_of(request).sight.report(run_id)
    return HTMLResponse(text, headers={"content-security-policy": REPORT_POLICY})


@router.get("/models")
def models(request: Request) -> Response:
    """Registered models."""
    return answer(console_of(request).sight.models())


@router.get("/deployments")
def deployments(request: Request) -> Response:
    """Served models."""
    return answer(console_of(request).sight.deployments())


@router.get("/jobs")
def jobs(request: Request) -> Response:
    """Submitted jobs."""
    return answer(console_of(request).sight.jobs())


@router.get("/access")
def access(request: Request, by: Annotated[str, Query(max_length=16)] = "key") -> Response:
    """Keys and usage."""
    return answer(console_of(request).sight.access(by))
