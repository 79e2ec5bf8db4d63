"""EngineSpec: the inference engine of one replica."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rayline.errors import SpecError, meant
from rayline.spec.adapter import AdapterSpec
from rayline.spec.document import Document
from rayline.spec.parsers import REASONING_PARSERS, TOOL_CALL_PARSERS
from rayline.spec.speculation import SpeculationSpec

Device = Literal["cpu", "gpu"]
"""Kind of device that an engine computes on."""
Task = Literal["generate", "embed", "score"]
Role = Literal["prefill", "decode"]
"""Which half of every answer a replica computes, where `split` parts them."""
KvCacheDtype = Literal["auto", "bfloat16", "fp8", "fp8_e5m2"]
QuantizationName = Literal[
    "compressed-tensors",
    "gptq",
    "awq",
    "fp8",
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
]
ONLINE_QUANTIZATION = frozenset({"fp8_per_tensor", "fp8_per_block", "fp8_per_channel"})
"""What vLLM makes of a plain checkpoint while it loads it."""
_CPU_KV_CACHE = frozenset({"auto", "fp8", "fp8_e5m2"})
_CPU_BLOCK_TOKENS = 32
_GPU_BLOCK_TOKENS = 16


class SplitSpec(Document):
    """Prompts computed by replicas of their own, whose keys and values travel to the replicas that
    write answers: a long prompt then holds up nobody's answer. Needs the package nixl."""

    prefill_replicas: int = Field(default=1, ge=1)
    """Replicas that compute prompts; scale counts those that write answers."""
    min_prompt_tokens: int = Field(default=256, ge=1)
    """A prompt that is likely to be shorter is computed where its answer is written: its way would
    cost more than it saves."""


class EngineSpec(Document):
    """vLLM's engine arguments that a deployment may set; where a field is passed on as it is, its
    name is vLLM's own. No field lets a checkpoint bring code of its own."""

    task: Task = "generate"
    """generate: chat and completions. embed: one vector a text. score: how well a text answers
    another (a cross-encoder; of another model, the cosine of two embeddings)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and computation. auto: the model's own on GPU; on CPU float32, and bfloat16
    where the checkpoint is quantized."""
    quantization: QuantizationName | None = None
    """How the weights are kept. null: as the checkpoint says (compressed-tensors, GPTQ, AWQ, fp8,
    int8 are recognized). A checkpoint's own method written here only makes sure of it;
    fp8_per_tensor, fp8_per_block and fp8_per_channel quantize a plain checkpoint while it loads."""
    max_model_len: int = Field(default=2048, ge=16)
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int = Field(default=32, ge=1)
    """Most sequences that the engine computes at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=16)
    """Most tokens of one step. Fewer: prompts are computed in smaller parts, between which answers
    go on. null: vLLM's own choice (2048 on CPU, up to 16384 on large GPUs)."""
    stream_interval: int = Field(default=1, ge=1, le=64)
    """Tokens of a stream that go out together; the first goes out alone. 1: each one when it is
    made. More saves work per token where many streams run at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices that one replica's layers are split over."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Stages that one replica's layers lie on, one after another."""
    span_nodes: bool = False
    """Whether a replica may lie on several nodes, its stages one after another; else one node
    holds all of it."""
    gpu: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,40}$")
    """Kind of GPU that a replica needs, as Ray names it: H100, A100-80G, L4. null: any."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the paged KV cache on CPU, in GiB (a GPU uses gpu_memory_utilization)."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """Type of cached keys and values; auto: that of the computation. fp8 holds twice as many tokens
    as bfloat16, at some loss."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes."""
    block_size: int | None = Field(default=None, ge=16)
    """Tokens of one page of the cache; null: 128 on CPU, 16 on GPU."""
    enable_prefix_caching: bool = True
    """Whether prompts that begin alike share what was computed for their beginning."""
    cpu_offload_gib: float = Field(default=0.0, ge=0)
    """GiB of each GPU's weights that lie in the host's memory and are read through the bus in every
    step: for a model that would not fit, at a price in speed."""
    kv_offload_gib: float = Field(default=0.0, ge=0)
    """GiB of the host's memory that keep pages pushed out of a GPU's cache, for prompts that come
    again."""
    enforce_eager: bool | None = None
    """True computes without a compiled graph: ready sooner, slower on GPUs. null: true on CPU,
    where compiling asks for a C++ compiler and wins little; false on GPU."""
    speculation: SpeculationSpec | None = None
    """Tokens guessed ahead; null: none."""
    structured_outputs: Literal["auto", "xgrammar", "guidance"] = "auto"
    """What holds an answer to a JSON schema, a regular expression or a grammar. auto: xgrammar,
    and for a schema that it cannot hold, whatever can."""
    tool_call_parser: str | None = None
    """What reads calls of tools out of an answer, such as hermes (Qwen, Hermes) or llama3_json.
    null: an answer may be held to one tool (tool_choice), but the model cannot choose by itself."""
    reasoning_parser: str | None = None
    """What parts thoughts from the answer, such as qwen3 or deepseek_r1; null: they stay in it."""
    adapters: tuple[AdapterSpec, ...] = ()
    """LoRA adapters published from the start."""
    max_adapters: int | None = Field(default=None, ge=0, le=4096)
    """Most adapters published at once. null: those of `adapters`, so none later where that is
    empty. More than 0 costs each replica the memory of that many."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter; each adapter's place is as large as this rank asks for."""
    split: SplitSpec | None = None
    """Prompts and answers on replicas of their own; null: each replica computes both."""
    seed: int = 0
    """Seed of sampling."""

    @property
    def adapter_places(self) -> int:
        """Most adapters published at once; 0: none, and the engine is started without LoRA."""
        return len(self.adapters) if self.max_adapters is None else self.max_adapters

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @field_validator("tool_call_parser")
    @classmethod
    def _known_tool_call_parser(cls, name: str | None) -> str | None:
        return _known(name, TOOL_CALL_PARSERS)

    @field_validator("reasoning_parser")
    @classmethod
    def _known_reasoning_parser(cls, name: str | None) -> str | None:
        return _known(name, REASONING_PARSERS)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for wrong in (*_wrong_for_task(self), *_wrong_together(self), *_wrong_adapters(self)):
            raise ValueError(wrong)
        return self

    def check_device(self, device: Device) -> None:
        """Refuse what this kind of device cannot do. Called by the driver before anything starts.
        Raises SpecError naming the first such field."""
        unable = _unable_on_cpu(self) if device == "cpu" else _unable_on_gpu(self)
        for field, problem, fix in unable:
            value = getattr(self, field)
            shown = value if isinstance(value, str | int | float) else str(value)
            raise SpecError(f"engine.{field}", problem, value=shown, fix=fix)

    def check_names(self, deployment: str) -> None:
        """Refuse an adapter called like its deployment: a client could not tell them apart.
        Raises ValueError."""
        if deployment in {adapter.name for adapter in self.adapters}:
            raise ValueError(
                f"engine.adapters holds one called {deployment}, which is the deployment's own "
                "name: call it otherwise"
            )


