"""The loss over the steps as an SVG picture: a pure function of points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from rayline.sdk.notebook.html import svg_begin

Point = tuple[int, float]
"""A step and the loss there."""
_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 28, 34
_MOST_POINTS = 400
_TICKS = 4
_LARGEST = 1e30
"""Beside a loss beyond it nothing else could be told apart."""
_LINE, _DOT = "#4c78a8", "#f58518"


def loss_chart(
    training: Sequence[Point],
    validation: Sequence[Point] = (),
    *,
    title: str = "",
    last_step: int | None = None,
) -> str:
    """The SVG element. The axis of steps ends at `last_step`, or where the points do; losses that
    are no numbers are left out."""
    lines = [point for point in training if _can_be_drawn(point[1])]
    dots = [point for point in validation if _can_be_drawn(point[1])]
    frame = _Frame([*lines, *dots], last_step)
    parts = [
        svg_begin(_WIDTH, _HEIGHT),
        f"<title>{escape(title or 'loss')}</title>",
        f'<text x="{_LEFT}" y="16" font-size="13">{escape(title)}</text>',
        *frame.axes(),
        *_curve(frame, lines),
        *(
            f'<circle cx="{frame.x(step):.1f}" cy="{frame.y(loss):.1f}" r="3.5" fill="{_DOT}">'
            f"<title>validation, step {step}: {loss:.4f}</title></circle>"
            for step, loss in dots
        ),
        "</svg>",
    ]
    return "".join(parts)


def _can_be_drawn(loss: float) -> bool:
    return math.isfinite(loss) and abs(loss) < _LARGEST


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most `most` of the points, evenly, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    places = [round(number * (len(points) - 1) / (most - 1)) for number in range(most)]
    return [points[place] for place in places]


class _Frame:
    """Where a step and a loss lie in the picture."""

    def __init__(self, points: Sequence[Point], last_step: int | None) -> None:
        steps = [step for step, _ in points] or [0]
        losses = [loss for _, loss in points] or [0.0]
        self.first, self.last = min(steps), max(last_step or 0, *steps, min(steps) + 1)
        self.low, self.high = min(losses), max(losses)
        around = max(abs(self.low), abs(self.high), 1.0)
        if self.high - self.low < 1e-9 * around:
            self.low, self.high = self.low - 0.5 * around, self.high + 0.5 * around

    def x(self, step: float) -> float:
        """Pixels from the left."""
        share = (step - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, loss: float) -> float:
        """Pixels from the top."""
        share = (loss - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> Iterator[str]:
        """Lines of even losses, and what they and the steps are."""
        for tick in range(_TICKS + 1):
            loss = self.low + (self.high - self.low) * tick / _TICKS
            step = round(self.first + (self.last - self.first) * tick / _TICKS)
            yield (
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{self.y(loss):.1f}" '
                f'y2="{self.y(loss):.1f}" stroke="currentColor" stroke-opacity=".15"/>'
                f'<text x="{_LEFT - 6}" y="{self.y(loss) + 4:.1f}" text-anchor="end">{loss:.4g}'
                "</text>"
                f'<text x="{self.x(step):.1f}" y="{_HEIGHT - 16}" text-anchor="middle">{step}'
                "</text>"
            )
        yield f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 3}" text-anchor="middle">step</text>'


def _curve(frame: _Frame, points: Sequence[Point]) -> Iterator[str]:
    if points:
        drawn = " ".join(
            f"{frame.x(step):.1f},{frame.y(loss):.1f}" for step, loss in thinned(points)
        )
        yield f'<polyline points="{drawn}" fill="none" stroke="{_LINE}" stroke-width="1.8"/>'
