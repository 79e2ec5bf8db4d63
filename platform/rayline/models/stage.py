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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from rayline.errors import SpecError
from rayline.parallel.pipeline import StageLayers


def load_config(directory: Path) -> PretrainedConfig:
    """The model's config. Code that a folder brings along is never run."""
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as wrong:
        first = str(wrong).splitlines()[0]
        raise SpecError(
            "model", f"its config.json cannot be used: {first}", value=str(directory)
        ) from None


class ModelStage(nn.Module):
    """The layers of one stage. Maps int64 ids [sequences, tokens] (first stage) or hidden states
    [sequences, tokens, hidden] to hidden states, or (last stage) to logits [.., vocab]."""

    def __init__(self, config: PretrainedConfig, layers: StageLayers) -> None:
        super().__init__()
        self.layers = layers
        cut = _cut_config(config, layers)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(cut, dtype=torch.float32)
        self.model = model
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

    def forward(self, received: torch.Tensor) -> torch.Tensor:
        """Run the stage on token ids or on what the stage before sent."""
        inputs: dict[str, Any] = {"use_cache": False}
        if self.layers.is_first_stage:
            inputs["input_ids"] = received
        else:
            self._received = received
            inputs["inputs_embeds"] = received
        if self.layers.is_last_stage:
            output: torch.Tensor = self.model(**inputs).logits
        else:
            output = self.model.base_model(**inputs).last_hidden_state
        self._received = None
        return output

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer layers of this stage, first to last."""
        return list(getattr(self.model.base_model, self._parts.layers))

    @property
    def tensor_words(self) -> dict[str, str]:
        """The model's tensor plan: pattern of a module's name in `self.model` to its word."""
        return dict(self.model.tp_plan)

    @property
    def embedding(self) -> str | None:
        """Name of the token embedding in `self.model`, or None where the stage has none."""
        if not self.layers.is_first_stage:
            return None
        return f"{self.model.base_model_prefix}.{self._parts.embedding}"

    @property
    def tied(self) -> dict[str, str]:
        """Parameters that share another one's weights, by name in the whole model: name of the
        copy to name of the original, such as lm_head.weight to model.embed_tokens.weight."""
        if not getattr(self.model.config, "tie_word_embeddings", False):
            return {}
        return dict(self.model._tied_weights_keys or {})

    def tie(self) -> None:
        """Let copies and originals that lie on this stage be one parameter again (splitting makes
        two of them)."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for copied, original in self.tied.items():
            if copied in own and original in own:
                owner, _, name = copied.rpartition(".")
                self.model.get_submodule(owner).register_parameter(name, own[original])

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


class _StageParts:
    """Names of what lies before, in and behind the layers, read from the model's pipeline plan."""

    def __init__(self, embedding: str, layers: str, after: list[str], head: list[str]) -> None:
        self.embedding = embedding
        self.layers = layers
        self.after_layers = after
        self.head = head

    @classmethod
    def find(cls, model: nn.Module, config: PretrainedConfig) -> _StageParts:
        plan: dict[str, Any] = dict(config.base_model_pp_plan or {})
        embeddings = [name for name, (takes, _) in plan.items() if "input_ids" in takes]
        lists = [
            name
            for name in plan
            if isinstance(getattr(model.base_model, name, None), nn.ModuleList)
        ]
        if len(embeddings) != 1 or len(lists) != 1:
            raise SpecError(
                "model",
                f"{type(model).__name__} names no pipeline plan (base_model_pp_plan), so its "
                "embedding and layers are not known",
                fix="use a model whose transformers configuration has one, such as Llama or Qwen3",
            )
        names = list(plan)
        after = names[names.index(lists[0]) + 1 :]
        head = [name for name, _ in model.named_children() if name != model.base_model_prefix]
        return cls(embeddings[0], lists[0], after, head)


def _cut_config(config: PretrainedConfig, layers: StageLayers) -> PretrainedConfig:
    """The config of a model that has the stage's layers only."""
    cut = copy.deepcopy(config)
    count = config.num_hidden_layers
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count:
            setattr(cut, key, value[layers.first : layers.end])
    cut.num_hidden_layers = layers.count
    return cut
