"""A small random model in Hugging Face's layout: for first tries, tests and benchmarks.

It is a real Llama or Qwen3, so training, export and serving take the same road with it as with a
large one, and it needs no network. Its tokenizer knows the 256 bytes and a few special tokens, so
any text can be encoded and every id below `vocab` can be decoded. The defaults keep to what vLLM
can serve on a CPU, whose attention asks for a head of 32 or more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from rayline.errors import SpecError

BYTES = 256
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML (OpenAI, 2023), the form that Qwen and SmolLM2 use."""

_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def write_tiny_model(
    directory: Path,
    *,
    architecture: Literal["llama", "qwen3"] = "llama",
    layers: int = 4,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 256,
    vocab: int = 264,
    max_positions: int = 2048,
    tied: bool = False,
    seed: int = 0,
) -> Path:
    """Write config.json, model.safetensors (fp32) and the tokenizer's files; returns `directory`.

    Called by anyone, in one process. The same arguments give the same bytes; what stands in the
    folder is replaced. `vocab` is the size of embedding and head; ids that are neither a byte nor
    a special token are reserved ones. Raises SpecError where the sizes fit no model.
    """
    _check_sizes(hidden=hidden, heads=heads, kv_heads=kv_heads, vocab=vocab)
    config = _CONFIGS[architecture](
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate_size=ffn,
        vocab_size=vocab,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        # At the usual 0.02 a narrow model attends almost evenly, and a wrong attention would
        # hardly show in its loss.
        initializer_range=0.05,
        bos_token_id=_special_id(END_OF_TEXT),
        pad_token_id=_special_id(END_OF_TEXT),
        eos_token_id=_special_id(TURN_END),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    byte_tokenizer(vocab, max_positions).save_pretrained(directory)
    return directory


def byte_tokenizer(vocab: int, max_positions: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocab` ids: 256 bytes, the special tokens, then reserved ones."""
    # tokenizers writes each byte as a printable character; BPE without merges leaves them single.
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    reserved = [f"<|reserved_{n}|>" for n in range(vocab - BYTES - len(SPECIAL_TOKENS))]
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in (*SPECIAL_TOKENS, *reserved)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        model_max_length=max_positions,
        chat_template=CHAT_TEMPLATE,
    )


def _special_id(text: str) -> int:
    return BYTES + SPECIAL_TOKENS.index(text)


def _check_sizes(*, hidden: int, heads: int, kv_heads: int, vocab: int) -> None:
    if hidden % (2 * heads):
        raise SpecError(
            "hidden",
            f"is not {heads} heads of an even width, which rotary positions need",
            value=hidden,
            allowed=f"a multiple of {2 * heads}",
        )
    if heads % kv_heads:
        raise SpecError("kv_heads", f"does not divide the {heads} heads", value=kv_heads)
    least = BYTES + len(SPECIAL_TOKENS)
    if vocab < least:
        raise SpecError(
            "vocab",
            "is too small for the bytes and the special tokens",
            value=vocab,
            allowed=f"{least} or more",
        )
