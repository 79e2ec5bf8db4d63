"""A plan as a picture: the pipeline's timeline, and the memory of each of its workers, as SVG.

Drawn without any library, so that a thin client can; the HTML form is the same drawing in a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rayline.errors import SpecError
from rayline.planner.choice import Choice, device_memory, memory_parts, predict_job, workload
from rayline.planner.columns import Machines
from rayline.planner.curves import Curves
from rayline.planner.memory import estimate_workers
from rayline.planner.pipeline import StageTimes, Timeline, simulate
from rayline.planner.schedule import Action
from rayline.planner.search import Candidate, layer_seconds
from rayline.planner.stage_memory import GIB
from rayline.spec import JobSpec, ModelShape, ParallelPlan

_WIDTH, _LEFT, _ROW, _GAP = 1200, 110, 18, 4
_MOST_ACTIONS = 12000
_FONT = 'font-family="sans-serif" font-size="12"'
_WORK_COLOURS = {"F": "#4c78a8", "B": "#f58518", "I": "#f58518", "W": "#54a24b"}
_WORK_NAMES = {"F": "forward", "B": "backward", "I": "gradients of inputs", "W": "of weights"}
_MEMORY_COLOURS = {
    "weights": "#4c78a8",
    "gradients": "#f58518",
    "optimizer": "#54a24b",
    "activations": "#e45756",
    "logits": "#b279a2",
    "buffers": "#9d9da1",
}


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a drawing is of."""

    job: JobSpec
    """Its plan is told."""
    shape: ModelShape
    machines: Machines
    curves: Curves


def write_picture(choice: Choice, candidate: Candidate, file: Path) -> None:
    """Write the picture of this plan. Raises SpecError where the file's name ends in neither .svg
    nor .html."""
    if file.suffix not in (".svg", ".html"):
        raise SpecError(
            "--picture", "is drawn as SVG or HTML", value=str(file), allowed="*.svg, *.html"
        )
    drawing = draw(choice, candidate)
    if file.suffix == ".html":
        title = escape(f"{choice.job.name}: {candidate.plan}")
        drawing = (
            f'<!doctype html><html><head><meta charset="utf-8"><title>{title}</title></head>'
            f"<body>{drawing}</body></html>"
        )
    file.write_text(drawing + "\n", encoding="utf-8")


def draw(choice: Choice, candidate: Candidate) -> str:
    """The SVG element. Called on the driver."""
    resolved = choice.resolved(candidate)
    return _drawn(_Scene(resolved, choice.shape, choice.machines, choice.curves), candidate)


def draw_job(job: JobSpec, shape: ModelShape, machines: Machines, curves: Curves) -> str:
    """The SVG element of a job's own plan on these machines. Called after `job.check`."""
    scene = _Scene(job, shape, machines, curves)
    return _drawn(scene, predict_job(job, shape, machines, curves))


def _drawn(scene: _Scene, candidate: Candidate) -> str:
    timeline = _timeline(scene, candidate)
    workers = candidate.plan.pipeline
    bottom = 60 + workers * (_ROW + _GAP)
    height = bottom + 90 + workers * (_ROW + _GAP)
    title = f"{candidate.plan}, {candidate.plan.schedule}, step {candidate.step_s:.3g} s"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
        *_legend(36, {_WORK_NAMES[work]: _WORK_COLOURS[work] for work in "FBW"}),
        *_bars_of_time(timeline, candidate.plan),
        *_legend(bottom + 24, _MEMORY_COLOURS),
        *_bars_of_memory(scene, bottom + 40),
        "</svg>",
    ]
    return "\n".join(parts)


def _timeline(scene: _Scene, candidate: Candidate) -> Timeline:
    plan, load = candidate.plan, workload(scene.job)
    forward, backward, head = layer_seconds(
        candidate, scene.shape, scene.machines, load, scene.curves
    )
    layers = plan.stage_layers(scene.shape, load.tokens)
    weights = 0.45 * backward  # the products of the weights' gradients, and little else
    times = [
        StageTimes(count * forward, count * (backward - weights), count * weights)
        for count in layers
    ]
    last = times[-1]
    times[-1] = StageTimes(
        last.forward + head / 3, last.backward_input + head / 3, last.backward_weight + head / 3
    )
    return simulate(plan, times)


def _bars_of_time(timeline: Timeline, plan: ParallelPlan) -> Iterator[str]:
    scale = (_WIDTH - _LEFT - 10) / (timeline.length or 1.0)
    ends: dict[int, list[tuple[float, Action]]] = {}
    for action, end in timeline.ends.items():
        ends.setdefault(plan.worker_of_stage(action.stage), []).append((end, action))
    # Of a long step its begin is drawn: what follows repeats it.
    most = _MOST_ACTIONS // (2 * plan.stages)
    for worker in range(plan.pipeline):
        y = 48 + worker * (_ROW + _GAP)
        yield f'<text x="8" y="{y + 13}">worker {worker}</text>'
        for begin, end, action in _spans(sorted(ends.get(worker, [])), timeline):
            if action.microbatch >= most:
                continue
            x, width = _LEFT + begin * scale, max(0.4, (end - begin) * scale)
            yield (
                f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW}" '
                f'fill="{_WORK_COLOURS[action.work]}" stroke="white" stroke-width="0.3">'
                f"<title>{_WORK_NAMES[action.work]}, stage {action.stage}, microbatch "
                f"{action.microbatch}: {begin:.4g} to {end:.4g} s</title></rect>"
            )


def _spans(
    done: Sequence[tuple[float, Action]], timeline: Timeline
) -> Iterator[tuple[float, float, Action]]:
    """Begin, end and action of one worker."""
    for end, action in done:
        yield end - timeline.lengths[action], end, action


def _bars_of_memory(scene: _Scene, top: int) -> Iterator[str]:
    estimates = [
        device_memory(one, scene.machines, scene.curves)
        for one in estimate_workers(scene.shape, scene.job)
    ]
    room = scene.machines.accelerator.memory_gib * GIB
    most = max(room, *(one.total_bytes for one in estimates))
    scale = (_WIDTH - _LEFT - 130) / most
    for worker, estimate in enumerate(estimates):
        y, x = top + worker * (_ROW + _GAP), float(_LEFT)
        yield f'<text x="8" y="{y + 13}">worker {worker}</text>'
        for name, held in memory_parts(estimate).items():
            width = held * scale
            yield (
                f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW}" '
                f'fill="{_MEMORY_COLOURS[name]}"><title>{name} {held / GIB:.2f} GiB</title></rect>'
            )
            x += width
        yield f'<text x="{x + 6:.2f}" y="{y + 13}">{estimate.total_bytes / GIB:.1f} GiB</text>'
    x = _LEFT + room * scale
    bottom = top + len(estimates) * (_ROW + _GAP)
    yield (
        f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{top - 6}" y2="{bottom}" stroke="black" '
        'stroke-dasharray="4 3"/>'
    )
    yield f'<text x="{x - 4:.2f}" y="{bottom + 14}" text-anchor="end">{room / GIB:.1f} GiB</text>'


def _legend(y: int, colours: Mapping[str, str]) -> Iterator[str]:
    x = _LEFT
    for name, colour in colours.items():
        yield f'<rect x="{x}" y="{y - 10}" width="10" height="10" fill="{colour}"/>'
        yield f'<text x="{x + 14}" y="{y}">{name}</text>'
        x += 40 + 7 * len(name)
