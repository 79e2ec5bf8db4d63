"""One pipeline stage of any Hugging Face causal LM, built on the meta device.

No model code lives here. A stage is the model itself with fewer layers: its config is cut to the
stage's layers (together with every list in it that has one entry a layer), and what lies before
or behind the stage is taken out. Between stages go the hidden states. Whatever the model does to
embeddings before its first layer (Gemma and Granite scale them) must not be done again on a later
stage, so there the first layer is handed the received hidden states in place of what the model
prepared.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rayline.errors import SpecError
from rayline.parallel.attention import (
    SharedSequences,
    documents_mask,
    is_plain_causal,
    share_sequences,
    training_attention,
)
from rayline.parallel.chunked import summed_in_chunks
from rayline.parallel.pipeline import StageLayers
from rayline.parallel.sequence import SequencePart
from rayline.parallel.tensor import ModelParts
from rayline.spec import ModelShape


def load_config(directory: Path) -> PretrainedConfig:
    """The model's config. Code that a folder brings along is never run."""
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as wrong:
        first = str(wrong).splitlines()[0]
        raise SpecError(
            "model", f"its config.json cannot be used: {first}", value=str(directory)
        ) from None


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """A loss that the last stage computes together with the logits, chunk by chunk."""

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Maps the logits [sequences, tokens, vocab held] and the labels [sequences, tokens] of a chunk
    to a sum over its target tokens."""
    chunk_tokens: int


class ModelStage(nn.Module):
    """The layers of one stage. Maps int64 ids [sequences, tokens] (first stage) or hidden states
    [sequences, tokens, hidden] to hidden states, or (last stage) to logits [.., vocab]; with
    `head_loss` and labels the last stage maps to the sum of the losses, and no logits of all tokens
    are ever there."""

    def __init__(self, config: PretrainedConfig, layers: StageLayers) -> None:
        super().__init__()
        self.layers = layers
        cut = _cut_config(config, layers)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                cut, dtype=torch.float32, attn_implementation=training_attention(config)
            )
        self.model = model
        self.sequence_parts = 1
        """Ranks that hold parts of each sequence between blocks; set when the stage is split."""
        self.context_part = SequencePart()
        """Which tokens of each sequence this rank holds; set with the plan."""
        self.head_loss: HeadLoss | None = None
        """What the last stage computes where it is given labels; set with the job's objective."""
        self._parts = _StageParts.find(model, config)
        self._received: torch.Tensor | None = None
        self._take_out_other_stages()

    def _take_out_other_stages(self) -> None:
        parts, base = self._parts, self.model.base_model
        if not self.layers.is_first_stage:
            setattr(base, parts.embedding, None)
            first_layer = getattr(base, parts.layers)[0]
            first_layer.register_forward_pre_hook(self._hand_over, with_kwargs=True)
        if not self.layers.is_last_stage:
            for name in parts.after_layers:
                setattr(base, name, nn.Identity())
            for name in parts.head:
                setattr(self.model, name, None)

    def _hand_over(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._received, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._received}

    def forward(
        self,
        received: torch.Tensor,
        positions: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the stage on token ids or on what the stage before sent. `positions`, int64
        [sequences, tokens of the whole sequence]: each token's place in its document, from 0; None
        where a sequence is one document. `labels` int64 [sequences, tokens]; a stage that is not
        the last one has no use for them."""
        # Told, because the model would count the tokens of a rank's part of the sequence.
        tokens = received.shape[1] * (1 if self.layers.is_first_stage else self.sequence_parts)
        inputs: dict[str, Any] = {"use_cache": False}
        spans = self.context_part.spans(tokens)
        if positions is None:
            places = [torch.arange(begin, end, device=received.device) for begin, end in spans]
            inputs["position_ids"] = torch.cat(places).unsqueeze(0)
        else:
            own = [positions[:, begin:end] for begin, end in spans]
            inputs["position_ids"] = torch.cat(own, 1)
            # Four dims: transformers hands such a mask to every layer as it is.
            inputs["attention_mask"] = documents_mask(positions)
        if self.layers.is_first_stage:
            inputs["input_ids"] = received
        else:
            self._received = received
            inputs["inputs_embeds"] = received
        if not self.layers.is_last_stage:
            output: torch.Tensor = self.model.base_model(**inputs).last_hidden_state
        elif self.head_loss is not None and labels is not None:
            output = self._loss_in_chunks(self.head_loss, labels, inputs)
        else:
            output = self.model(**inputs).logits
        self._received = None
        return output

    def _loss_in_chunks(
        self, head_loss: HeadLoss, labels: torch.Tensor, inputs: dict[str, Any]
    ) -> torch.Tensor:
        """The sum of the losses over all tokens, float32."""
        base: Any = self.model.base_model
        before = base(**inputs)

        def loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            # The model itself makes logits of these tokens, with all that it does to them behind
            # the head; only its layers are passed over.
            base.forward = lambda **_: type(before)(last_hidden_state=hidden)
            try:
                logits = self.model(**inputs).logits
            finally:
                del base.forward
            return head_loss.loss(logits, targets)

        heads = [getattr(self.model, name) for name in self._parts.head]
        return summed_in_chunks(
            before.last_hidden_state,
            labels,
            loss,
            [parameter for head in heads for parameter in head.parameters()],
            chunk_tokens=head_loss.chunk_tokens,
            sequence_parts=self.sequence_parts,
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer layers of this stage, first to last."""
        return list(getattr(self.model.base_model, self._parts.layers))

    @property
    def tensor_words(self) -> dict[str, str]:
        """The model's tensor plan: pattern of a module's name in `self.model` to its word."""
        return dict(self.model.tp_plan)

    @property
    def expert_words(self) -> dict[str, str]:
        """The words of `tensor_words`, and those of the model's expert plan: what names experts."""
        prefix = self.model.base_model_prefix
        spread: dict[str, str] = self.model.config.base_model_ep_plan or {}
        return {**{f"{prefix}.{name}": word for name, word in spread.items()}, **self.tensor_words}

    @property
    def splittable(self) -> ModelParts:
        """What the tensor axis has to know of the stage's modules."""
        config, prefix = self.model.config, self.model.base_model_prefix
        shape = ModelShape.from_config(config.to_dict())
        head = self.model.get_output_embeddings()
        names = {module: name for name, module in self.model.named_modules()}
        return ModelParts(
            embedding=f"{prefix}.{self._parts.embedding}" if self.layers.is_first_stage else None,
            head=names[head] if self.layers.is_last_stage else None,
            layers=f"{prefix}.{self._parts.layers}",
            vocab=shape.vocab,
            heads=shape.heads,
            head_size=shape.head_dim,
            kv_heads=shape.kv_heads,
        )

    @property
    def can_cut_sequences(self) -> bool:
        """Whether ranks may hold parts of a sequence: its masks say causal order, nothing more."""
        return is_plain_causal(self.model.config)

    @property
    def tied(self) -> dict[str, str]:
        """Parameters that share another one's weights, by name in the whole model: name of the
        copy to name of the original, such as lm_head.weight to model.embed_tokens.weight."""
        if not getattr(self.model.config, "tie_word_embeddings", False):
            return {}
        return dict(self.model._tied_weights_keys or {})

    def materialize(self, device: torch.device) -> None:
        """Give meta parameters storage on `device`, of no value; buffers, which are real already,
        keep theirs."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.to_empty(device=device)
        for name, buffer in self.named_buffers():
            buffer.copy_(buffers[name])
        self.tie()

    def tie(self) -> None:
        """Let copies and originals that lie on this stage be one parameter again (splitting makes
        two of them)."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for copied, original in self.tied.items():
            if copied in own and original in own:
                owner, _, name = copied.rpartition(".")
                self.model.get_submodule(owner).register_parameter(name, own[original])

    def share_sequences(self, group: dist.ProcessGroup, part: SequencePart) -> None:
        """Hold `part` of each sequence; the ranks of `group` hold the others."""
        self.context_part = part
        shared = SharedSequences(part, group)
        share_sequences(self.model.get_submodule(self.splittable.layers), shared)

    def whole_name(self, name: str) -> str:
        """Name in the whole model of a parameter or module of `self.model`: layers are counted
        from the model's first one."""
        prefix = f"{self.model.base_model_prefix}.{self._parts.layers}."
        shift = re.compile(re.escape(prefix) + r"(\d+)(?=\.|$)")
        return shift.sub(lambda found: f"{prefix}{int(found[1]) + self.layers.first}", name)

    def parameters_by_whole_name(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter of the stage once, by its name in the whole model. A tied copy whose
        original lies on another stage goes by its own name."""
        for name, parameter in self.model.named_parameters(remove_duplicate=True):
            yield self.whole_name(name), parameter


def transformer_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a whole model, first to last. Raises SpecError where it has no one list of
    them."""
    return list(getattr(model.base_model, _StageParts.find(model, model.config).layers))


class _StageParts:
    """Names of what lies before, in and behind the layers, read from how the model is built. (Its
    pipeline plan says the same where there is one, but some models have none.)"""

    def __init__(self, embedding: str, layers: str, after: list[str], head: list[str]) -> None:
        self.embedding = embedding
        self.layers = layers
        self.after_layers = after
        self.head = head

    @classmethod
    def find(cls, model: PreTrainedModel, config: PretrainedConfig) -> _StageParts:
        base: Any = model.base_model
        names = [name for name, _ in base.named_children()]
        embedding = model.get_input_embeddings()
        embeddings = [name for name in names if getattr(base, name) is embedding]
        lists = [name for name in names if isinstance(getattr(base, name), nn.ModuleList)]
        plan: dict[str, Any] = dict(config.base_model_pp_plan or {})
        if len(embeddings) != 1 or len(lists) != 1 or (plan and lists[0] not in plan):
            raise SpecError(
                "model",
                f"{type(model).__name__} is not an embedding, one list of layers and what follows, "
                "so it can't be cut into stages",
                fix="use a decoder-only model of that build, such as Llama or Qwen3",
            )
        behind = [
            name
            for name in names[names.index(lists[0]) + 1 :]
            if any(True for _ in getattr(base, name).parameters())
        ]
        head = [name for name, _ in model.named_children() if name != model.base_model_prefix]
        return cls(embeddings[0], lists[0], behind, head)


def _cut_config(config: PretrainedConfig, layers: StageLayers) -> PretrainedConfig:
    """The config of a model that has the stage's layers only."""
    cut = copy.deepcopy(config)
    count = config.num_hidden_layers
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count:
            setattr(cut, key, value[layers.first : layers.end])
    cut.num_hidden_layers = layers.count
    return cut
