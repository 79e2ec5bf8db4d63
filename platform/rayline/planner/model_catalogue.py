"""Shapes of well-known models by name, so that a plan needs no download.

Sizes are those of the models' published config.json files or papers.
"""

from __future__ import annotations

from rayline.planner.columns import Sizes
from rayline.spec import ModelShape


def _dense(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    *,
    tied: bool = False,
    positions: int = 8192,
    architecture: str = "LlamaForCausalLM",
) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        ffn=ffn,
        vocab=vocab,
        tied_embeddings=tied,
        max_positions=positions,
        architecture=architecture,
    )


def _mixture(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    experts: tuple[int, int, int],
    vocab: int,
    architecture: str,
) -> ModelShape:
    """`experts`: how many a layer has, how many a token meets, and their width."""
    count, chosen, width = experts
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=width,
        vocab=vocab,
        tied_embeddings=False,
        max_positions=32768,
        experts=count,
        experts_per_token=chosen,
        expert_ffn=width,
        architecture=architecture,
    )


SHAPES: dict[str, ModelShape] = {
    "HuggingFaceTB/SmolLM2-135M": _dense(30, 576, 9, 3, 1536, 49152, tied=True),
    "TinyLlama/TinyLlama-1.1B": _dense(22, 2048, 32, 4, 5632, 32000, positions=2048),
    "meta-llama/Llama-2-7b": _dense(32, 4096, 32, 32, 11008, 32000, positions=4096),
    "meta-llama/Llama-2-13b": _dense(40, 5120, 40, 40, 13824, 32000, positions=4096),
    "meta-llama/Llama-2-34b": _dense(48, 8192, 64, 8, 22016, 32000, positions=4096),
    "meta-llama/Llama-2-70b": _dense(80, 8192, 64, 8, 28672, 32000, positions=4096),
    "meta-llama/Llama-3.2-1B": _dense(16, 2048, 32, 8, 8192, 128256, tied=True),
    "meta-llama/Llama-3.2-3B": _dense(28, 3072, 24, 8, 8192, 128256, tied=True),
    "meta-llama/Llama-3-8B": _dense(32, 4096, 32, 8, 14336, 128256),
    "meta-llama/Llama-3-70B": _dense(80, 8192, 64, 8, 28672, 128256),
    "meta-llama/Llama-3-405B": _dense(126, 16384, 128, 8, 53248, 128256),
    "mistralai/Mistral-7B": _dense(32, 4096, 32, 8, 14336, 32768),
    "mistralai/Mixtral-8x7B": _mixture(
        32, 4096, 32, 8, 128, (8, 2, 14336), 32000, "MixtralForCausalLM"
    ),
    "mistralai/Mixtral-8x22B": _mixture(
        56, 6144, 48, 8, 128, (8, 2, 16384), 32768, "MixtralForCausalLM"
    ),
    "Qwen/Qwen3-8B": _dense(
        36, 4096, 32, 8, 12288, 151936, positions=40960, architecture="Qwen3ForCausalLM"
    ),
    "Qwen/Qwen3-30B-A3B": _mixture(
        48, 2048, 32, 4, 128, (128, 8, 768), 151936, "Qwen3MoeForCausalLM"
    ),
    "Qwen/Qwen3-235B-A22B": _mixture(
        94, 4096, 64, 4, 128, (128, 8, 1536), 151936, "Qwen3MoeForCausalLM"
    ),
    "openai/gpt-oss-120b": _mixture(
        36, 2880, 64, 8, 64, (128, 4, 2880), 201088, "GptOssForCausalLM"
    ),
    "internlm/internlm-7b": _dense(32, 4096, 32, 32, 11008, 103168, positions=2048),
    "internlm/internlm-20b": _dense(60, 5120, 40, 40, 13824, 103168, positions=4096),
}
"""By hub-style name. The experts of a mixture are counted, dense first layers are not."""

_GPT = {"GPT3-5B": (24, 4096, 32), "GPT3-20B": (44, 6144, 48), "GPT3-175B": (96, 12288, 96)}
_SQUARED = {
    "Nemotron-8B": (32, 4096, 32, 32, 16384, 256000),
    "Nemotron-22B": (40, 6144, 48, 48, 24576, 256000),
    "Nemotron-340B": (96, 18432, 96, 8, 73728, 256000),
}


