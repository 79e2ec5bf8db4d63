"""The columns in which lists are shown: one function a kind of list."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rayline.sdk.notebook.rows import Rows

if TYPE_CHECKING:
    from rayline.launch import Finding, JobStatus
    from rayline.serving.access.keys import ApiKey
    from rayline.serving.access.usage import UsageSum
    from rayline.spec.shipped import ShippedSpec
    from rayline.tracking import ModelSummary, RunSummary


def runs(found: Iterable[RunSummary]) -> Rows[RunSummary]:
    """Runs, as `rayline runs` shows them."""
    return Rows(
        found,
        {
            "run": lambda run: run.run_id,
            "name": lambda run: run.name,
            "status": lambda run: run.status,
            "step": lambda run: run.step,
            "loss": lambda run: None if run.loss is None else f"{run.loss:.4f}",
            "plan": lambda run: run.plan,
            "started": lambda run: _moment(run.started_at),
        },
    )


def models(found: Iterable[ModelSummary]) -> Rows[ModelSummary]:
    """Registered models."""
    return Rows(
        found,
        {
            "model": lambda model: model.name,
            "version": lambda model: model.newest_version,
            "aliases": lambda model: ", ".join(f"{a} -> {n}" for a, n in model.aliases.items()),
            "run": lambda model: model.run_id,
        },
    )


def jobs(found: Iterable[JobStatus]) -> Rows[JobStatus]:
    """Submitted jobs."""
    return Rows(
        found,
        {
            "job": lambda job: job.job_id,
            "state": lambda job: job.state,
            "exit code": lambda job: job.exit_code,
            "started": lambda job: None if job.started_at is None else _moment(job.started_at),
            "command": lambda job: job.entrypoint,
        },
    )


def keys(found: Iterable[ApiKey]) -> Rows[ApiKey]:
    """API keys, never a secret."""
    return Rows(
        found,
        {
            "key": lambda key: key.name,
            "id": lambda key: key.id,
            "team": lambda key: key.team,
            "scopes": lambda key: ", ".join(key.scopes),
            "models": lambda key: "all" if key.models is None else ", ".join(key.models),
            "requests/min": lambda key: key.limits.requests_per_min,
            "tokens/min": lambda key: key.limits.tokens_per_min,
            "revoked": lambda key: key.revoked_at_s and _moment(_at(key.revoked_at_s)),
            "expires": lambda key: key.expires_at_s and _moment(_at(key.expires_at_s)),
        },
    )


def usage(found: Iterable[UsageSum], by: str) -> Rows[UsageSum]:
    """Sums of usage; `by` is what each line is of."""
    return Rows(
        found,
        {
            by: lambda line: line.name or "-",
            "requests": lambda line: f"{line.requests:,}",
            "failed": lambda line: f"{line.failed:,}",
            "refused": lambda line: f"{line.refused:,}",
            "prompt tokens": lambda line: f"{line.prompt_tokens:,}",
            "answer tokens": lambda line: f"{line.completion_tokens:,}",
            "tokens": lambda line: f"{line.tokens:,}",
        },
    )


def findings(found: Iterable[Finding]) -> Rows[Finding]:
    """What the doctor found."""
    return Rows(
        found,
        {
            "": lambda finding: finding.level,
            "check": lambda finding: finding.name,
            "found": lambda finding: finding.text,
            "to do": lambda finding: finding.fix,
        },
    )


def specs(found: Iterable[ShippedSpec]) -> Rows[ShippedSpec]:
    """Specs that come with rayline."""
    return Rows(
        found,
        {
            "name": lambda spec: spec.name,
            "kind": lambda spec: spec.kind,
            "for": lambda spec: spec.about,
        },
    )


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _moment(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
