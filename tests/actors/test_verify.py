"""verify finds nothing in good plans and each of the planted bugs, by parameter or by axis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from transformers import Qwen2Config

from rayline.actors.local import RunCalls, local_processes
from rayline.actors.verify import MODULES, Bench, Verification, plan_verification, verify
from rayline.cli.screen import Screen
from rayline.cli.verify import conclude
from rayline.errors import RaylineError, SpecError, WorkerError
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec, ParallelPlan
from rayline.train.verify.verdict import Verdict
from support import planted_bugs
from support.architectures import write_architecture

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1200)]

MICROBATCHES = 3
CROSS = {"data": 2, "tensor": 2, "microbatches": MICROBATCHES}
DATA, TENSOR, PIPELINE = (
    {axis: 2, "microbatches": MICROBATCHES} for axis in ("data", "tensor", "pipeline")
)
STAGES = {"tensor": 2, "pipeline": 2, "microbatches": MICROBATCHES}
SPREAD = {"data": 2, "expert": 2, "microbatches": MICROBATCHES}
PLANTED: dict[str, tuple[dict[str, int], Any]] = {
    "good data": (DATA, None),
    "good tensor": (TENSOR, None),
    "good pipeline": (PIPELINE, None),
    "partial sum": (TENSOR, planted_bugs.partial_sum_left_out),
    "data size": (DATA, planted_bugs.scaled_by_data_size),
    "one over data size": (DATA, planted_bugs.averaged_over_data),
    "microbatches": (DATA, planted_bugs.scaled_by_microbatches),
    "swapped": (TENSOR, planted_bugs.shard_swapped),
    "duplicated": (DATA, planted_bugs.batch_duplicated),
    "tied": (PIPELINE, planted_bugs.tied_copy_not_summed),
    "norm": (PIPELINE, planted_bugs.norm_of_one_stage),
    "optimizer": (DATA, planted_bugs.optimizer_state_lost),
    "rate": (TENSOR, planted_bugs.rate_off_by_one),
    "data order": (DATA, planted_bugs.data_shifted),
}


def job(model: Path, plan: dict[str, Any], **changes: Any) -> JobSpec:
    tree = {
        "name": "verified",
        "model": {"directory": str(model)},
        "init": "random",
        "steps": 50,
        "data": {"kind": "text", "files": ["none.jsonl"], "sequence_tokens": 128},
        "batch": {"sequences": 24},
        "optim": {"lr": 3e-3, "weight_decay": 0.1},
        "plan": plan,
    }
    return JobSpec.parse(tree | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and keys are normalized, and the embedding is the head: both are summed apart."""
    folder = tmp_path_factory.mktemp("models") / "qwen3"
    return write_tiny_model(folder, architecture="qwen3", tied=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunCalls]:
    """One process that has imported what ranks need, for all of these tests: importing takes longer
    than verifying."""
    folder = tmp_path_factory.mktemp("processes")
    modules = ["rayline.train.native", *MODULES]
    with local_processes(modules, folder) as run:
        yield run


@pytest.fixture(scope="module")
def verified(run: RunCalls) -> Callable[..., Verification]:
    """`verify`, its ranks forked from that one process."""
    return partial(verify, processes=lambda modules, folder: nullcontext(run))


def judged(
    run: RunCalls, spec: JobSpec, trials: dict[str, tuple[dict[str, int], Any]], scratch: Path
) -> dict[str, Verdict]:
    """Verdicts by name on plans with engines, all lived by one gang and compared with one
    reference."""
    bench = Bench(plan_verification(spec), scratch)
    reference = bench.prepare(run)
    ready = {
        name: bench.trial(name, ParallelPlan.parse(plan), build)
        for name, (plan, build) in trials.items()
    }
    return dict(zip(ready, bench.judged(run, ready, reference), strict=True))


@pytest.fixture(scope="module")
def planted(
    run: RunCalls, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Verdict]:
    return judged(run, job(model, DATA), PLANTED, tmp_path_factory.mktemp("planted"))


def offending(verdict: Verdict, check: str) -> dict[str, str]:
    """Names of what differs in one check, each with its hint."""
    return {o.name: o.hint for o in verdict.offences if o.check == check}


def test_good_plans_are_equal(
    run: RunCalls, planted: dict[str, Verdict], model: Path, tmp_path: Path
) -> None:
    axes = {name: verdict for name, verdict in planted.items() if name.startswith("good")}
    assert len(axes) == 3
    crossed = judged(
        run, job(model, CROSS), {"cross": (CROSS, None), "stages": (STAGES, None)}, tmp_path
    )
    for verdict in (*axes.values(), *crossed.values()):
        assert verdict.equal, verdict.offences
        compared = {check.check: check.compared for check in verdict.checks}
        assert compared["start"] == compared["gradient"] == compared["weights"] > 10
        assert compared["loss"] == compared["grad_norm"] == 5
        assert compared["resume"] == 10 + 3 * compared["weights"]


