"""Trees of plain values to YAML that a person can read: sections under comments, no anchors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Tree = dict[str, Any]
_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Section:
    """Some keys of the top level, and what is to be said above them."""

    tree: Mapping[str, Any]
    comment: str = ""


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper: lists indented, text of several lines as it stands, nothing by anchor."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def document(header: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole file: `header` as comment lines, then each section."""
    parts = ["".join(f"# {line}".rstrip() + "\n" for line in header)]
    for section in sections:
        comment = "".join(f"{line}\n" for line in _commented(section.comment))
        parts.append(comment + body(section.tree))
    return parts[0] + "\n".join(part for part in parts[1:])


def body(tree: Mapping[str, Any]) -> str:
    """A tree as YAML, keys in their order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)


def merged(sections: Sequence[Section]) -> Tree:
    """The sections' keys in one tree: what a reader of the file gets."""
    return {key: value for section in sections for key, value in section.tree.items()}


def short_number(value: float) -> float:
    """10 for 10.0: what a person would write."""
    return int(value) if value == int(value) else value


def paragraph(text: str) -> list[str]:
    """Text broken into lines for a header."""
    return textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)


def _commented(text: str) -> list[str]:
    return [f"# {line}" for line in paragraph(text)] if text else []
