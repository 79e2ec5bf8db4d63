"""Small pieces of HTML. Colours are the page's own, so that light and dark themes both fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_MONO = "font-family:monospace"
_CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"
_CARD = "border:1px solid currentColor;border-radius:6px;padding:8px 12px;display:inline-block"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under their columns; None is an empty cell."""
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def card(title: str, facts: Mapping[str, object], more: str = "") -> str:
    """A titled box of names and values, those that are None left out, with HTML below."""
    rows = "".join(
        f'<tr><td style="{_CELL};opacity:.7">{escape(name)}</td>'
        f'<td style="{_CELL}">{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    return f'<div style="{_CARD}"><b>{escape(title)}</b><table>{rows}</table>{more}</div>'


def code(text: str) -> str:
    """Text as it stands, in a fixed width."""
    return f'<pre style="{_MONO};margin:4px 0">{escape(text)}</pre>'


def svg_begin(width: int, height: int) -> str:
    """The tag that opens a picture of so many pixels."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" '
        'fill="currentColor" role="img">'
    )


def _text(value: object) -> str:
    return "" if value is None else escape(str(value))