def test_a_left_out_sum_is_found_in_its_parameters_alone(planted: dict[str, Verdict]) -> None:
    found = offending(planted["partial sum"], "gradient")
    assert found.keys() == {
        f"model.layers.{layer}.self_attn.{kind}_norm.weight" for layer in (0, 1) for kind in "qk"
    }
    assert all(hint.startswith("partial sum") for hint in found.values()), found


@pytest.mark.parametrize(
    ("bug", "hint"),
    [
        ("data size", "scaled by 2: the data size"),
        ("one over data size", "scaled by 1 / 2: the data size"),
        ("microbatches", "scaled by 3: the microbatches"),
    ],
)
def test_a_scaled_gradient_is_named_by_what_scaled_it(
    bug: str, hint: str, planted: dict[str, Verdict]
) -> None:
    found = offending(planted[bug], "gradient")
    assert len(found) == _compared(planted[bug])
    assert all(word.startswith(hint) for word in found.values()), found
    assert len(offending(planted[bug], "grad_norm")) == 5


def _compared(verdict: Verdict) -> int:
    return next(check.compared for check in verdict.checks if check.check == "gradient")


def test_spread_experts_are_equal_and_their_mean_for_a_sum_is_named(
    run: RunCalls, tmp_path: Path
) -> None:
    model = write_architecture(tmp_path / "mixtral", "mixtral")
    trials = {"good": (SPREAD, None), "mean": (SPREAD, planted_bugs.experts_averaged)}
    found = judged(run, job(model, SPREAD), trials, tmp_path)
    assert found["good"].equal, found["good"].offences
    hints = offending(found["mean"], "gradient")
    assert len(hints) == 4
    assert all(".mlp.experts." in name for name in hints)
    wanted = "scaled by 1 / 2: the data size or the expert size"
    assert all(hint.startswith(wanted) for hint in hints.values()), hints


def test_a_swapped_shard_is_named(planted: dict[str, Verdict]) -> None:
    verdict = planted["swapped"]
    assert offending(verdict, "start") == {
        planted_bugs.SWAPPED: "the right values in the wrong places: swapped shard"
    }
    assert verdict.offences[0].name == planted_bugs.SWAPPED
    assert len(offending(verdict, "gradient")) > 1


def test_a_batch_used_twice_shows_in_loss_and_gradients(planted: dict[str, Verdict]) -> None:
    verdict = planted["duplicated"]
    assert len(offending(verdict, "loss")) == 5
    found = offending(verdict, "gradient")
    assert len(found) == _compared(verdict)
    assert all("other data" in hint for hint in found.values()), found


@pytest.mark.parametrize(
    ("bug", "hint"),
    [
        ("optimizer", "optimizer state not restored"),
        ("rate", "steps of another size after the resume: learning rate or step count"),
        ("data order", "other data or other weights after the resume"),
    ],
)
def test_a_wrong_resume_is_found_though_all_else_is_equal(
    bug: str, hint: str, planted: dict[str, Verdict]
) -> None:
    verdict = planted[bug]
    assert {offence.check for offence in verdict.offences} == {"resume"}
    assert set(offending(verdict, "resume").values()) == {hint}


def test_a_tied_copy_that_is_not_summed_is_found_in_the_embedding(
    planted: dict[str, Verdict],
) -> None:
    assert offending(planted["tied"], "gradient").keys() == {"model.embed_tokens.weight"}


def test_a_norm_of_one_stage_is_found_though_every_gradient_is_right(
    planted: dict[str, Verdict],
) -> None:
    verdict = planted["norm"]
    assert not offending(verdict, "gradient")
    assert len(offending(verdict, "grad_norm")) == 5


@pytest.fixture(scope="module")
def blamed(verified: Callable[..., Verification], model: Path) -> Verification:
    said: list[str] = []
    plan = plan_verification(job(model, CROSS))
    found = verified(plan, observe=said.append, build=planted_bugs.partial_sum_left_out)
    assert [line.partition(":")[0] for line in said] == [
        "reference",
        "whole plan",
        "one worker",
        "data",
        "tensor",
    ]
    return found


def test_the_guilty_axis_is_named(blamed: Verification) -> None:
    assert blamed.guilty == "tensor"
    assert {verdict.label: verdict.equal for verdict in blamed.alone} == {
        "one worker": True,
        "data": True,
        "tensor": False,
    }


def test_a_difference_ends_the_command_with_code_1(
    blamed: Verification, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RaylineError, match="does not compute what one process computes") as raised:
        conclude(Screen(json_wanted=False), blamed)
    assert raised.value.exit_code == 1
    assert "what is to blame: tensor" in str(raised.value)
    shown = capsys.readouterr().out
    assert "q_norm.weight" in shown
    assert "partial sum" in shown


