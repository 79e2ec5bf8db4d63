"""Tensor and sequence parallelism from the model's own plan.

transformers' configs name, for each layer, one word out of eleven (`base_model_tp_plan`). A word
says how a module's parameters are cut and what happens to what goes in and out (Megatron-LM,
Shoeybi et al. 2019: the first matrix of a pair by its outputs, the second by its inputs).
Parameters become plain tensors of the rank's own part, and a `Cut` remembers which part that is;
collectives are autograd functions in hooks. A word that is not known is refused by name: never
guessed, because a wrong guess trains wrongly without a sign.

A block is a layer's child that computes with matrices: its attention, its feed-forward. Where all
that a block's input meets is cut by outputs, the input's gradient is summed once for the block.

With sequence parallelism (Korthikanti et al. 2022) ranks hold parts of the sequence between blocks:
a block's input is joined, its output is summed and cut in one collective. Parameters outside of
blocks (norms) then see a part of the tokens only, so their gradients are partial.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rayline.errors import SpecError
from rayline.parallel.collectives import (
    copy_to,
    gather,
    gather_summing,
    keep_own,
    reduce_and_keep_own,
    reduce_from,
)
from rayline.parallel.cut import Cut, even_cut, heads_cut, packed_cut
from rayline.parallel.hooks import SummedLinear, change_experts, change_input, change_output
from rayline.parallel.vocabulary import VocabularyEmbedding, VocabularySlice
from rayline.parallel.waiting import wait_all

PARTIAL_GRADIENT = "replicated_with_grad_allreduce"
"""Whole on every rank, but each rank's gradient counts its own heads only."""
_CUT_BY_OUTPUT = ("colwise", "colwise_gather_output", "packed_colwise")
_CUT_BY_INPUT = ("rowwise", "rowwise_split_input")
EXPERTS = "moe_tp_experts"
"""A module that holds all experts of a layer."""
KNOWN_WORDS = (*_CUT_BY_OUTPUT, *_CUT_BY_INPUT, "embedding_rowwise", EXPERTS, PARTIAL_GRADIENT)

SEQUENCE_DIM = 1


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Names of modules inside the model that is split; None where this stage has none."""

    embedding: str | None
    head: str | None
    layers: str
    """The list of layers."""
    vocab: int
    heads: int
    head_size: int
    kv_heads: int


@dataclass(slots=True)
class TensorSplit:
    """What splitting did; parameter names are those of the model that was split."""

    cuts: dict[str, Cut] = field(default_factory=dict)
    partial: list[str] = field(default_factory=list)
    """Whole parameters whose gradients are parts of a sum over the tensor group."""
    experts: list[str] = field(default_factory=list)
    """Parameters of experts of which each rank holds its own, along the first dim."""
    vocabulary: VocabularySlice | None = None
    """The logits that this rank's head makes; None where the stage has no head."""

    def add(self, other: TensorSplit, whole_name: Callable[[str], str]) -> None:
        """Take in what splitting another stage did, by names in the whole model."""
        self.cuts |= {whole_name(name): cut for name, cut in other.cuts.items()}
        self.partial += [whole_name(name) for name in other.partial]
        self.experts += [whole_name(name) for name in other.experts]
        self.vocabulary = other.vocabulary or self.vocabulary


def split_over_tensor_axis(
    model: nn.Module,
    words: Mapping[str, str],
    parts: ModelParts,
    group: dist.ProcessGroup,
    *,
    sequence: bool,
) -> TensorSplit:
    """Cut the model in place, on the meta device; every rank of the tensor group calls it.

    `words` maps patterns of module and parameter names (`*` stands for a layer number) to the
    config's words. Raises SpecError for a word that isn't known and for what cannot be cut.
    """
    splitting = _Splitting(model, dict(words), parts, group, sequence)
    splitting.refuse_unknown_words()
    splitting.split_vocabulary()
    for name, layer in model.get_submodule(parts.layers).named_children():
        splitting.split_layer(f"{parts.layers}.{name}", layer)
    splitting.mark_partial()
    return splitting.done


