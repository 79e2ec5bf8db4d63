"""One answer from a model folder in this process, without a server: `rayline chat --here`.

Decoding is greedy, in fp32, through transformers: the plainest reading of the weights there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayline.serving.client import Message

ANSWER_TOKENS = 64
"""Longest answer."""


def answer_here(
    directory: Path, turns: Sequence[Message], answer_tokens: int = ANSWER_TOKENS
) -> str:
    """The model's greedy answer to the newest of `turns`, in its own chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    asked = tokenizer.apply_chat_template(
        [dict(turn) for turn in turns], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(asked, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        whole = model.generate(**prompt, do_sample=False, max_new_tokens=answer_tokens)
    said = whole[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()
