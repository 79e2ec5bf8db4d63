"""The kinds of spec that a file can hold, told apart by their keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from rayline.errors import SpecError, meant
from rayline.spec.cluster import ClusterSpec
from rayline.spec.document import Document
from rayline.spec.job import JobSpec
from rayline.spec.serve import ServeSpec
from rayline.spec.tune import TuneSpec

Kind = Literal["job", "serve", "tune", "cluster"]
KINDS: dict[Kind, type[Document]] = {
    "job": JobSpec,
    "serve": ServeSpec,
    "tune": TuneSpec,
    "cluster": ClusterSpec,
}
NAMES: dict[Kind, str] = {
    "job": "a job's spec",
    "serve": "a deployment's spec",
    "tune": "a search's spec",
    "cluster": "a cluster's spec",
}
VERBS: dict[Kind, str] = {
    "job": "rayline train",
    "serve": "rayline deploy",
    "tune": "rayline tune",
    "cluster": "rayline cluster plan",
}
"""What a person would do with a file of each kind."""
FOLDERS: dict[str, Kind] = {"jobs": "job", "serve": "serve", "tune": "tune", "cluster": "cluster"}
"""Where files of each kind lie."""


def kind_of(tree: Mapping[str, Any], file: Path | None = None) -> Kind | None:
    """The kind that knows most of the keys. Where two know as many, `engine`, which is a mapping in
    a deployment and a word in a job, decides; then the folder of `file`. None where nothing does.
    """
    known = {kind: sum(key in spec.model_fields for key in tree) for kind, spec in KINDS.items()}
    most = max(known.values())
    best = [kind for kind, count in known.items() if count == most]
    if most and len(best) == 1:
        return best[0]
    if "engine" in tree and {"job", "serve"} <= set(best):
        return "serve" if isinstance(tree["engine"], Mapping) else "job"
    parts = file.absolute().parent.parts if file is not None else ()
    return next((FOLDERS[part] for part in reversed(parts) if part in FOLDERS), None)


def spec_class(kind: str) -> type[Document]:
    """The class of a kind's specs. Raises SpecError for another word."""
    for known in get_args(Kind):
        if kind == known:
            return KINDS[known]
    raise SpecError(
        "kind",
        "no such kind of spec",
        value=kind,
        allowed=", ".join(KINDS),
        fix=meant(kind, KINDS, otherwise="choose one of the allowed kinds"),
    )


def refuse_other_kind(wanted: type[Document], tree: Mapping[str, Any], file: Path) -> None:
    """Raise SpecError where what was to be a `wanted` is plainly of another kind. Called once it is
    known that it is no `wanted`."""
    mine = next((kind for kind, spec in KINDS.items() if spec is wanted), None)
    found = kind_of(tree, file)
    if mine is None or found is None or found == mine:
        return
    raise SpecError(
        str(file),
        f"is {NAMES[found]}; {NAMES[mine]} is wanted here",
        fix=f"{VERBS[found]} {file}",
    )