def _without_gate() -> dict[str, Sizes]:
    found = {
        name: Sizes.of(_dense(layers, hidden, heads, heads, 4 * hidden, 51200), gated=False)
        for name, (layers, hidden, heads) in _GPT.items()
    }
    for name, (layers, hidden, heads, kv_heads, ffn, vocab) in _SQUARED.items():
        found[name] = Sizes.of(_dense(layers, hidden, heads, kv_heads, ffn, vocab), gated=False)
    return found


def _latent(layers: int, heads: int, experts: int) -> Sizes:
    """DeepSeek-V3's layer (arXiv 2412.19437, section 4.2): queries and keys of 192, values of 128,
    squeezed through 1536 and 512; one shared expert and `experts` of width 2048, eight a token.
    The first, dense layers count as mixtures."""
    hidden, width = 7168, 2048
    attention = hidden * 1536 + 1536 * heads * 192 + hidden * 576 + 512 * heads * 256
    return Sizes(
        layers=layers,
        hidden=hidden,
        query=heads * 160,
        key=heads * 160,
        head_dim=160,
        ffn=9 * width,
        ffn_matrices=3,
        vocab=129280,
        attention_weights=attention + heads * 128 * hidden,
        expert_weights=3 * hidden * width * experts,
        shared_weights=3 * hidden * width + hidden * (2 + experts),
        experts_per_token=9,
        experts=experts,
        heads=heads,
        tied=0.0,
    )


OTHER_SIZES: dict[str, Sizes] = {
    **_without_gate(),
    "DeepSeekV3": _latent(61, 128, 256),
    "Kimi_K2": _latent(61, 64, 384),
}
"""Models that rayline does not train, but whose published runs are predicted."""

_ALIASES = {
    "LLAMA3-8B": "meta-llama/Llama-3-8B",
    "LLAMA3-70B": "meta-llama/Llama-3-70B",
    "LLAMA3-405B": "meta-llama/Llama-3-405B",
    "LLAMA-3.1-8B": "meta-llama/Llama-3-8B",
    "LLAMA-3.1-70B": "meta-llama/Llama-3-70B",
    "LLAMA-3.1-405B": "meta-llama/Llama-3-405B",
    "LLAMA2-7B": "meta-llama/Llama-2-7b",
    "LLAMA2-13B": "meta-llama/Llama-2-13b",
    "LLAMA2-34B": "meta-llama/Llama-2-34b",
    "LLAMA2-70B": "meta-llama/Llama-2-70b",
    "QWEN3_30B_A3B": "Qwen/Qwen3-30B-A3B",
    "QWEN3_235B_A22B": "Qwen/Qwen3-235B-A22B",
    "GPT OSS 120B": "openai/gpt-oss-120b",
    "INTERNLM-7B": "internlm/internlm-7b",
    "INTERNLM-20B": "internlm/internlm-20b",
    "TINYLLAMA-1.1B": "TinyLlama/TinyLlama-1.1B",
}


def find_shape(name: str) -> ModelShape | None:
    """The shape of the model of this name, with or without its owner; case does not matter."""
    wanted = name.strip().upper().removesuffix(" SFT").removesuffix(" LORA")
    for ending in ("-INSTRUCT", "-BASE", "-CHAT", "-HF"):
        wanted = wanted.removesuffix(ending)
    short = wanted.partition("/")[2] or wanted
    wanted = _ALIASES.get(wanted, _ALIASES.get(short, wanted)).upper()
    for known, shape in SHAPES.items():
        if wanted in (known.upper(), known.upper().partition("/")[2]):
            return shape
    return None


def find_sizes(name: str) -> Sizes | None:
    """The sizes of the model of this name, of rayline's own and of others'."""
    shape = find_shape(name)
    if shape is not None:
        return Sizes.of(shape)
    wanted = name.strip().upper().removesuffix(" SFT").removesuffix(" LORA")
    return next((size for known, size in OTHER_SIZES.items() if known.upper() == wanted), None)