class _Splitting:
    """One model on its way to being split."""

    def __init__(
        self,
        model: nn.Module,
        words: dict[str, str],
        parts: ModelParts,
        group: dist.ProcessGroup,
        sequence: bool,
    ) -> None:
        self._model, self._words, self._parts = model, words, parts
        self._group, self._sequence = group, sequence
        self._rank, self._ranks = dist.get_rank(group), dist.get_world_size(group)
        self._in_blocks: set[str] = set()
        self.done = TensorSplit()

    def split_vocabulary(self) -> None:
        """Embedding and head by vocabulary, whatever the plan says: the loss never joins logits."""
        cut = even_cut(0, self._parts.vocab, self._ranks)
        (first, end), *_ = cut.spans[self._rank]
        held = VocabularySlice(first, end - first, self._parts.vocab, self._group)
        if self._parts.embedding is not None:
            embedding = self._model.get_submodule(self._parts.embedding)
            if not isinstance(embedding, nn.Embedding):
                raise _cannot_cut(self._parts.embedding, embedding, "an nn.Embedding")
            self._cut(self._parts.embedding, "weight", cut)
            VocabularyEmbedding(embedding, held, keep_own_sequence=self._sequence)
        if self._parts.head is not None:
            head = self._model.get_submodule(self._parts.head)
            if not isinstance(head, nn.Linear):
                raise _cannot_cut(self._parts.head, head, "an nn.Linear")
            for own, _ in list(head.named_parameters(recurse=False)):
                self._cut(self._parts.head, own, cut)
            change_input(head, self._joined_for_own_work)
            self.done.vocabulary = held

    def refuse_unknown_words(self) -> None:
        """Raise SpecError for the first module whose word has no meaning here."""
        for name, _ in self._model.named_modules():
            word = self._word(name)
            if word is not None and word not in KNOWN_WORDS:
                raise SpecError(
                    "plan.tensor",
                    f"the model's tensor plan asks for {word!r} at {name}, which cannot be split "
                    "here",
                    allowed=", ".join(KNOWN_WORDS),
                    fix="set plan.tensor to 1 and use plan.data and plan.pipeline",
                )

    def split_layer(self, name: str, layer: nn.Module) -> None:
        """One transformer layer, block by block."""
        for own, block in layer.named_children():
            full = f"{name}.{own}"
            if isinstance(block, nn.Linear) and self._word(full) in _CUT_BY_INPUT:
                # The second matrix of a pair that the layer holds without a block around it.
                self._in_blocks |= {f"{full}.{inner}" for inner, _ in block.named_parameters()}
                self._split_module(full, block, summed_once=False, ends_rowwise=True)
            elif any(isinstance(module, nn.Linear) for module in block.modules()) or any(
                self._word(f"{full}.{inner}") for inner, _ in block.named_parameters()
            ):
                self._split_block(full, block)

    def _split_block(self, name: str, block: nn.Module) -> None:
        self._in_blocks |= {f"{name}.{own}" for own, _ in block.named_parameters()}
        summed_once = self._meets_cut_outputs_only(name, block)
        ends_rowwise = self._ends_cut_by_input(name, block)
        for own, module in list(block.named_modules()):
            full = f"{name}.{own}" if own else name
            self._split_module(full, module, summed_once, ends_rowwise)
        if summed_once:
            change_input(block, self._joined_for_own_work)
        elif self._sequence:
            change_input(block, lambda x: gather(x, SEQUENCE_DIM, self._group))
        if self._sequence and not ends_rowwise:
            change_output(block, lambda x: keep_own(x, SEQUENCE_DIM, self._group))
        self._refuse_heads_left_whole(name, block)

    def _split_module(
        self, name: str, module: nn.Module, summed_once: bool, ends_rowwise: bool
    ) -> None:
        word = self._word(name)
        if word is None:
            return
        if word in _CUT_BY_OUTPUT:
            self._split_by_output(name, _linear(name, module), word)
            if not summed_once:
                change_input(module, lambda x: copy_to(x, self._group))
        elif word in _CUT_BY_INPUT:
            self._split_by_input(name, _linear(name, module), word, ends_rowwise)
        elif word == EXPERTS:
            self._split_experts(name, module)
        elif word == PARTIAL_GRADIENT:
            self.done.partial += [f"{name}.{own}" for own, _ in module.named_parameters()]

    def _split_by_output(self, name: str, linear: nn.Linear, word: str) -> None:
        size = linear.out_features
        if word == "packed_colwise":
            cut = packed_cut(0, size, self._ranks, 2)
        elif word == "colwise" and self._is_key_value(name, linear):
            cut = heads_cut(0, self._parts.kv_heads, self._parts.head_size, self._ranks)
            self._tell_sharing(name)
        else:
            cut = even_cut(0, size, self._ranks)
        for own, _ in list(linear.named_parameters(recurse=False)):
            self._cut(name, own, cut)
        if word == "colwise_gather_output":
            sizes = [cut.length(rank) for rank in range(self._ranks)]
            change_output(linear, lambda x: gather(x, -1, self._group, sizes))

    def _split_by_input(self, name: str, linear: nn.Linear, word: str, ends_rowwise: bool) -> None:
        if linear.in_features % self._ranks:
            raise SpecError(
                "plan.tensor",
                f"does not divide the {linear.in_features} inputs of {name}",
                value=self._ranks,
            )
        self._cut(name, "weight", even_cut(1, linear.in_features, self._ranks))
        if word == "rowwise_split_input":
            change_input(linear, lambda x: keep_own(x, -1, self._group))
        keeps_own = self._sequence and ends_rowwise
        if keeps_own:
            SummedLinear.take(linear, lambda x: reduce_and_keep_own(x, SEQUENCE_DIM, self._group))
        else:
            SummedLinear.take(linear, lambda x: reduce_from(x, self._group))
        if keeps_own and linear.bias is not None:
            self.done.partial.append(f"{name}.bias")

    def _split_experts(self, name: str, experts: nn.Module) -> None:
        """All experts on every rank, each with a slice of its width."""
        for own, parameter in list(experts.named_parameters(recurse=False)):
            word = self._word(f"{name}.{own}")
            if word == "packed_colwise":
                dim = parameter.dim() - 2
                self._cut(name, own, packed_cut(dim, parameter.shape[dim], self._ranks, 2))
            elif word == "rowwise" and parameter.dim() == 3:
                self._cut(name, own, even_cut(2, parameter.shape[2], self._ranks))
            else:
                raise SpecError(
                    "plan.tensor",
                    f"the model's tensor plan asks for {word!r} at {name}.{own}, a tensor of "
                    f"{parameter.dim()} dims, which cannot be split here",
                    fix="set plan.tensor to 1 and use plan.data and plan.pipeline",
                )
        change_experts(experts, self._group)

    def _cut(self, module_name: str, own: str, cut: Cut) -> None:
        """Replace a parameter, still on the meta device, by one of the rank's own part."""
        module = self._model.get_submodule(module_name)
        whole = module.get_parameter(own)
        shape = list(whole.shape)
        shape[cut.dim] = cut.length(self._rank)
        part = torch.empty(shape, dtype=whole.dtype, device=whole.device)
        module.register_parameter(own, nn.Parameter(part, requires_grad=whole.requires_grad))
        self.done.cuts[f"{module_name}.{own}"] = cut

    def _is_key_value(self, name: str, linear: nn.Linear) -> bool:
        """Whether the rows are those of the key-value heads of an attention with fewer of these
        than query heads."""
        attention, parts = self._model.get_submodule(name.rpartition(".")[0]), self._parts
        return (
            hasattr(attention, "num_key_value_groups")
            and parts.kv_heads < parts.heads
            and linear.out_features == parts.kv_heads * parts.head_size
        )

    def _ends_cut_by_input(self, name: str, block: nn.Module) -> bool:
        """Whether the block's output is that of one matrix cut by its inputs, so that it can be
        summed and cut along the sequence in one collective. A whole parameter of the block's own
        might come behind it and would then see a part of the tokens: such a block is not taken."""
        last = [
            own
            for own, _ in block.named_modules()
            if own and self._word(f"{name}.{own}") in _CUT_BY_INPUT
        ]
        unnamed = [
            own
            for own, _ in block.named_parameters()
            if self._word(f"{name}.{own}".rpartition(".")[0]) is None
        ]
        return len(last) == 1 and "." not in last[0] and not unnamed

    def _tell_sharing(self, name: str) -> None:
        """Tell an attention how many of this rank's query heads share one key-value head."""
        attention: Any = self._model.get_submodule(name.rpartition(".")[0])
        own = max(1, self._parts.kv_heads // self._ranks)
        attention.num_key_value_groups = self._parts.heads // self._ranks // own

    def _meets_cut_outputs_only(self, name: str, block: nn.Module) -> bool:
        """Whether every matrix that a block's input can meet is cut by its outputs."""
        words = [
            (module, self._word(f"{name}.{own}" if own else name))
            for own, module in block.named_modules()
        ]
        matrices = [word for module, word in words if isinstance(module, nn.Linear)]
        known = (*_CUT_BY_OUTPUT, *_CUT_BY_INPUT)
        has_experts = any(word == EXPERTS for _, word in words)
        return bool(matrices) and not has_experts and all(word in known for word in matrices)

    def _refuse_heads_left_whole(self, name: str, block: nn.Module) -> None:
        """A parameter with one entry a head, between cut projections, that no word names."""
        if not any(self._word(f"{name}.{own}") == "colwise" for own, _ in block.named_children()):
            return
        sizes = {self._parts.heads, self._parts.heads * self._parts.head_size}
        for own, parameter in block.named_parameters():
            full = f"{name}.{own}"
            named = full in self.done.cuts or full in self.done.partial
            owner = own.rpartition(".")[0]
            whole_by_word = self._word(f"{name}.{owner}" if owner else name) is not None
            if not named and not whole_by_word and parameter.shape and parameter.shape[0] in sizes:
                raise SpecError(
                    "plan.tensor",
                    f"{full} has an entry for each head, but the model's tensor plan has no word "
                    "for it",
                    value=self._ranks,
                    allowed="1",
                    fix="set plan.tensor to 1 and use plan.data and plan.pipeline",
                )

    def mark_partial(self) -> None:
        """With sequences cut, what lies outside of blocks sees a part of the tokens."""
        if not self._sequence:
            return
        self.done.partial += [
            name
            for name, _ in self._model.named_parameters()
            if name not in self._in_blocks and name not in self.done.cuts
        ]

    def _joined_for_own_work(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._sequence:
            return gather_summing(tensor, SEQUENCE_DIM, self._group)
        return copy_to(tensor, self._group)

    def _word(self, name: str) -> str | None:
        return word_of(name, self._words)


def sum_partial_gradients(gradients: Iterator[tuple[torch.Tensor, dist.ProcessGroup]]) -> None:
    """Sum each gradient, in place, over the ranks that hold parts of it."""
    pending = [
        dist.all_reduce(gradient, group=group, async_op=True) for gradient, group in gradients
    ]
    wait_all(pending)


def word_of(name: str, words: Mapping[str, str]) -> str | None:
    """The word for the module or parameter of this name; plans are written with a star in place of
    each number between dots."""
    return words.get(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name))


def _linear(name: str, module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise _cannot_cut(name, module, "an nn.Linear")
    return module


def _cannot_cut(name: str, module: nn.Module, wanted: str) -> SpecError:
    return SpecError(
        "plan.tensor",
        f"{name} is a {type(module).__name__}, which cannot be cut",
        allowed=wanted,
        fix="set plan.tensor to 1 and use plan.data and plan.pipeline",
    )
