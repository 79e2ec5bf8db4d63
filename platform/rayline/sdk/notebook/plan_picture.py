"""A job's plan as an SVG picture: who stands where, and what the fullest worker holds."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from rayline.sdk.notebook.html import svg_begin

if TYPE_CHECKING:
    from rayline.planner import JobPlan

_WIDTH, _LEFT, _CELL, _ROW = 720, 96, 74, 26
_MOST_COLUMNS, _MOST_ROWS = 8, 16
_BAR_TOP, _BAR = 46, 18
_GIB = 2**30
_PARTS = {
    "weights": "#4c78a8",
    "gradients": "#f58518",
    "optimizer": "#54a24b",
    "activations": "#e45756",
    "logits": "#b279a2",
}


def plan_picture(plan: JobPlan) -> str:
    """The SVG element: a bar of memory, then a row a pipeline stage with the workers of each
    replica; beyond eight replicas or sixteen stages the rest is told in words."""
    grid = list(_grid(plan))
    height = 110 + _ROW * min(plan.job.plan.pipeline, _MOST_ROWS) + 24
    title = f"{plan.job.name}: {plan.job.plan} = {plan.job.plan.world_size} workers"
    return "".join(
        [
            svg_begin(_WIDTH, height),
            f"<title>{escape(title)}</title>",
            f'<text x="0" y="16" font-size="13">{escape(title)}</text>',
            *_memory(plan),
            *grid,
            "</svg>",
        ]
    )


def _memory(plan: JobPlan) -> Iterator[str]:
    from rayline.planner.choice import memory_parts

    memory, parts = plan.memory, memory_parts(plan.memory)
    scale = (_WIDTH - _LEFT) / max(1, memory.total_bytes)
    told = f"stage {memory.stage} needs most: about {memory.total_bytes / _GIB:.2f} GiB a worker"
    yield f'<text x="0" y="36">{told}</text>'
    x = 0.0
    for name, colour in _PARTS.items():
        held = parts.get(name, 0)
        width = held * scale
        yield (
            f'<rect x="{x:.1f}" y="{_BAR_TOP}" width="{width:.1f}" height="{_BAR}" '
            f'fill="{colour}"><title>{name} {held / _GIB:.3f} GiB</title></rect>'
        )
        x += width
    x = 0.0
    for name, colour in _PARTS.items():
        yield f'<rect x="{x}" y="{_BAR_TOP + 26}" width="9" height="9" fill="{colour}"/>'
        yield f'<text x="{x + 13}" y="{_BAR_TOP + 34}">{name}</text>'
        x += 92


def _grid(plan: JobPlan) -> Iterator[str]:
    layout, top = plan.job.plan, 106
    replicas = layout.data * layout.context
    ranks: dict[tuple[int, int], list[int]] = {}
    for rank, place in enumerate(plan.workers):
        ranks.setdefault((place.pipeline, rank // layout.tensor % replicas), []).append(rank)
    layers = plan.pipeline.stage_layers
    for (stage, replica), held in ranks.items():
        if stage >= _MOST_ROWS or replica >= _MOST_COLUMNS:
            continue
        x, y = _LEFT + replica * _CELL, top + stage * _ROW
        told = f"{held[0]}" if len(held) == 1 else f"{held[0]}-{held[-1]}"
        yield (
            f'<rect x="{x}" y="{y}" width="{_CELL - 4}" height="{_ROW - 4}" fill="none" '
            f'stroke="currentColor" stroke-opacity=".5" rx="3"><title>stage {stage}, replica '
            f"{replica}: ranks {held}, on one node</title></rect>"
            f'<text x="{x + 6}" y="{y + 15}">rank {told}</text>'
        )
        if replica == 0:
            count = f", {layers[stage]} layers" if layout.stages_per_worker == 1 else ""
            yield f'<text x="0" y="{y + 15}">stage {stage}{count}</text>'
    if layout.pipeline > _MOST_ROWS or replicas > _MOST_COLUMNS:
        yield (
            f'<text x="{_LEFT}" y="{top - 6}">of {layout.pipeline} stages and {replicas} replicas '
            "the first are drawn</text>"
        )
