"""How a plan is shown before anything runs: the model, what runs where, the batch, the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayline.cli.screen import Screen, plain, size_text

if TYPE_CHECKING:
    from rayline.planner import JobPlan
    from rayline.spec import JobSpec, TuneSpec

SHOWN_WORKERS = 16
"""More ranks than this are told in words: the list would push the rest off the screen."""


def show_job_plan(screen: Screen, plan: JobPlan) -> None:
    """The whole plan of one job."""
    job = plan.job
    if job.plan.auto:
        show_auto(screen, plan)
        return
    rows = [
        ("job", f"{job.name}, {job.last_step} steps, engine {job.engine}, {job.precision}"),
        ("model", f"{job.model}, {parameters_text(plan.parameters)} parameters"),
        ("plan", workers_text(job)),
        *([("pipeline", pipeline_text(plan))] if job.plan.pipeline > 1 else []),
        ("batch", batch_text(job)),
        *zip(("memory", ""), memory_lines(plan), strict=True),
    ]
    screen.table(["", ""], rows)
    show_workers(screen, plan)


def show_auto(screen: Screen, plan: JobPlan) -> None:
    """A job whose plan the planner chooses once it finds its cluster."""
    job = plan.job
    screen.table(
        ["", ""],
        [
            ("job", f"{job.name}, {job.last_step} steps, engine {job.engine}, {job.precision}"),
            ("model", f"{job.model}, {parameters_text(plan.parameters)} parameters"),
            ("plan", "auto: the planner's choice on the cluster; the run's plan.json tells it"),
        ],
    )


def plan_document(plan: JobPlan) -> dict[str, Any]:
    """The same for a program: what `--json` prints."""
    return {
        "job": plain(plan.job),
        "model": plain(plan.model),
        "parameters": plan.parameters,
        "world_size": plan.job.plan.world_size,
        "workers": [{"rank": rank, **plain(place)} for rank, place in enumerate(plan.workers)],
        "sequences_per_microbatch": plan.job.sequences_per_microbatch,
        "tokens_per_step": plan.tokens_per_step,
        "pipeline": plain(plan.pipeline),
        "memory_per_worker": {**plain(plan.memory), "total_bytes": plan.memory.total_bytes},
    }


def show_search_plan(screen: Screen, search: TuneSpec, plan: JobPlan) -> None:
    """A search: what is drawn, and the plan of the job that each trial changes."""
    goals = " and ".join(
        f"{'largest' if goal.sign < 0 else 'smallest'} {goal.metric}" for goal in search.goals
    )
    screen.say(
        f"search {search.name}: {search.trials} trials, {search.concurrent} at once, "
        f"{search.search}, {goals} wins"
    )
    for line in rule_lines(search):
        screen.say(line)
    screen.table(
        ["field", "range"],
        [
            (field, f"{span.low:g} to {span.high:g}" if span.choices is None else span.choices)
            for field, span in search.space.items()
        ],
    )
    screen.say("each trial changes this job:")
    show_job_plan(screen, plan)


def rule_lines(search: TuneSpec) -> list[str]:
    """What makes a search shorter than all its trials, one line each."""
    rule, population, prune = search.rule, search.population, search.prune
    lines = []
    if rule is not None:
        lines.append(f"stopping: {rule.kind}, from step {rule.grace_steps}")
    if population is not None:
        lines.append(f"population: the weakest are replaced every {population.every_steps} steps")
    limits = [f"{name} {most:g}" for name, most in search.budget if most is not None]
    if limits:
        lines.append(f"budget: {', '.join(limits)}")
    if prune.slower_than is not None:
        lines.append(f"refused: plans slower than {prune.slower_than:g} times the best")
    return lines


def show_workers(screen: Screen, plan: JobPlan) -> None:
    """Rank by rank, where each worker stands; a tensor group shares a node."""
    workers = plan.workers
    job = plan.job
    rows = [
        (rank, place, rank // job.plan.tensor) for rank, place in enumerate(workers[:SHOWN_WORKERS])
    ]
    screen.table(["rank", "coordinate", "tensor group (on one node)"], rows)
    if len(workers) > SHOWN_WORKERS:
        screen.say(f"... and {len(workers) - SHOWN_WORKERS} more, to {workers[-1]}")


def memory_lines(plan: JobPlan) -> list[str]:
    """What the worker that needs most would hold, an estimate, and what that is made of."""
    memory = plan.memory
    parts = (
        ("weights", memory.weights_bytes),
        ("gradients", memory.gradients_bytes),
        ("optimizer", memory.optimizer_bytes),
        ("activations", memory.activations_bytes),
        ("logits", memory.logits_bytes),
    )
    made_of = ", ".join(f"{name} {size_text(size_bytes)}" for name, size_bytes in parts)
    return [
        f"about {size_text(memory.total_bytes)} a worker (stage {memory.stage} needs most)",
        made_of,
    ]


def parameters_text(count: int) -> str:
    """134515008 as 134.5 M."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return str(count)


def workers_text(job: JobSpec) -> str:
    """How many workers, and what each holds."""
    resources = job.resources
    held = f"{resources.cpus_per_worker:g} CPU"
    if resources.device != "cpu":
        held += f", {resources.gpus_per_worker:g} GPU"
    if resources.device == "auto":
        held += " where the cluster has any"
    if job.plan.world_size == 1:
        return f"one worker with {held}"
    return f"{job.plan} = {job.plan.world_size} workers, each {held}"


def pipeline_text(plan: JobPlan) -> str:
    """How the layers are cut, and what waiting for one another costs."""
    layers = "+".join(str(count) for count in plan.pipeline.stage_layers)
    held = plan.job.plan.stages_per_worker
    stages = f"{held} stages a worker, " if held > 1 else ""
    return (
        f"{plan.job.plan.schedule}, {stages}{layers} layers; workers wait "
        f"{plan.pipeline.bubble_share:.0%} of a step for one another"
    )


def batch_text(job: JobSpec) -> str:
    """The batch arithmetic, in full."""
    plan = job.plan
    return (
        f"{job.batch.sequences} sequences = data {plan.data} x microbatches {plan.microbatches} x "
        f"{job.sequences_per_microbatch} at a time; x {job.data.sequence_tokens} tokens = "
        f"{job.batch.sequences * job.data.sequence_tokens:,} tokens a step"
    )
