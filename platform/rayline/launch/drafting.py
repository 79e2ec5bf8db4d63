"""A first spec for what there is: commented YAML that `rayline train` runs as it stands.

Pure functions from what was found and what a person chose to text. The text is made by hand, line
by line, because comments are what it is for; tests read every draft back.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from rayline.errors import SpecError
from rayline.launch.machines import Found
from rayline.planner.accelerators import ACCELERATORS, find_accelerator
from rayline.planner.calibration_file import best_calibration
from rayline.planner.choice import choose
from rayline.planner.columns import Machines
from rayline.spec import JobSpec, ModelRef, ModelShape, ParallelPlan

TINY_MODEL = "examples/models/tiny"
TINY_DATA = "examples/data/text.jsonl"
_SEQUENCES_PER_WORKER = 8
_MOST_CPU_WORKERS = 4
_LONGEST_TOKENS = 2048
_TINY_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person chose; None takes what is bundled."""

    name: str
    model: ModelRef | None = None
    data: str | None = None
    """File of texts or chats."""
    chats: bool = False
    """Whether it holds chats."""
    chosen_now: bool = False
    """Whether the plan is the planner's choice for what there is now, told in full; else `plan:
    auto`, which is chosen whenever the job starts."""


def draft(found: Found, wishes: Wishes, shape: ModelShape | None, command: str) -> str:
    """The spec as text; `command` runs it and stands in the first line. `shape` is the model's,
    where it is known without fetching anything; a plan that is told needs it. Raises SpecError
    where no plan fits."""
    if wishes.chosen_now and shape is None:
        raise SpecError(
            "--plan",
            "now needs the model's shape, which would have to be fetched",
            value="now",
            allowed="auto",
            fix="give a model that is on this machine: directory:PATH",
        )
    lines = _lines(found, wishes, shape, command)
    text = "\n".join([*lines, "plan: auto", ""])
    job = JobSpec.parse(yaml.safe_load(text), origin="the draft")
    if not wishes.chosen_now or shape is None:
        return text
    told = choose(job, shape, machines_of(found), best_calibration().curves, count=1).resolved()
    return "\n".join([*lines, *_plan_lines(told), ""])


def machines_of(found: Found) -> Machines:
    """What the planner counts with: the GPUs, or the processors where there are none. Raises
    SpecError for a kind of GPU that is not in the catalogue."""
    if found.gpus:
        return Machines(find_accelerator(found.gpu_kind or ""), found.gpus)
    return Machines(ACCELERATORS["CPU"], workers_on(found))


def workers_on(found: Found) -> int:
    """Workers that a first job has: one a GPU; on processors alone a few."""
    return found.gpus or max(1, min(_MOST_CPU_WORKERS, found.cpus))


def _lines(found: Found, wishes: Wishes, shape: ModelShape | None, command: str) -> list[str]:
    """All of the spec but its plan."""
    model, bundled = wishes.model or ModelRef(directory=TINY_MODEL), wishes.model is None
    data = wishes.data or TINY_DATA
    ((address, value),) = model.model_dump(exclude_none=True).items()
    on_gpu = found.gpus > 0
    weights = _noted(
        f"init: {'random' if bundled else 'weights'}",
        "the bundled model has no weights" if bundled else "random trains from scratch",
    )
    return [
        f"# {command}",
        f"# Made for {found.where}: {found.text}.",
        "#",
        "# Every field, with its unit: rayline specs schema job. Another value for one run: --set,",
        "# such as --set optim.lr=3e-4. What it would run, before it does: rayline plan.",
        f"name: {wishes.name}",
        "model:",
        f"  {address}: {_scalar(value)}",
        weights,
        f"steps: {40 if bundled else 1000}",
        _noted(f"precision: {'bf16' if on_gpu else 'fp32'}", "bf16, fp16 or fp32"),
        "data:",
        _noted(f"  kind: {'chat' if wishes.chats else 'text'}", "text: a text a line; chat: turns"),
        f"  files: [{_scalar(data)}]",
        _noted(f"  sequence_tokens: {_sequence_tokens(shape, bundled)}", "longer texts are cut"),
        "batch:",
        _noted(
            f"  sequences: {_SEQUENCES_PER_WORKER * workers_on(found)}", "a step, over all workers"
        ),
        "optim:",
        _noted(f"  lr: {'3.0e-3' if bundled else '2.0e-5'}", "its peak, after the warm-up"),
        "  warmup_steps: 5",
        "checkpoint:",
        _noted(f"  every_steps: {20 if bundled else 200}", "and one at the end"),
        "resources:",
        f"  device: {'gpu' if on_gpu else 'cpu'}",
        f"  cpus_per_worker: {'1' if on_gpu else '0.5'}",
        "export:",
        _noted(f"  register_as: {wishes.name}", f"serve it as registry: {wishes.name}@latest"),
    ]


def _noted(line: str, note: str) -> str:
    """A line with a comment behind it."""
    return f"{line:<32} # {note}" if note else line


def _plan_lines(job: JobSpec) -> list[str]:
    """The plan of a job, what differs from the defaults, and what goes with it."""
    told = {
        name: value
        for name, value in job.plan.model_dump(mode="json").items()
        if value != ParallelPlan.default_of(name)
    }
    lines = ["plan:                          # the planner's choice; rayline plan --why says why"]
    lines += [f"  {name}: {_scalar(value)}" for name, value in told.items()] or ["  data: 1"]
    if job.recompute != "none":
        lines.append(f"recompute: {job.recompute}")
    return lines


def _sequence_tokens(shape: ModelShape | None, bundled: bool) -> int:
    if bundled:
        return _TINY_TOKENS
    most = shape.max_positions if shape is not None else None
    return min(_LONGEST_TOKENS, most or _LONGEST_TOKENS)


def holds_chats(first_line: str) -> bool:
    """Whether a data file whose first line this is holds chats."""
    return first_line.lstrip().startswith("{") and '"messages"' in first_line


def _scalar(value: object) -> str:
    """A value as YAML, in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).partition("\n...")[0].strip()
