"""What an engine's spec refuses, and what it says to do instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.spec import AdapterSource, EngineSpec, ServeSpec, SpeculationSpec

HEADS = {"directory": "models/heads"}


def engine(**fields: object) -> EngineSpec:
    return EngineSpec.parse(fields, origin="engine")


def adapter(name: str, **source: object) -> dict[str, object]:
    return {"name": name, "source": source or {"directory": f"adapters/{name}"}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"speculation": {"method": "ngram"}}, "speculation has no use"),
        ({"tool_call_parser": "hermes"}, "tool_call_parser has no use"),
        ({"reasoning_parser": "qwen3"}, "reasoning_parser has no use"),
        ({"structured_outputs": "guidance"}, "structured_outputs has no use"),
        ({"stream_interval": 4}, "stream_interval has no use"),
        ({"split": {}}, "split has no use"),
        ({"kv_offload_gib": 1}, "kv_offload_gib has no use"),
        ({"max_num_batched_tokens": 128, "max_model_len": 256}, "computes a text in one step"),
    ],
)
@pytest.mark.parametrize("task", ["embed", "score"])
def test_what_only_generation_has_a_use_for_is_refused_elsewhere(task, fields, words):
    with pytest.raises(SpecError, match=words):
        engine(task=task, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_num_batched_tokens": 16, "max_num_seqs": 17}, "below max_num_seqs 17"),
        ({"split": {}, "kv_offload_gib": 1}, "remove one of the two"),
        ({"span_nodes": True, "tensor_parallel_size": 4}, "raise pipeline_parallel_size"),
        ({"speculation": {"method": "ngram", "tokens": 15}, "max_model_len": 16}, "no token"),
        ({"tool_call_parser": "hermse"}, "did you mean 'hermes'"),
        ({"reasoning_parser": "no-such"}, "known are"),
        ({"max_lora_rank": 12}, "8, 16, 32"),
        ({"quantization": "int3"}, "compressed-tensors"),
        ({"adapters": [adapter("a"), adapter("a")]}, "two called a"),
        ({"adapters": [adapter("a"), adapter("b")], "max_adapters": 1}, "more than max_adapters"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(fields, words):
    with pytest.raises(SpecError, match=words):
        engine(**fields)


@pytest.mark.parametrize("method", ["draft", "eagle", "eagle3", "medusa"])
def test_a_method_with_weights_of_its_own_needs_them(method):
    with pytest.raises(SpecError, match="give model"):
        engine(speculation={"method": method})
    assert engine(speculation={"method": method, "model": HEADS}).speculation is not None


@pytest.mark.parametrize("method", ["ngram", "mtp"])
def test_a_method_without_weights_takes_none(method):
    with pytest.raises(SpecError, match="needs no model"):
        engine(speculation={"method": method, "model": HEADS})
    assert engine(speculation={"method": method}).speculation == SpeculationSpec(method=method)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"gpu": "H100"}, "engine.gpu"),
        ({"cpu_offload_gib": 1}, "engine.cpu_offload_gib"),
        ({"kv_offload_gib": 1}, "engine.kv_offload_gib"),
        ({"span_nodes": True, "pipeline_parallel_size": 2}, "engine.span_nodes"),
        ({"kv_cache_dtype": "bfloat16"}, "engine.kv_cache_dtype"),
        ({"block_size": 16}, "engine.block_size"),
    ],
)
def test_what_only_a_gpu_can_do_is_refused_on_cpu_by_its_field(fields, field):
    wanted = engine(**fields)
    wanted.check_device("gpu")
    with pytest.raises(SpecError) as refused:
        wanted.check_device("cpu")
    assert refused.value.subject == field
    assert refused.value.fix


def test_a_page_that_no_gpu_kernel_reads_is_refused():
    with pytest.raises(SpecError, match="multiple of 16"):
        engine(block_size=24).check_device("gpu")


def test_an_adapter_is_not_called_like_its_deployment():
    tree = {"name": "bot", "model": {"directory": "m"}, "engine": {"adapters": [adapter("bot")]}}
    with pytest.raises(SpecError, match="the deployment's own name"):
        ServeSpec.parse(tree)


@given(listed=st.integers(0, 4), most=st.one_of(st.none(), st.integers(4, 9)))
def test_adapters_have_as_many_places_as_are_listed_unless_said_otherwise(listed, most):
    fields = {"adapters": [adapter(f"a{number}") for number in range(listed)]}
    places = engine(**fields, max_adapters=most).adapter_places
    assert places == (listed if most is None else most)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "a:b",
        "a b",
        "-a",
        "a\n",
        "a\0",
        "é",
        "%2e%2e",
        "a" * 64,
    ],
)
def test_a_name_that_is_no_plain_word_is_refused(name):
    with pytest.raises(SpecError):
        engine(adapters=[adapter(name, directory="x")])


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"directory": "a", "run": "b"},
        {"run": "../secrets"},
        {"run": "9f2c/../../etc"},
        {"run": "9f2c//x"},
        {"run": "9f2c/a b"},
        {"run": "9f2c/%2e%2e/x"},
        {"run": "9f2c/.."},
        {"run": "/9f2c"},
        {"bucket": "bucket/adapters"},
        {"bucket": "s3:///adapters"},
        {"bucket": "../x"},
    ],
)
def test_a_source_is_one_address_of_its_kind(source):
    with pytest.raises(SpecError):
        AdapterSource.parse(source)


@pytest.mark.parametrize(
    "text", ["directory:adapters/x", "run:9f2c", "run:9f2c/adapters/x", "bucket:s3://b/x"]
)
def test_the_short_form_of_a_source_is_read_and_written(text):
    assert str(AdapterSource.from_text(text)) == text
    with pytest.raises(SpecError, match="not an adapter's address"):
        AdapterSource.from_text(text.partition(":")[2])
