"""A lineage as SVG: kinds from left to right, one box a node, in the colours that the viewer asks
for, light or dark. It stands alone: no script, no font, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from rayline.tracking.lineage.graph import KINDS, Lineage, Node

_WIDTH, _GAP, _ROW_GAP, _MARGIN = 224, 72, 20, 24
_LINE, _PAD, _CHARACTERS = 16, 12, 30
# Names begin with lineage, for a page may hold the picture among others.
_STYLE = """
.lineage{font:12px system-ui,sans-serif;background:#fff;color:#1b1f24}
.lineage rect{fill:#f5f7fa;stroke:#8a94a3;stroke-width:1}
.lineage .asked rect{stroke:#1f5fbf;stroke-width:2.5}
.lineage path{fill:none;stroke:#8a94a3;stroke-width:1.5}
.lineage text{fill:currentColor}
.lineage .kind{fill:#4a5563;font-size:11px}.lineage .name{font-weight:600}
.lineage .fact{fill:#3c4653;font-size:11px}
@media (prefers-color-scheme:dark){.lineage{background:#14171c;color:#e8ebf0}
.lineage rect{fill:#20252d;stroke:#6d7786}.lineage .asked rect{stroke:#7fb0ff}
.lineage path{stroke:#6d7786}.lineage .kind{fill:#a9b3c1}.lineage .fact{fill:#c3cbd6}}
"""


def as_svg(lineage: Lineage) -> str:
    """The whole picture as one document."""
    kinds = [kind for kind in KINDS if lineage.of_kind(kind)]
    boxes: dict[str, tuple[int, int, int]] = {}
    height = 0
    for column, kind in enumerate(kinds):
        x, y = _MARGIN + column * (_WIDTH + _GAP), _MARGIN
        for node in lineage.of_kind(kind):
            tall = 2 * _PAD + _LINE * (2 + len(node.facts))
            boxes[node.id] = (x, y, tall)
            y += tall + _ROW_GAP
        height = max(height, y - _ROW_GAP + _MARGIN)
    width = 2 * _MARGIN + len(kinds) * _WIDTH + (len(kinds) - 1) * _GAP
    name = escape(lineage.node(lineage.asked).name)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    told = 'class="lineage" role="img" aria-labelledby="lineage-title lineage-told"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {told}>',
        f'<title id="lineage-title">Lineage of {name}</title>',
        f'<desc id="lineage-told">{escape(lineage.as_text())}</desc>',
        f"<style>{_STYLE}</style>",
        *_curves(lineage, boxes),
    ]
    for node in lineage.nodes:
        parts += _box(node, boxes[node.id], asked=node.id == lineage.asked)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curves(lineage: Lineage, boxes: dict[str, tuple[int, int, int]]) -> Iterator[str]:
    for edge in lineage.edges:
        x0, y0, tall0 = boxes[edge.source]
        x1, y1, tall1 = boxes[edge.target]
        # From a box on the right, as of a model that another began from, it leaves on its left.
        right = x0 < x1
        start, end = (x0 + _WIDTH, x1) if right else (x0, x1 + _WIDTH)
        y0, y1 = y0 + tall0 // 2, y1 + tall1 // 2
        middle = (start + end) // 2
        yield (
            f'<path d="M{start} {y0}C{middle} {y0} {middle} {y1} {end} {y1}">'
            f"<title>{escape(edge.relation)}</title></path>"
        )


def _box(node: Node, place: tuple[int, int, int], *, asked: bool) -> Iterator[str]:
    x, y, tall = place
    yield f'<g class="{"asked" if asked else "node"}" id="{escape(node.id, quote=True)}">'
    yield f"<title>{escape(node.address)}</title>"
    yield f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{tall}" rx="8"/>'
    lines = [("kind", node.kind), ("name", node.name)]
    lines += [("fact", f"{name} {value}") for name, value in node.facts.items()]
    for row, (style, text) in enumerate(lines):
        down = y + _PAD + _LINE * row + 11
        yield f'<text class="{style}" x="{x + _PAD}" y="{down}">{escape(_cut(text))}</text>'
    yield "</g>"


def _cut(text: str) -> str:
    """As much as fits into a box; the whole of it stands in the text and in JSON."""
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"
