"""How a checkpoint keeps its weights, read from its config.json."""

from __future__ import annotations

from typing import Any

import pytest

from rayline.errors import SpecError
from rayline.planner import Quantization, check_quantization, read_quantization
from rayline.planner.quantization import weight_bits
from rayline.spec import EngineSpec


def tensors(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (
            tensors({"num_bits": 8, "strategy": "channel", "symmetric": True}, {"num_bits": 8}),
            Quantization("compressed-tensors", 8.0, 8),
        ),
        (
            tensors({"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True}),
            Quantization("compressed-tensors", 4.125),
        ),
        (
            tensors({"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
            Quantization("compressed-tensors", 4.625),
        ),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, Quantization("gptq", 4.15625)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Quantization("gptq", 8.0)),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, Quantization("awq", 4.3125)),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, Quantization("fp8", 8.0)),
        ({"quant_method": "mxfp4"}, Quantization("mxfp4", 4.25)),
        ({"quant_method": "quark"}, Quantization("quark", None)),
        ({"quant_method": "gptq", "bits": "4"}, Quantization("gptq", None)),
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_the_method_and_its_bits_are_read(entry, found, key):
    assert read_quantization({key: entry}) == found
    assert read_quantization({"text_config": {key: entry}}) == found


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_plain_checkpoint_is_not_quantized(config):
    assert read_quantization(config) is None


@pytest.mark.parametrize("entry", [{"bits": 4}, {"quant_method": 4}, ["gptq"], "gptq"])
def test_an_entry_that_names_no_method_is_refused(entry):
    with pytest.raises(SpecError, match="names no quant_method"):
        read_quantization({"quantization_config": entry})


GPTQ = Quantization("gptq", 4.15625)


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        (None, None, ""),
        (None, GPTQ, ""),
        ("gptq", GPTQ, ""),
        ("fp8_per_tensor", None, ""),
        ("awq", GPTQ, "quantized already, by gptq"),
        ("fp8_per_tensor", GPTQ, "quantized already, by gptq"),
        ("gptq", None, "the checkpoint is not quantized"),
        ("fp8", None, "the checkpoint is not quantized"),
    ],
)
def test_the_spec_may_only_make_sure_or_quantize_a_plain_checkpoint(asked, found, words):
    engine = EngineSpec(quantization=asked)
    if not words:
        check_quantization(engine, found, "gpu")
        return
    with pytest.raises(SpecError, match=words):
        check_quantization(engine, found, "gpu")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_quantized_weights_are_not_computed_with_in_float32(device):
    wanted = EngineSpec(dtype="float32")
    check_quantization(wanted, None, device)
    for engine, found in (
        (wanted, GPTQ),
        (EngineSpec(dtype="float32", quantization="fp8_per_block"), None),
    ):
        with pytest.raises(SpecError, match=f"do not compute in it on {device}"):
            check_quantization(engine, found, device)


def test_a_cpu_takes_quantized_weights_in_bfloat16_alone():
    wanted = EngineSpec(dtype="float16")
    check_quantization(wanted, None, "cpu")
    check_quantization(wanted, GPTQ, "gpu")
    with pytest.raises(SpecError, match="allowed: auto, bfloat16"):
        check_quantization(wanted, GPTQ, "cpu")


@pytest.mark.parametrize(
    ("asked", "found", "bits"),
    [(None, None, 16), (None, GPTQ, 4.15625), ("fp8_per_block", None, 8)],
)
def test_bits_of_a_weight_in_memory(asked, found, bits):
    assert weight_bits(EngineSpec(quantization=asked), found, 16) == bits
    with pytest.raises(SpecError, match="fetch the weights"):
        weight_bits(EngineSpec(), Quantization("quark", None), 16)
