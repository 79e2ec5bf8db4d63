"""The search over plans: what it returns runs and fits, what it leaves out could not, and why."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.planner import estimate_memory
from rayline.planner.accelerators import find_accelerator
from rayline.planner.calibration_file import shipped_calibration
from rayline.planner.choice import Choice, choose, device_memory, overrides, predict_job, workload
from rayline.planner.columns import Machines
from rayline.planner.economics import economics
from rayline.planner.model_catalogue import SHAPES, find_shape
from rayline.planner.picture import draw, write_picture
from rayline.planner.pipeline import StageTimes, simulate
from rayline.planner.plan_grid import SCHEDULE_BUBBLES
from rayline.planner.request import job_of, machines_of
from rayline.planner.search import rank_plans
from rayline.planner.stage_memory import GIB
from rayline.planner.why import explain
from rayline.spec import JobSpec, ParallelPlan

CURVES = shipped_calibration().curves
NO_XML_DECLARATION = "svg"


def job(model: str = "meta-llama/Llama-3-8B", sequences: int = 64, **fields: Any) -> JobSpec:
    tree = {
        "name": "job",
        "model": {"hub": model},
        "steps": 1,
        "precision": "bf16",
        "plan": "auto",
        "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 8192},
        "batch": {"sequences": sequences},
        "optim": {"lr": 1e-3},
    }
    return JobSpec.parse(tree | fields)


def chosen(model: str, gpus: int, kind: str = "H100", **options: Any) -> Choice:
    shape = find_shape(model)
    assert shape is not None
    wanted = job(model, options.pop("sequences", 64))
    return choose(wanted, shape, Machines(find_accelerator(kind), gpus), CURVES, **options)


@settings(max_examples=8, deadline=None)
@given(
    model=st.sampled_from(
        ["meta-llama/Llama-3.2-1B", "meta-llama/Llama-3-8B", "Qwen/Qwen3-30B-A3B"]
    ),
    gpus=st.sampled_from([8, 16, 64]),
    kind=st.sampled_from(["A100-80G", "H100", "B200"]),
)
def test_every_plan_that_is_returned_runs_and_fits(model: str, gpus: int, kind: str) -> None:
    found = chosen(model, gpus, kind, everything=True)
    room = found.machines.accelerator.memory_gib * GIB
    steps = [candidate.step_s for candidate in found.best]

    assert steps == sorted(steps)
    assert len({candidate.axes for candidate in found.best}) == len(found.best)
    for candidate in found.best:
        resolved = found.resolved(candidate)
        resolved.check(found.shape, found.machines.node)
        counted = device_memory(estimate_memory(found.shape, resolved), found.machines, CURVES)
        assert resolved.plan.world_size == gpus
        assert not resolved.plan.auto
        assert counted.total_bytes == pytest.approx(candidate.memory_bytes)
        assert candidate.memory_bytes <= room
        assert sum(candidate.seconds.values()) == pytest.approx(candidate.step_s)


def test_llama_3_405b_on_16384_gpus_finds_metas_plan_among_the_first() -> None:
    """TP8 PP16 DP128 at 8,192 tokens and 16 M tokens a step (arXiv 2407.21783, table 4)."""
    found = chosen("meta-llama/Llama-3-405B", 16384, sequences=2048, everything=True)

    assert (8, 16, 1, 128, 1) in [candidate.axes for candidate in found.best]


def test_a_plan_alone_is_predicted_as_in_the_search() -> None:
    found = chosen("meta-llama/Llama-3-8B", 64)
    for candidate in found.best:
        again = predict_job(found.resolved(candidate), found.shape, found.machines, CURVES)
        assert again.step_s == pytest.approx(candidate.step_s)


def test_the_grid_holds_every_small_plan_that_the_check_admits() -> None:
    """All plans of 8 workers with 1f1b, written out and checked one by one."""
    shape = SHAPES["meta-llama/Llama-3.2-1B"]
    machines = Machines(find_accelerator("B200"), 8)
    wanted = job("meta-llama/Llama-3.2-1B", 16)
    ranking = rank_plans(shape, machines, workload(wanted), CURVES)
    inside = {
        (*(int(ranking.choices[name][n]) for name in ("tensor", "pipeline", "context", "data")),
         int(ranking.choices["microbatches"][n]))
        for n in range(ranking.tried)
    }  # fmt: skip
    missing = []
    for tensor in (1, 2, 4, 8):
        for pipeline in (1, 2, 4, 8):
            for context in (1, 2):
                for microbatches in (1, 2, 4, 8, 16):
                    data = 8 // (tensor * pipeline * context)
                    if data * tensor * pipeline * context != 8:
                        continue
                    tree = {"data": data, "tensor": tensor, "pipeline": pipeline,
                            "context": context, "microbatches": microbatches}  # fmt: skip
                    plan = ParallelPlan.parse(tree)
                    try:
                        plan.check(shape, 16)
                    except SpecError:
                        continue
                    if (tensor, pipeline, context, data, microbatches) not in inside:
                        missing.append(plan)

    assert missing == []
    assert len(inside) > 40


@pytest.mark.parametrize("schedule", ["zero_bubble", "zero_bubble_v"])
@pytest.mark.parametrize("microbatches", [8, 16])
def test_bubbles_of_split_schedules_are_no_larger_than_the_search_takes_them(
    schedule: str, microbatches: int
) -> None:
    held = 2 if schedule == "zero_bubble_v" else 1
    plan = ParallelPlan.parse(
        {
            "pipeline": 4,
            "microbatches": microbatches,
            "schedule": schedule,
            "stages_per_worker": held,
        }
    )
    plain = ParallelPlan.parse({"pipeline": 4, "microbatches": microbatches})
    played = simulate(plan, [StageTimes(1 / held, 1 / held, 1 / held)] * 4 * held)
    base = simulate(plain, [StageTimes(1, 1, 1)] * 4)
    ideal = 3 * microbatches
    bubble = (played.length - ideal) / (base.length - ideal)

    assert bubble <= SCHEDULE_BUBBLES[plan.schedule] + 0.01


def test_what_does_not_fit_is_refused_with_what_needs_least() -> None:
    with pytest.raises(SpecError, match=r"none of \d+ plans fits 1 x L4.*needs least") as refused:
        chosen("meta-llama/Llama-3-8B", 1, "L4")

    assert "more workers" in str(refused.value)


def test_a_number_of_workers_that_divides_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="no plan for exactly 37 workers"):
        chosen("meta-llama/Llama-3-8B", 37)


def test_the_overrides_make_the_job_that_was_chosen() -> None:
    found = chosen("meta-llama/Llama-3-8B", 64, everything=True)
    told = job()
    told = told.changed({"plan": ParallelPlan().model_dump(mode="json")})
    candidate = found.best[0]
    again = JobSpec.parse(json.loads(told.model_dump_json())).changed(
        {name: json.loads(value) if value in ("true", "false") or value.isdigit() else value
         for name, value in (one.split("=") for one in overrides(told, candidate))}
    )  # fmt: skip

    assert again.plan == candidate.plan
    assert again.recompute == candidate.recompute


def test_auto_keeps_what_the_job_tells_of_recompute() -> None:
    shape = SHAPES["meta-llama/Llama-3-8B"]
    machines = Machines(find_accelerator("H100"), 64)
    found = choose(job(recompute="full"), shape, machines, CURVES)

    assert {candidate.recompute for candidate in found.best} == {"full"}


def test_why_says_what_each_alternative_loses() -> None:
    found = chosen("meta-llama/Llama-3-70B", 64, everything=True)
    best = found.best[0]
    told = explain(found, "tensor", str(best.plan.tensor))
    by_value = {one.value: one for one in told}

    assert by_value[best.plan.tensor].reason == "asked for"
    assert by_value[best.plan.tensor].candidate == best
    for one in told:
        if one.value != best.plan.tensor and one.fits:
            assert "slower" in one.reason or one.reason == "as fast"
            assert one.candidate is not None
            difference = one.candidate.step_s - best.step_s
            assert sum(one.seconds.values()) == pytest.approx(difference)


def test_why_says_how_much_memory_is_missing() -> None:
    found = chosen("meta-llama/Llama-3-70B", 32, "A100-40G", everything=True)
    told = explain(found, "recompute", found.best[0].recompute)
    (without,) = [one for one in told if one.value == "none"]

    assert not without.fits
    assert "GiB more than there is, most of it activations" in without.reason


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [("tensr", "8", "no such choice"), ("tensor", "3", "no plan has this value")],
)
def test_why_refuses_what_is_no_choice(field: str, value: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        explain(chosen("meta-llama/Llama-3-8B", 8), field, value)


def test_what_a_step_comes_to() -> None:
    shape = SHAPES["meta-llama/Llama-3-8B"]
    machines = Machines(find_accelerator("H100"), 8)
    found = economics(shape, machines, 2**20, 8192, 10.0, total_tokens=1e12, price_per_hour=2.0)

    assert found.tokens_per_s == pytest.approx(2**20 / 10)
    assert found.days == pytest.approx(1e12 / (2**20 / 10) / 86400)
    assert found.dollars_per_billion_tokens == pytest.approx(8 * 2 * 1e9 / (2**20 / 10) / 3600)
    assert found.dollars == pytest.approx(1000 * found.dollars_per_billion_tokens)
    assert 0.5 < found.mfu < 0.8


def test_the_picture_shows_every_action_and_every_worker(tmp_path: Path) -> None:
    found = chosen("meta-llama/Llama-3-70B", 64)
    candidate = next(one for one in found.best if one.plan.pipeline > 1)
    drawing = ElementTree.fromstring(draw(found, candidate))
    titles = [one.text or "" for one in drawing.iter("{http://www.w3.org/2000/svg}title")]
    plan = candidate.plan
    forwards = [title for title in titles if title.startswith("forward")]

    assert len(forwards) == plan.stages * plan.microbatches
    assert sum(title.startswith("optimizer") for title in titles) == plan.pipeline
    write_picture(found, candidate, tmp_path / "plan.html")
    assert "<svg" in (tmp_path / "plan.html").read_text()
    with pytest.raises(SpecError, match="SVG or HTML"):
        write_picture(found, candidate, tmp_path / "plan.png")


def test_models_and_clusters_are_found_by_words(tmp_path: Path) -> None:
    assert job_of("meta-llama/Llama-3.1-8B-Instruct", []).plan.auto
    assert job_of("Llama-3-70B", ["batch.sequences=96"]).batch.sequences == 96
    config = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for words in (tmp_path, tmp_path / "config.json"):
        assert job_of(str(words), []).model.directory == str(tmp_path)
    with pytest.raises(SpecError, match="neither a spec's file nor a model"):
        job_of("nobody/nothing", [])

    aws = machines_of(None, None, Path(__file__).parents[2] / "cluster" / "aws.yaml")
    assert (aws.accelerator.name, aws.gpus_per_node) == ("L4", 4)
    assert machines_of(4, "a100-80gb", None).accelerator.name == "A100-80G"
    with pytest.raises(SpecError, match="did you mean 'H100'"):
        machines_of(8, "H1000", None)


def test_auto_is_the_whole_plan_or_nothing_of_it() -> None:
    assert job().plan.auto
    assert str(job().plan) == "auto"
    with pytest.raises(SpecError, match="auto leaves the whole plan"):
        job(plan={"auto": True, "tensor": 2})
