"""The HTML of single values: one function a class, from the value to its card."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from rayline.sdk.notebook.html import card, code, table
from rayline.sdk.notebook.loss_chart import loss_chart
from rayline.sdk.notebook.plan_picture import plan_picture

if TYPE_CHECKING:
    from rayline.actors import JobOutcome
    from rayline.launch import JobStatus, Submission
    from rayline.planner import DeploymentPlan, JobPlan
    from rayline.planner.choice import Choice
    from rayline.sdk.specs import Draft
    from rayline.serving import Endpoint, ModelStatus
    from rayline.serving.access.keys import IssuedKey
    from rayline.serving.batch import BatchSummary
    from rayline.spec import Document
    from rayline.tracking import RunRecord
    from rayline.tuning import SearchOutcome

_GIB = 2**30
_EVENTS = 8


def job_plan(plan: JobPlan) -> str:
    """Who stands where, and memory."""
    facts = {
        "model": f"{plan.job.model}, {plan.parameters:,} parameters",
        "batch": f"{plan.tokens_per_step:,} tokens a step",
        "engine": f"{plan.job.engine}, {plan.job.precision}",
        "waiting": f"{plan.pipeline.bubble_share:.0%} of a step"
        if plan.job.plan.pipeline > 1
        else None,
    }
    if plan.job.plan.auto:
        return card(plan.job.name, {**facts, "plan": "auto: chosen on the cluster, at the start"})
    return card(f"plan of {plan.job.name}", facts, plan_picture(plan))


def choice(found: Choice) -> str:
    """The fastest plans, and the first one's timeline."""
    from rayline.planner.picture import draw

    rows = [
        (
            number + 1,
            each.plan,
            each.plan.schedule if each.plan.pipeline > 1 else "",
            each.recompute,
            f"{each.step_s:.4g} s",
            f"{each.memory_bytes / _GIB:.1f} GiB",
        )
        for number, each in enumerate(found.best)
    ]
    columns = ("", "plan", "schedule", "recompute", "step", "memory")
    machines = f"{found.machines.gpus} x {found.machines.accelerator.name}"
    facts = {"machines": machines, "plans predicted": f"{found.tried:,}"}
    picture = draw(found, found.best[0])
    return card(f"plans for {found.job.name}", facts, table(columns, rows) + picture)


def job_outcome(outcome: JobOutcome) -> str:
    """What a job came to."""
    result = outcome.result
    export = result.export
    logits = export and (
        f"differ by {export.logit_difference:.1e} of the largest; "
        f"{export.logit_tolerance:.0e} allowed"
    )
    facts = {
        "run": outcome.run_id,
        "steps": f"{result.first_step} to {result.last_step}"
        + ("" if result.finished else ", stopped before its end"),
        "model": outcome.model,
        "logits": logits,
        "checkpoint": result.checkpoint,
        "recoveries": len(outcome.recoveries) or None,
        "peak memory": f"{max(result.peak_memory_bytes) / _GIB:.2f} GiB a worker"
        if result.peak_memory_bytes
        else None,
    }
    return card("trained" if result.finished else "stopped", facts)


def search_outcome(outcome: SearchOutcome) -> str:
    """The trials, best first."""
    metrics = sorted({metric for trial in outcome.trials for metric in trial.values})
    rows = [
        (
            trial.number,
            trial.status,
            *(f"{trial.values[each]:.4g}" if each in trial.values else None for each in metrics),
            trial.steps,
            ", ".join(f"{field}={value}" for field, value in trial.params.items()),
            trial.problem,
        )
        for trial in outcome.trials
    ]
    heads = ("trial", "status", *metrics, "steps", "values", "problem")
    trials = table(heads, rows)
    facts = {"run": outcome.run_id, "ended": outcome.ended_because, "report": outcome.report}
    facts |= {"next": f"rayline train {outcome.best_spec}"}
    return card("search", facts, trials)


def run_record(record: RunRecord) -> str:
    """A run with its curves and what happened."""
    summary = record.summary
    training = [(point.step, point.value) for point in record.metrics.get("loss", [])]
    validation = [(point.step, point.value) for point in record.metrics.get("val_loss", [])]
    events = table(
        ("at", "", ""),
        [(_moment(event.at), event.kind, event.text) for event in record.events[-_EVENTS:]],
    )
    facts = {
        "run": summary.run_id,
        "status": summary.status,
        "step": summary.step,
        "plan": summary.plan or None,
        "started": _moment(summary.started_at),
    }
    chart = loss_chart(training, validation, title="loss") if training else ""
    return card(summary.name, facts, chart + events if record.events else chart)


def job_status(status: JobStatus) -> str:
    """Where a submitted job stands."""
    facts = {
        "state": status.state,
        "why": status.waiting or status.reason or None,
        "exit code": status.exit_code,
        "command": status.entrypoint,
    }
    return card(status.job_id, facts)


def submission(sent: Submission) -> str:
    """What became of a submit."""
    facts = {
        "sent": "now" if sent.is_new else "before",
        "note": sent.note or None,
        "next": f"rayline logs {sent.job_id} --follow",
    }
    return card(sent.job_id, facts)


def endpoint(served: Endpoint) -> str:
    """Where a model answers, and how to ask."""
    ask = f'rayline chat "Hello" --url {served.url}'
    facts = {"address": served.url, "model": served.model, "version": served.version}
    return card(f"{served.name} answers", facts, code(ask))


def model_status(status: ModelStatus) -> str:
    """Who gets what of a served model, and what happened."""
    rows = [
        (
            version.number,
            version.model,
            version.state,
            f"{version.percent:g} %",
            f"{version.up} of {version.wanted}",
            version.reason or (version.decision.why if version.decision is not None else None),
        )
        for version in status.versions
    ]
    versions = table(("version", "model", "state", "share", "replicas", "why"), rows)
    events = table(
        ("at", ""),
        [
            (_moment(datetime.datetime.fromtimestamp(event.at_s, datetime.UTC)), event.said)
            for event in status.events[-_EVENTS:]
        ],
    )
    verdict = (
        status.verdict and f"{status.verdict.action.replace('_', ' ')}: {status.verdict.reason}"
    )
    return card(status.model, {"gates": verdict, "held": status.held or None}, versions + events)


def deployment_plan(plan: DeploymentPlan) -> str:
    """What a deployment would take."""
    replica = plan.replica
    facts = {
        "fits": "not known" if not replica.known else "yes" if replica.fits else "no",
        "replicas": f"{plan.deployment.scale.min_replicas} to {plan.deployment.scale.max_replicas}",
    }
    return card(f"deployment {plan.deployment.name}", facts)


def issued_key(issued: IssuedKey) -> str:
    """A key, without its secret: outputs are kept in the notebook's file."""
    key = issued.key
    facts = {"id": key.id, "team": key.team, "secret": "in .secret, this once; keep it now"}
    return card(f"key {key.name}", facts)


def batch_summary(summary: BatchSummary) -> str:
    """How a batch went."""
    facts = {
        "requests": summary.requests,
        "answered": summary.answered,
        "earlier": summary.resumed or None,
        "with an error": summary.failed or None,
    }
    return card("batch", facts)


def draft(made: Draft) -> str:
    """A spec that was written, and the command that runs it."""
    facts = {"file": made.file, "for": f"{made.found.where}: {made.found.text}"}
    return card("spec", facts, code(made.command))


def document(spec: Document) -> str:
    """A spec, as the YAML that it is read from."""
    return code(spec.to_yaml())


def _moment(at: datetime.datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