def test_as_json_a_difference_is_one_document(
    blamed: Verification, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    # Screen moves stdout for a whole command; here the test goes on.
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with pytest.raises(typer.Exit) as raised:
        conclude(Screen(json_wanted=True), blamed)
    assert raised.value.exit_code == 1
    document = json.loads(capsys.readouterr().out)
    assert document["equal"] is False
    assert document["guilty"] == "tensor"
    assert document["error"]["exit_code"] == 1
    assert "_norm.weight" in document["verdict"]["offences"][0]["name"]


def test_one_axis_can_be_asked_for(verified: Callable[..., Verification], model: Path) -> None:
    plan = plan_verification(job(model, CROSS), axis="data")
    assert str(plan.job.plan) == "data 2"
    found = verified(plan, build=planted_bugs.scaled_by_data_size)
    assert found.guilty == "data"
    with pytest.raises(SpecError, match="--axis"):
        plan_verification(job(model, CROSS), axis="pipeline")


EVERYTHING: dict[str, Any] = {
    "optim": {
        "kind": "muon",
        "lr": 3e-3,
        "weight_decay": 0.1,
        "schedule": {"kind": "plateau", "patience_steps": 20},
        "groups": [{"match": "*norm*", "lr_scale": 0.5, "weight_decay": 0.01}],
    },
    "batch": {"sequences": 24, "ramp": {"start": 6, "increment": 6, "steps": 9}},
    "objective": {"label_smoothing": 0.1, "z_loss": 1e-3, "chunk_tokens": 512},
    "guard": {"spike_factor": 1.05, "on_spike": "skip"},
}


def test_all_that_a_step_can_be_is_followed(run: RunCalls, model: Path, tmp_path: Path) -> None:
    spec = job(model, CROSS, **EVERYTHING)
    plan = plan_verification(spec)
    assert plan.job.batch.sequences_at(1) < plan.job.batch.sequences_at(5)
    found = judged(
        run,
        spec,
        {"cross": (CROSS, None), "averaged": (CROSS, planted_bugs.averaged_over_data)},
        tmp_path,
    )
    assert found["cross"].equal, found["cross"].offences
    assert not found["averaged"].equal


@pytest.mark.parametrize("field", ["router_aux_loss", "expert_capacity_factor"])
def test_what_routers_are_asked_for_is_refused_by_name(model: Path, field: str) -> None:
    with pytest.raises(SpecError, match=rf"(?s){field}.*--set objective"):
        plan_verification(job(model, DATA).changed({f"objective.{field}": 1.5}))


def test_a_scale_that_skips_steps_is_refused_by_name(model: Path) -> None:
    with pytest.raises(SpecError, match=r"(?s)precision.*overflow.*--set precision=fp32"):
        plan_verification(job(model, DATA, precision="fp16"))


def test_a_gradient_that_is_zero_but_for_rounding_raises_no_alarm(
    verified: Callable[..., Verification], tmp_path: Path
) -> None:
    # A key's bias shifts all scores of a query alike, which the softmax takes away again.
    config = Qwen2Config(
        num_hidden_layers=4,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=1000,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    found = verified(plan_verification(job(tmp_path, TENSOR)))
    assert found.equal, found.verdict.offences


def test_bf16_is_equal_within_its_own_tolerance(
    verified: Callable[..., Verification], model: Path
) -> None:
    spec = job(model, DATA, precision="bf16")
    found = verified(plan_verification(spec))
    assert found.equal, found.verdict.offences
    (gradient,) = [check for check in found.verdict.checks if check.check == "gradient"]
    assert 1e-4 < gradient.error < 0.2


def test_deepspeed_is_equal(verified: Callable[..., Verification], model: Path) -> None:
    plan = {"data": 2, "zero_stage": 2, "microbatches": 3}
    found = verified(plan_verification(job(model, plan, engine="deepspeed")))
    assert found.equal, found.verdict.offences


def test_a_rank_that_raises_is_reported_and_nothing_is_left(model: Path) -> None:
    plan = plan_verification(job(model, DATA))
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(WorkerError, match=r"rank 1 .*ZeroDivisionError: the user's own") as raised:
        verify(plan, build=planted_bugs.raising_on_rank_1)
    assert "planted_bugs.py" in raised.value.remote_traceback
    assert set(psutil.Process().children(recursive=True)) <= before


def test_the_whole_model_is_verified_with_its_own_weights_and_data(
    verified: Callable[..., Verification], model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{n} and {n * n}"}) for n in range(200)))
    data = {"kind": "text", "files": [str(file)], "sequence_tokens": 32}
    spec = job(
        model,
        {"pipeline": 2, "microbatches": 3},
        init="weights",
        data=data,
        batch={"sequences": 6},
    )
    plan = plan_verification(spec, whole=True)
    assert plan.changes == ()
    found = verified(plan)
    assert found.equal, found.verdict.offences
