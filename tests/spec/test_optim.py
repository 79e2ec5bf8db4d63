"""The optimizer's section: one kind, and only the fields that it knows."""

from typing import Any

import pytest

from rayline.errors import SpecError
from rayline.spec import AdamWSpec, JobSpec, MuonSpec

TREE: dict[str, Any] = {
    "name": "job",
    "model": {"directory": "m"},
    "steps": 10,
    "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 16},
    "batch": {"sequences": 8},
    "optim": {"lr": 1e-3},
}
KINDS = (
    "adamw",
    "adam8bit",
    "adafactor",
    "lion",
    "lamb",
    "muon",
    "sgd",
    "rmsprop",
    "adagrad",
    "adadelta",
)


def job(**sections: Any) -> JobSpec:
    return JobSpec.parse(TREE | sections)


def test_a_spec_that_names_no_kind_is_adamws() -> None:
    optim = job().optim
    assert isinstance(optim, AdamWSpec)
    assert job(optim={"kind": "adamw", "lr": 1e-3}).optim == optim


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_through_yaml_and_back(kind: str) -> None:
    one = job(optim={"kind": kind, "lr": 1e-3, "schedule": {"kind": "wsd", "decay_steps": 3}})
    assert one.optim.kind == kind
    assert JobSpec.parse(one.model_dump(mode="json")) == one
    assert one.flat()["optim.kind"] == kind
    assert one.changed({"optim.lr": 2e-3}).optim.kind == kind


@pytest.mark.parametrize(
    ("optim", "subject", "message"),
    [
        ({"kind": "lion", "eps": 1e-8}, "optim.eps", "allowed: betas, clip_grad_norm, groups"),
        ({"kind": "muon", "momentun": 0.9}, "optim.momentun", "did you mean 'momentum'"),
        ({"kind": "lyon"}, "optim.kind", "adamw, adam8bit, adafactor"),
        ({"kind": "sgd", "momentum": 1.5}, "optim.momentum", "less than 1"),
        ({"schedule": "cosin"}, "optim.schedule.kind", "constant, linear, cosine"),
        ({"schedule": {"kind": "wsd"}}, "optim.schedule.decay_steps", "required"),
        ({"schedule": {"kind": "step", "factor": 2}}, "optim.schedule.every_steps", "required"),
        ({"groups": [{"match": "*", "lrscale": 1}]}, "optim.groups.0.lrscale", "'lr_scale'"),
    ],
)
def test_what_a_kind_does_not_know_is_named(
    optim: dict[str, Any], subject: str, message: str
) -> None:
    with pytest.raises(SpecError) as refused:
        job(optim={"lr": 1e-3, **optim})
    assert refused.value.subject == subject
    assert message in str(refused.value)


def test_another_kind_is_put_whole_in_place_of_the_first() -> None:
    changed = job().changed({"optim": {"kind": "muon", "lr": 2e-2}})
    assert changed.optim == MuonSpec(lr=2e-2)
    with pytest.raises(SpecError, match=r"optim\.(betas|eps): unknown key"):
        job().changed({"optim.kind": "sgd"})


@pytest.mark.parametrize(
    "sections",
    [
        {"optim": {"lr": 1e-3, "kind": "lion"}},
        {"optim": {"lr": 1e-3, "groups": [{"match": "*norm*", "lr_scale": 0.1}]}},
        {"ema": {"decay": 0.9}},
        {"recompute": "full"},
        {"objective": {"chunk_tokens": 512}},
    ],
)
def test_deepspeed_refuses_what_only_the_native_engine_has(sections: dict[str, Any]) -> None:
    job(**sections)
    with pytest.raises(SpecError, match="engine: native"):
        job(engine="deepspeed", **sections)


def test_a_split_backward_pass_refuses_selective_recomputation() -> None:
    plan = {"pipeline": 2, "schedule": "zero_bubble", "microbatches": 4}
    job(plan=plan, recompute="full")
    with pytest.raises(SpecError, match="zero_bubble goes back through it twice"):
        job(plan=plan, recompute="selective")
