"""How the plans of a search are shown: the fastest, what each takes, and why not another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayline.cli.screen import Screen, plain, size_text

if TYPE_CHECKING:
    from rayline.planner.choice import Choice
    from rayline.planner.economics import Economics
    from rayline.planner.search import Candidate
    from rayline.planner.why import Alternative


def show_choice(screen: Screen, choice: Choice, figures: list[Economics], calibrated: str) -> None:
    """The fastest plans, the job's own beside them, and how to take the first."""
    from rayline.planner.accelerators import PRICES_OF
    from rayline.planner.choice import overrides

    machines = choice.machines
    kind = machines.accelerator
    screen.say(
        f"{machines.gpus} x {kind.name} ({machines.node} a node, {kind.memory_gib:g} GiB): "
        f"{choice.tried:,} plans predicted; curves: {calibrated}"
    )
    rows = [
        (number + 1, *plan_row(candidate), *money_row(figure))
        for number, (candidate, figure) in enumerate(zip(choice.best, figures, strict=False))
    ]
    if choice.own is not None:
        rows.append(("own", *plan_row(choice.own), *money_row(figures[-1])))
    screen.table(_COLUMNS, rows)
    best = choice.best[0]
    screen.say("time of the first: " + split_text(best.seconds, "s"))
    screen.say("memory of the first: " + split_text(_gib(best), "GiB"))
    if figures[0].days is not None and figures[0].dollars is not None:
        screen.say(
            f"all tokens: {figures[0].days:.3g} days, {figures[0].dollars:,.0f} dollars at the "
            f"catalogue's price of {PRICES_OF} or the one given"
        )
    if not choice.job.plan.auto:
        told = " ".join(f"--set {one}" for one in overrides(choice.job, best))
        screen.say(f"to take the first: {told or 'it is the job as it stands'}")


_COLUMNS = (
    "",
    "plan",
    "schedule",
    "zero",
    "microbatch",
    "recompute",
    "step",
    "memory",
    "tokens/s",
    "MFU",
    "$/1e9 tokens",
)


def plan_row(candidate: Candidate) -> tuple[object, ...]:
    """What a plan is, and what it takes."""
    plan = candidate.plan
    schedule: str = "" if plan.pipeline == 1 else plan.schedule
    if plan.stages_per_worker > 1:
        schedule += f" x{plan.stages_per_worker}"
    zero = f"{plan.zero_stage}" + (f"/{plan.replicate}" if plan.replicate > 1 else "")
    recompute = candidate.recompute + (", offload" if candidate.offload else "")
    return (
        str(plan),
        schedule,
        zero,
        f"{plan.microbatches} a step",
        recompute,
        f"{candidate.step_s:.4g} s",
        size_text(candidate.memory_bytes),
    )


def money_row(figure: Economics) -> tuple[str, ...]:
    """What it comes to."""
    return (
        f"{figure.tokens_per_s:,.0f}",
        f"{figure.mfu:.1%}",
        f"{figure.dollars_per_billion_tokens:,.2f}",
    )


def split_text(parts: dict[str, float], unit: str) -> str:
    """`compute 4.1 s, tensor 0.7 s, ...`, without what is nothing."""
    return ", ".join(f"{name} {value:.3g} {unit}" for name, value in parts.items() if value)


def show_why(screen: Screen, field: str, alternatives: list[Alternative]) -> None:
    """Each value of one choice, with the best plan that has it."""
    screen.table(
        [field, "its best plan", "step", "memory", ""],
        [
            (
                str(one.value).lower(),
                str(one.candidate.plan) if one.candidate else "",
                f"{one.candidate.step_s:.4g} s" if one.candidate and one.fits else "does not fit",
                size_text(one.candidate.memory_bytes) if one.candidate else "",
                one.reason,
            )
            for one in alternatives
        ],
    )


def choice_document(
    choice: Choice, figures: list[Economics], why: list[Alternative] | None
) -> dict[str, Any]:
    """The same for a program: what `--json` prints."""
    from rayline.planner.choice import overrides

    found: dict[str, Any] = {
        "gpus": choice.machines.gpus,
        "gpu_type": choice.machines.accelerator.name,
        "plans_predicted": choice.tried,
        "best": [
            {
                **candidate_document(candidate),
                **plain(figure),
                "set": overrides(choice.job, candidate),
            }
            for candidate, figure in zip(choice.best, figures, strict=False)
        ],
    }
    if choice.own is not None:
        found["own"] = {**candidate_document(choice.own), **plain(figures[-1])}
    if why is not None:
        found["why"] = [
            {
                "value": one.value,
                "fits": one.fits,
                "reason": one.reason,
                "seconds": one.seconds,
                **(candidate_document(one.candidate) if one.candidate else {}),
            }
            for one in why
        ]
    return found


def candidate_document(candidate: Candidate) -> dict[str, Any]:
    """One plan with its splits."""
    return {
        "plan": plain(candidate.plan),
        "recompute": candidate.recompute,
        "offload_optimizer": candidate.offload,
        "step_s": candidate.step_s,
        "seconds": candidate.seconds,
        "memory_bytes": candidate.memory_bytes,
        "bytes": candidate.bytes,
    }


def _gib(candidate: Candidate) -> dict[str, float]:
    return {name: held / 2**30 for name, held in candidate.bytes.items()}
