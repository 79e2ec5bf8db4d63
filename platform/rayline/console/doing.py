"""The routes that change something: for who may, and each answers with the line that does the
same."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field

from rayline.console.entering import answer, console_of, may_change

router = APIRouter(prefix="/api", dependencies=[Depends(may_change)])

Name = Annotated[str, Path(max_length=128)]


class Share(BaseModel):
    """What the version that takes over is to get."""

    percent: float = Field(ge=0, le=100)


class Earlier(BaseModel):
    """Where to go back to; None: to the version before."""

    to: int | None = Field(default=None, ge=1)


@router.post("/deployments/{name}/canary")
def canary(request: Request, name: Name, share: Share) -> Response:
    """Move the share of the version that takes over."""
    sight = console_of(request).sight
    sight.client.canary(name, share.percent)
    return answer({"done": True, "line": sight.lines.canary(name, share.percent)})


@router.post("/deployments/{name}/promote")
def promote(request: Request, name: Name) -> Response:
    """Give everything to the version that takes over."""
    sight = console_of(request).sight
    sight.client.promote(name)
    return answer({"done": True, "line": sight.lines.promote(name)})


@router.post("/deployments/{name}/rollback")
def roll_back(request: Request, name: Name, earlier: Earlier) -> Response:
    """Go back."""
    sight = console_of(request).sight
    sight.client.rollback(name, to=earlier.to)
    return answer({"done": True, "line": sight.lines.roll_back(name, earlier.to)})


@router.post("/jobs/{job_id}/stop")
def stop(request: Request, job_id: Name) -> Response:
    """End a submitted job, with a checkpoint."""
    sight = console_of(request).sight
    ended = sight.client.stop(job_id)
    return answer({"done": True, "state": ended.state, "line": sight.lines.stop(job_id)})
