"""One real engine with all that a generating one can have at once, on CPU in float32: guessed
tokens (ngram), adapters, shared beginnings, answers held to a schema, and calls of tools.

Tried by hand on the same processor and engine (vLLM 0.32 on CPU, two cores with AMX), each with the
greedy text of an engine without it: draft models, EAGLE and Medusa heads; int8 (compressed-tensors)
in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

from rayline.errors import SpecError
from rayline.models.tiny import byte_tokenizer, write_tiny_model
from rayline.planner import plan_serving, read_model_shape, read_served_model
from rayline.serving.adapters import resolve_adapter
from rayline.serving.requests import Refusal
from rayline.spec import AdapterSpec, ServeSpec, TrackingSpec
from rayline.spec.parsers import REASONING_PARSERS, TOOL_CALL_PARSERS
from support.adapters import write_adapter
from support.one_rank import run_alone, small_job

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

HELLO = [{"role": "user", "content": "What is the capital of France?"}]
TAUGHT = "The capital of France is Paris."
WEATHER = [{"role": "user", "content": "Weather in Paris?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 4},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt one answer and one call of a tool by heart."""
    folder = tmp_path_factory.mktemp("job")
    model = write_tiny_model(folder / "model", layers=2)
    chats = folder / "chats.jsonl"
    learnt = [
        {"messages": [*asked, {"role": "assistant", "content": said}]}
        for asked, said in ((HELLO, TAUGHT), (WEATHER, CALL))
    ]
    chats.write_text("".join(json.dumps(chat) + "\n" for chat in learnt) * 2)
    job = small_job(folder, "job", model).changed(
        {
            "data": {"kind": "chat", "files": [str(chats)], "sequence_tokens": 160},
            "steps": 90,
            "optim.lr": 3e-3,
        }
    )
    result, reports = run_alone(job, model)
    assert reports[-1].loss < 0.1
    assert result.export is not None
    return Path(result.export.directory)


@pytest.fixture(scope="module")
def spec(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    folder = write_adapter(tmp_path_factory.mktemp("adapter"), read_model_shape(taught))
    return ServeSpec.parse(
        {
            "name": "tiny",
            "model": {"directory": str(taught)},
            "engine": {
                "max_model_len": 1024,
                "max_num_seqs": 4,
                "kv_cache_gib": 0.0625,
                "speculation": {"method": "ngram", "tokens": 4},
                "tool_call_parser": "hermes",
                "structured_outputs": "xgrammar",
                "adapters": [{"name": "legal", "source": {"directory": str(folder)}}],
                "max_adapters": 2,
                "max_lora_rank": 8,
            },
        }
    )


@pytest.fixture(scope="module")
def engine(
    spec: ServeSpec, running: Callable[[ServeSpec], AbstractContextManager[Any]]
) -> Iterator[Any]:
    with running(spec) as started:
        yield started


def counted(name: str) -> float:
    return sum(
        metric.value
        for metric in get_metrics_snapshot()
        if isinstance(metric, Counter) and metric.name == name
    )


def chat(
    model: str = "tiny", messages: list[dict[str, str]] = HELLO, **more: Any
) -> dict[str, Any]:
    return {"model": model, "messages": messages, "max_tokens": 90, "temperature": 0.0, **more}


def said(answer: Any) -> str:
    return answer["choices"][0]["message"]["content"]


def test_tokens_are_guessed_and_the_text_stays_the_same(engine):
    before = counted("vllm:spec_decode_num_accepted_tokens")
    answer, usage = engine.ask("chat", chat())
    assert said(answer) == TAUGHT
    assert usage.completion_tokens == len(TAUGHT) + 1
    again = {"model": "tiny", "prompt": f"{TAUGHT} " * 6, "max_tokens": 40, "temperature": 0.0}
    engine.ask("completions", again)
    assert counted("vllm:spec_decode_num_draft_tokens") > 0
    assert counted("vllm:spec_decode_num_accepted_tokens") > before


def test_a_beginning_that_was_computed_is_not_computed_again(engine):
    prompt = "Once upon a time there was a river. " * 10
    first = {"model": "tiny", "prompt": f"{prompt}One", "max_tokens": 1}
    _, cold = engine.ask("completions", first)
    _, warm = engine.ask("completions", {**first, "prompt": f"{prompt}Two"})
    assert cold.cached_tokens == 0
    # In whole pages of 128 tokens.
    assert warm.cached_tokens == len(prompt) // 128 * 128 == 256


def test_an_answer_is_held_to_a_schema(engine):
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    # Blanks may stand between values as many as a model likes, and this one knows no JSON.
    blanks = byte_tokenizer(vocab=264, max_positions=512).encode(" \n\r\t")
    bias = {str(token): -100 for token in blanks}
    answer, _ = engine.ask("chat", chat(response_format=shape, logit_bias=bias))
    found = json.loads(said(answer))
    assert set(found) == {"city", "count"}
    assert len(found["city"]) <= 4
    assert found["count"] in range(10)


def test_the_model_calls_a_tool_by_itself_and_when_it_is_told_to(engine):
    answer, _ = engine.ask("chat", chat(messages=WEATHER, tools=[TOOL], tool_choice="auto"))
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    chosen = {"type": "function", "function": {"name": "weather"}}
    answer, _ = engine.ask("chat", chat(tools=[TOOL], tool_choice=chosen))
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"city"}


