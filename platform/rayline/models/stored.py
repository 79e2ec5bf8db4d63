"""How model folders name and pack what is one parameter here.

Mixtures of experts are published with one file tensor for each expert's matrix; transformers
stacks them into one parameter when it loads, by rules that it keeps for each architecture
(transformers.conversion_mapping). The same rules, read as places: which rectangle of the parameter
a file tensor is. So a rank reads just the experts' slices that it holds, and an export is written
the way that other programs expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
)

from rayline.errors import SpecError

_STAR = "*"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a model folder, and the rectangle of a parameter that it is."""

    name: str
    offset: tuple[int, ...]
    """Where the rectangle begins in the parameter, along each dim."""
    extent: tuple[int, ...]
    stacked: bool
    """The tensor lacks the parameter's first dim, along which such tensors are stacked."""

    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the folder."""
        return self.extent[1:] if self.stacked else self.extent


@dataclass(frozen=True, slots=True)
class _Stack:
    """Tensors named with a number at the star, stacked along dim 0; several such lists are joined
    along dim 1."""

    target: str
    sources: tuple[str, ...]


class StoredNames:
    """The rules of one architecture."""

    def __init__(self, model_type: str) -> None:
        self._stacks: list[_Stack] = []
        self._renamed: list[tuple[str, str]] = []
        self._unknown: list[str] = []
        for rule in get_checkpoint_conversion_mapping(model_type) or []:
            self._take(rule)

    def _take(self, rule: WeightConverter | WeightRenaming) -> None:
        sources, targets = list(rule.source_patterns), list(rule.target_patterns)
        if isinstance(rule, WeightRenaming):
            if (
                len(sources) == len(targets) == 1
                and _is_plain(sources[0])
                and _is_plain(targets[0])
            ):
                self._renamed.append((targets[0], sources[0]))
            return
        kinds = [type(operation) for operation in rule.operations]
        stacks = kinds in ([MergeModulelist], [MergeModulelist, Concatenate])
        joined_along = [getattr(operation, "dim", 0) for operation in rule.operations]
        if stacks and len(targets) == 1 and joined_along in ([0], [0, 1]):
            self._stacks.append(_Stack(targets[0], tuple(sources)))
        else:
            self._unknown += targets

    def published(self, name: str, shape: Sequence[int]) -> list[Stored]:
        """The tensors by which the parameter `name` is published. Raises SpecError where it is
        packed in a way that is not known."""
        for stack in self._stacks:
            if stack.target in name:
                return list(self._unstacked(name, shape, stack))
        if any(target in name for target in self._unknown):
            raise SpecError(
                "model",
                f"its folder packs {name} in a way that is not known here",
                fix="load it with transformers, save its state with safetensors, and use that",
            )
        return [Stored(self._rename(name), (0,) * len(shape), tuple(shape), stacked=False)]

    def _unstacked(self, name: str, shape: Sequence[int], stack: _Stack) -> Iterator[Stored]:
        count, joined, *rest = shape
        height = joined // len(stack.sources)
        for number in range(count):
            for part, source in enumerate(stack.sources):
                own = name.replace(stack.target, source.replace(_STAR, str(number)))
                yield Stored(
                    self._rename(own),
                    (number, part * height, *(0 for _ in rest)),
                    (1, height, *rest),
                    stacked=True,
                )

    def _rename(self, name: str) -> str:
        for here, there in self._renamed:
            name = name.replace(here, there)
        return name

    def publish(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole parameters by name, as the tensors by which they are published."""
        for name, whole in weights:
            for stored in self.published(name, whole.shape):
                spans = zip(stored.offset, stored.extent, strict=True)
                part = whole[tuple(slice(begin, begin + size) for begin, size in spans)]
                yield stored.name, part[0] if stored.stacked else part


def _is_plain(pattern: str) -> bool:
    """Whether a pattern is text to be replaced, not a regular expression."""
    return not set(pattern) & set("^$()[]{}|\\+?*")
