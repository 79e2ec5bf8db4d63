"""From text to a spec: YAML, then dotted overrides, then validation.

One order, one meaning: file < `--set a.b=value`. Nothing is guessed: an unknown key, a key given
twice and a value of the wrong type are refused with the dotted name, the line where YAML gives
one, and the nearest known name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rayline.errors import SpecError

Tree = dict[str, Any]
_RARE_LINE_ENDS = frozenset("\x85\u2028\u2029")
"""Characters besides CR and LF at which YAML ends a line."""


class Document(BaseModel):
    """A frozen value that is read from outside. Unknown keys are refused; a field's description
    is the docstring below it and says its unit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file, apply `a.b=value` overrides in order, validate. Raises SpecError."""
        return cls.parse(apply_overrides(read_yaml(path), overrides), origin=str(path))

    @classmethod
    def parse(cls, tree: Mapping[str, Any], origin: str = "spec") -> Self:
        """Validate a tree of plain values. Raises SpecError naming the first wrong field."""
        try:
            return cls.model_validate(tree)
        except ValidationError as wrong:
            raise _explain(cls, wrong, origin) from None

    def changed(self, overrides: Mapping[str, Any]) -> Self:
        """A validated copy in which dotted fields hold other values (used by search)."""
        tree = self.model_dump(mode="json")
        for dotted, value in overrides.items():
            _put(tree, dotted, value)
        return type(self).parse(tree, origin="override")

    def flat(self) -> dict[str, Any]:
        """Dotted field name to plain value, lists as JSON text: the form MLflow's params take."""
        return dict(_flatten("", self.model_dump(mode="json")))

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of the canonical JSON: equal specs, equal fingerprints."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The whole spec, defaults included, as YAML that `load` reads back to an equal value."""
        tree = self.model_dump(mode="json")
        # Written as they are, these would be read back as ends of lines.
        readable = _RARE_LINE_ENDS.isdisjoint(json.dumps(tree, ensure_ascii=False))
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=readable)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, refusing a key that stands twice in one mapping."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> Tree:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # construct_mapping says what is wrong with such a key
        if key_node.value in seen:
            line = key_node.start_mark.line + 1
            raise SpecError(
                f"line {line}",
                f"key {key_node.value!r} stands twice in one mapping",
                fix="keep one of the two",
            )
        seen.add(key_node.value)
    loader.flatten_mapping(node)
    return typing.cast(Tree, loader.construct_mapping(node, deep=True))


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: str | Path) -> Tree:
    """The mapping that a YAML file holds. Raises SpecError when there is none."""
    file = Path(path)
    if not file.is_file():
        raise SpecError(
            str(path),
            "no such spec file",
            fix="give the path of a YAML file, such as jobs/specs/quickstart.yaml",
        )
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506
    except yaml.YAMLError as wrong:
        where = getattr(wrong, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(wrong, "problem", None) or "not YAML"
        raise SpecError(f"{path}{line}", f"not readable as YAML: {problem}") from None
    except UnicodeDecodeError:
        raise SpecError(str(path), "not UTF-8 text") from None
    except SpecError as wrong:
        raise SpecError(f"{path}, {wrong.subject}", wrong.problem, fix=wrong.fix) from None
    if not isinstance(tree, dict):
        raise SpecError(str(path), "holds no mapping at its top level", value=type(tree).__name__)
    return tree


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """A copy of `tree` in which each `a.b=value` is put; values are YAML scalars or lists."""
    changed: Tree = json.loads(json.dumps(tree, default=str))
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals or not dotted.strip():
            raise SpecError("--set", "not of the form a.b=value", value=text)
        try:
            _put(changed, dotted.strip(), _scalar(value))
        except yaml.YAMLError:
            raise SpecError(f"--set {dotted}", "the value is not YAML", value=value) from None
    return changed


def _scalar(text: str) -> Any:
    """A YAML value; numbers such as 3e-4, which YAML 1.1 reads as text, are numbers here."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here = tree
    for parent in parents:
        below = here.get(parent)
        if below is None:
            below = here[parent] = {}
        if not isinstance(below, dict):
            raise SpecError(
                dotted,
                f"{parent!r} is a value, not a section, so nothing can be set below it",
                value=below,
            )
        here = below
    here[last] = value


def _flatten(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, below)
    else:
        yield prefix, json.dumps(value) if isinstance(value, list | dict) else value


def _explain(kind: type[BaseModel], wrong: ValidationError, origin: str) -> SpecError:
    """The first of pydantic's findings, in this project's words."""
    found = wrong.errors(include_url=False)[0]
    parts, owner = _place(kind, [str(part) for part in found["loc"]])
    dotted = ".".join(parts) or origin
    more = f" (and {wrong.error_count() - 1} more)" if wrong.error_count() > 1 else ""
    if found["type"] == "extra_forbidden":
        known = sorted(owner.model_fields)
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        return SpecError(
            dotted,
            f"unknown key in {origin}{more}",
            allowed=", ".join(known),
            fix=f"did you mean {near[0]!r}?" if near else "remove it",
        )
    if found["type"] == "union_tag_invalid":
        context = found["ctx"]
        return SpecError(
            f"{dotted}.kind",
            f"no such kind in {origin}{more}",
            value=context["tag"],
            allowed=context["expected_tags"].replace("'", ""),
        )
    if found["type"] == "union_tag_not_found":
        return SpecError(dotted, f"names no kind{more}", fix=f"give {dotted}.kind")
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "missing":
        return SpecError(dotted, f"required, but not given in {origin}{more}")
    if isinstance(found["input"], dict | BaseModel):
        return SpecError(dotted, f"{message}{more}")
    return SpecError(dotted, f"{message}{more}", value=found["input"])


def _place(kind: type[BaseModel], loc: list[str]) -> tuple[list[str], type[BaseModel]]:
    """The dotted parts of the field at pydantic's `loc`, and the model that the last one belongs
    to. Where a field may be one of several models, pydantic puts the chosen one's tag behind its
    name; users never wrote that."""
    owner, parts = kind, []
    choices: dict[str, type[BaseModel]] = {}
    for place in loc:
        if place in choices:
            owner, choices = choices[place], {}
            continue
        parts.append(place)
        if place in owner.model_fields:
            choices = _models_in(owner.model_fields[place])
            if len(choices) == 1 and place != loc[-1]:
                owner = next(iter(choices.values()))
                choices = {}
    return parts, owner


def _models_in(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The pydantic models that a field may hold, such as `X | None` or `list[X]`, by the default
    of their `kind`; one without kinds by its name."""
    found: list[type[BaseModel]] = []
    _collect(field.annotation, found)
    return {_tag(model): model for model in found}


def _tag(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("kind")
    return model.__name__ if kind is None else str(kind.default)


def _collect(annotation: Any, found: list[type[BaseModel]]) -> None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found.append(annotation)
    for inner in typing.get_args(annotation):
        _collect(inner, found)
