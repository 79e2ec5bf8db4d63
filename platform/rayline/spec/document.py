"""From text to a spec: YAML, then dotted overrides, then validation.

One order, one meaning: file < `--set a.b=value`. Nothing is guessed: an unknown key, a key given
twice and a value of the wrong type are refused with the dotted name, the line where YAML gives
one, and the nearest known name.
"""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rayline.errors import SpecError, meant

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
        tree = read_yaml(path)
        try:
            return cls.parse(apply_overrides(tree, overrides), origin=str(path))
        except SpecError:
            # Knows every kind of document, so it is above this module.
            from rayline.spec.kinds import refuse_other_kind

            refuse_other_kind(cls, tree, Path(path))
            raise

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
    try:
        tree = yaml.load(_text_of(Path(path)), Loader=_UniqueKeyLoader)  # noqa: S506
    except yaml.YAMLError as wrong:
        where = getattr(wrong, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(wrong, "problem", None) or "not YAML"
        raise SpecError(
            f"{path}{line}",
            f"not readable as YAML: {problem}",
            fix="look at that line and the ones before: a bracket, a quote or an indent",
        ) from None
    except SpecError as wrong:
        if wrong.subject.startswith("line "):
            raise SpecError(f"{path}, {wrong.subject}", wrong.problem, fix=wrong.fix) from None
        raise
    if isinstance(tree, dict):
        return tree
    copied = "rayline specs list shows some to begin with; rayline specs copy NAME takes one"
    if tree is None:
        raise SpecError(str(path), "is empty", fix=copied)
    raise SpecError(
        str(path),
        "holds no mapping at its top level",
        value=type(tree).__name__,
        allowed="key: value, a line each",
        fix=copied,
    )


def _text_of(file: Path) -> str:
    """What stands in a file. Raises SpecError where that is no text, or cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        problem, fix = "no such spec file", _nearest_file(file)
    except IsADirectoryError:
        problem, fix = "is a folder, not a spec's file", f"give a file in it: {file}/NAME.yaml"
    except UnicodeDecodeError:
        problem = "not UTF-8 text, as a spec is"
        fix = f"give a text file; one in another encoding: iconv -f latin1 -t utf-8 {file}"
    except OSError as wrong:
        problem, fix = f"cannot be read: {wrong.strerror}", f"chmod u+r {file}, if it is yours"
    raise SpecError(str(file), problem, fix=fix)


def _nearest_file(file: Path) -> str:
    """What to do about a file that is not there."""
    others = [str(other) for other in file.parent.glob("*.y*ml")]
    usual = "give the path of a YAML file, such as jobs/specs/quickstart.yaml"
    return meant(str(file), others, otherwise=usual, cutoff=0.8)


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """A copy of `tree` in which each `a.b=value` is put; values are YAML scalars or lists."""
    changed: Tree = json.loads(json.dumps(tree, default=str))
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals or not dotted.strip():
            raise SpecError("--set", "not of the form a.b=value", value=text, fix="--set a.b=value")
        try:
            _put(changed, dotted.strip(), _scalar(value))
        except yaml.YAMLError:
            raise SpecError(
                f"--set {dotted}",
                "the value is not YAML",
                value=value,
                fix=f"quote it for the shell: --set '{dotted}=[1, 2]'",
            ) from None
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
                fix=f"--set {dotted.partition(parent)[0]}{parent}=VALUE",
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
        return SpecError(
            dotted,
            f"unknown key in {origin}{more}",
            allowed=", ".join(known),
            fix=meant(parts[-1], known, otherwise="remove it"),
        )
    if found["type"] == "union_tag_invalid":
        tags = found["ctx"]["expected_tags"].replace("'", "").split(", ")
        return _no_such_choice(f"{dotted}.kind", "kind", found["ctx"]["tag"], tags, more)
    if found["type"] == "union_tag_not_found":
        return SpecError(dotted, f"names no kind{more}", fix=f"give {dotted}.kind")
    if found["type"] == "literal_error":
        choices = found["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return _no_such_choice(dotted, "choice", found["input"], choices, more)
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "missing":
        problem = f"required, but not given in {origin}{more}"
        return SpecError(dotted, problem, fix=f"give {dotted}, or --set {dotted}=VALUE")
    fix = f"give {dotted} another value, or --set {dotted}=VALUE"
    if isinstance(found["input"], dict | BaseModel):
        return SpecError(dotted, f"{message}{more}", fix=f"change {dotted}")
    return SpecError(dotted, f"{message}{more}", value=found["input"], fix=fix)


def _no_such_choice(
    dotted: str, what: str, given: object, choices: Sequence[str], more: str
) -> SpecError:
    return SpecError(
        dotted,
        f"no such {what}{more}",
        value=given,
        allowed=", ".join(choices),
        fix=meant(str(given), choices, otherwise=f"--set {dotted}={choices[0]}"),
    )


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