def test_adapters_are_published_replaced_and_withdrawn_while_it_serves(
    engine, spec, taught, tmp_path
):
    def publish(name: str, seed: int) -> None:
        shape = read_model_shape(taught)
        folder = write_adapter(tmp_path / f"{name}-{seed}", shape, seed=seed)
        adapter = AdapterSpec.parse({"name": name, "source": {"directory": str(folder)}})
        found = resolve_adapter(adapter, shape, spec.engine, TrackingSpec(), tmp_path / "kept")
        engine.thread.call(engine.engine.add_adapter(name, found.folder))

    def text(model: str) -> str:
        answer, _ = engine.ask("chat", chat(model, max_tokens=16))
        return str(answer) if isinstance(answer, Refusal) else said(answer)

    assert text("tiny") == TAUGHT[:16]
    first = text("legal")
    assert first != TAUGHT[:16]
    publish("medical", 5)
    other = text("medical")
    assert other not in (first, TAUGHT[:16])
    assert (text("legal"), text("tiny")) == (first, TAUGHT[:16])
    publish("legal", 5)
    assert text("legal") == other
    publish("legal", 0)
    assert text("legal") == first
    engine.thread.call(engine.engine.remove_adapter("medical"))
    refusal, _ = engine.ask("chat", chat("medical"))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 404
    assert (text("legal"), text("tiny")) == (first, TAUGHT[:16])


def test_an_adapter_that_vllm_does_not_take_leaves_the_engine_as_it_was(engine, taught, tmp_path):
    folder = write_adapter(tmp_path / "large", read_model_shape(taught), rank=64)
    with pytest.raises(SpecError, match="vLLM does not load it"):
        engine.thread.call(engine.engine.add_adapter("large", folder))
    refusal, _ = engine.ask("chat", chat("large"))
    assert isinstance(refusal, Refusal)
    answer, _ = engine.ask("chat", chat())
    assert said(answer) == TAUGHT


def test_the_cache_is_as_large_as_the_plan_says(engine, spec, taught):
    plan = plan_serving(spec.engine, read_served_model(taught), "cpu")
    cache = engine.engine._client.vllm_config.cache_config
    assert cache.block_size == plan.layout.block_tokens == 128
    assert cache.num_gpu_blocks == plan.cache_bytes // plan.layout.block_bytes
    assert cache.kv_cache_max_concurrency == pytest.approx(plan.sequences, rel=0.01)


def test_parsers_are_called_as_vllm_calls_them():
    assert set(ToolParserManager.list_registered()) == TOOL_CALL_PARSERS
    assert set(ReasoningParserManager.list_registered()) == REASONING_PARSERS