def _known(name: str | None, names: frozenset[str]) -> str | None:
    if name is None or name in names:
        return name
    guess = meant(name, names, otherwise="")
    known = f"known are {', '.join(sorted(names))}"
    raise ValueError(f"no such parser; {guess} {known}" if guess else f"no such parser; {known}")


def _wrong_for_task(engine: EngineSpec) -> Iterator[str]:
    """Fields that mean something only where text is generated."""
    if engine.task == "generate":
        return
    generating = {
        "speculation": engine.speculation is not None,
        "tool_call_parser": engine.tool_call_parser is not None,
        "reasoning_parser": engine.reasoning_parser is not None,
        "structured_outputs": engine.structured_outputs != "auto",
        "stream_interval": engine.stream_interval != 1,
        "split": engine.split is not None,
        "kv_offload_gib": engine.kv_offload_gib > 0,
    }
    for field, given in generating.items():
        if given:
            yield f"task {engine.task} generates nothing, so {field} has no use: remove it"


def _wrong_together(engine: EngineSpec) -> Iterator[str]:
    """Fields that contradict one another on every device."""
    batched = engine.max_num_batched_tokens
    if batched is not None and batched < engine.max_num_seqs:
        yield (
            f"max_num_batched_tokens {batched} is below max_num_seqs {engine.max_num_seqs}: each "
            "sequence computes a token a step; raise the one or lower the other"
        )
    if batched is not None and engine.task != "generate" and batched < engine.max_model_len:
        yield (
            f"max_num_batched_tokens {batched} is below max_model_len {engine.max_model_len}: task "
            f"{engine.task} computes a text in one step; raise the one or lower the other"
        )
    speculation = engine.speculation
    if speculation is not None and speculation.tokens + 1 >= engine.max_model_len:
        yield f"speculation.tokens {speculation.tokens} leaves no token of max_model_len"
    if engine.span_nodes and engine.pipeline_parallel_size == 1:
        yield (
            "span_nodes puts stages on several nodes, and pipeline_parallel_size 1 is one stage; a "
            "tensor group stays on one node: raise pipeline_parallel_size, or remove span_nodes"
        )
    if engine.split is not None and engine.kv_offload_gib:
        yield (
            "split and kv_offload_gib both take pages from the cache, and vLLM has one door for "
            "that: remove one of the two"
        )


def _wrong_adapters(engine: EngineSpec) -> Iterator[str]:
    names = [adapter.name for adapter in engine.adapters]
    for name in sorted(names):
        if names.count(name) > 1:
            yield f"adapters holds two called {name}: each name is one model to a client"
    if len(names) > engine.adapter_places:
        yield f"adapters holds {len(names)}, more than max_adapters {engine.max_adapters}"


def _unable_on_cpu(engine: EngineSpec) -> Iterator[tuple[str, str, str]]:
    """Field, problem and fix of what vLLM's CPU backend cannot do."""
    if engine.gpu is not None:
        yield "gpu", "names a kind of GPU, and this deployment runs on CPU", "--set device=gpu"
    if engine.cpu_offload_gib:
        yield (
            "cpu_offload_gib",
            "moves weights from a GPU's memory; on CPU they are in the host's already",
            "remove it",
        )
    if engine.kv_offload_gib:
        yield (
            "kv_offload_gib",
            "keeps pages that leave a GPU's cache; on CPU the cache is in the host's memory",
            "raise engine.kv_cache_gib instead",
        )
    if engine.span_nodes:
        yield "span_nodes", "needs vLLM's Ray executor, which it has for GPUs", "remove it"
    if engine.kv_cache_dtype not in _CPU_KV_CACHE:
        yield (
            "kv_cache_dtype",
            "is not among what CPU attention reads",
            f"one of {', '.join(sorted(_CPU_KV_CACHE))}",
        )
    if engine.block_size is not None and engine.block_size % _CPU_BLOCK_TOKENS:
        yield "block_size", "CPU attention reads pages of 32 tokens", "a multiple of 32"


def _unable_on_gpu(engine: EngineSpec) -> Iterator[tuple[str, str, str]]:
    """The same of vLLM's GPU backends."""
    if engine.block_size is not None and engine.block_size % _GPU_BLOCK_TOKENS:
        yield "block_size", "GPU attention reads pages of 16 tokens", "a multiple of 16"
