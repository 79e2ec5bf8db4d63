"""What a whole job tells of itself: held-out loss, where the time went, how busy the device was."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rayline.errors import SpecError
from rayline.models.tiny import write_tiny_model
from rayline.planner import model_flops_per_token, read_model_shape
from rayline.spec import StepReport, TrainResult, Yardstick
from rayline.train.speed import PROBE_S, probed_flops_per_s
from support.one_rank import run_alone, small_job

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=64, ffn=128, tied=True)


@pytest.fixture(scope="module")
def told(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, list[StepReport], float]:
    """One job with everything on, and the wall time of its steps by another clock."""
    folder = tmp_path_factory.mktemp("job")
    held_out = folder / "held-out.txt"
    held_out.write_text("\n".join(f"{n} times eight is {8 * n}" for n in range(40)))
    job = small_job(folder, "measured", model).changed(
        {
            "evaluation.files": [str(held_out)],
            "evaluation.every_steps": 5,
            "evaluation.sequences": 11,
            "checkpoint.every_steps": 4,
            "profile.first_step": 6,
            "profile.last_step": 7,
        }
    )
    flops = model_flops_per_token(read_model_shape(model), job.data.sequence_tokens)
    at_s: list[float] = []

    def watch() -> bool:
        at_s.append(time.perf_counter())
        return False

    result, reports = run_alone(job, model, watch, Yardstick(flops, None))
    return result, reports, at_s[-1] - at_s[0]


Told = tuple[TrainResult, list[StepReport], float]


def test_evaluations_come_at_the_start_on_schedule_and_at_the_end(told: Told) -> None:
    _, reports, _ = told
    by_report = {report.step: [each.step for each in report.evaluations] for report in reports}
    assert {step: steps for step, steps in by_report.items() if steps} == {
        1: [0],
        5: [5],
        10: [10],
        12: [12],
    }
    evaluations = [each for report in reports for each in report.evaluations]
    # Packed text has a target at every place, so padding a round of 4 must not add any.
    assert {(each.sequences, each.tokens) for each in evaluations} == {(11, 11 * 24)}
    assert evaluations[-1].loss < evaluations[0].loss
    assert all(each.perplexity == pytest.approx(math.exp(each.loss)) for each in evaluations)


def test_the_parts_add_up_to_the_step(told: Told) -> None:
    _, reports, wall_s = told
    for report in reports:
        assert report.parts.total_s == report.seconds
    # From the end of the first step to the end of the last, by another clock.
    assert sum(report.seconds for report in reports[1:]) == pytest.approx(wall_s, rel=0.02)


def test_each_part_is_on_the_steps_that_had_it(told: Told) -> None:
    _, reports, _ = told
    parts = {report.step: report.parts for report in reports}
    took = {name: set[int]() for name in ("evaluation_s", "checkpoint_s", "profile_s")}
    for step, each in parts.items():
        for name, steps in took.items():
            if getattr(each, name) > 5e-4:
                steps.add(step)
    assert took["evaluation_s"] >= {5, 10, 12}
    assert took["checkpoint_s"] >= {4, 8, 12}
    assert took["profile_s"] >= {6, 7}
    assert max(len(steps) for steps in took.values()) <= 6
    assert {step for step, each in parts.items() if each.communication_s is not None} == {7}
    assert parts[7].compute_s is not None
    assert 0 < parts[7].compute_s <= parts[7].engine_s


def test_speed_counts_the_training_alone(told: Told) -> None:
    _, reports, _ = told
    report = reports[4]
    training_s = report.parts.data_s + report.parts.engine_s
    assert report.training_s == pytest.approx(training_s)
    assert report.tokens_per_s == pytest.approx(4 * 24 / training_s)
    assert report.tokens_per_s_per_device == report.tokens_per_s


def test_utilization_is_of_what_the_cpu_was_measured_to_do(told: Told, model: Path) -> None:
    _, reports, _ = told
    flops = model_flops_per_token(read_model_shape(model), 24)
    peaks = {report.tokens_per_s * flops / report.mfu for report in reports if report.mfu}
    assert len(reports) == 12
    assert max(peaks) == pytest.approx(min(peaks))
    assert 1e8 < max(peaks) < 1e13


def test_utilization_in_fp16_is_of_products_in_fp16(model: Path, tmp_path: Path) -> None:
    job = small_job(tmp_path, "half", model).changed({"steps": 1, "precision": "fp16"})
    _, (report,) = run_alone(job, model, yardstick=Yardstick(10**6, None))
    assert report.mfu is not None
    assert 1e7 < report.tokens_per_s * 10**6 / report.mfu < 1e13


def test_the_probe_is_short_and_agrees_with_itself() -> None:
    began = time.perf_counter()
    found = [probed_flops_per_s(torch.float32) for _ in range(3)]
    assert time.perf_counter() - began > 3 * PROBE_S
    assert min(found) > 1e8


def test_memory_and_trace_are_in_the_result(told: Told) -> None:
    result, reports, _ = told
    assert len(result.peak_memory_bytes) == 1
    assert result.peak_memory_bytes[0] >= reports[-1].memory_bytes
    assert result.trace is not None
    assert Path(result.trace).is_file()


def test_without_a_yardstick_nothing_is_said_of_utilization(model: Path, tmp_path: Path) -> None:
    _, reports = run_alone(small_job(tmp_path, "plain", model).changed({"steps": 1}), model)
    assert reports[0].mfu is None
    assert reports[0].evaluations == ()


def test_more_sequences_than_the_files_hold_are_refused(model: Path, tmp_path: Path) -> None:
    job = small_job(tmp_path, "short", model)
    held_out = job.changed(
        {
            "evaluation.files": job.data.files,
            "evaluation.every_steps": 1,
            "evaluation.sequences": 10_000,
        }
    )
    with pytest.raises(SpecError, match=r"evaluation\.sequences: more than"):
        run_alone(held_out, model)
    missing = held_out.changed({"evaluation.files": [str(tmp_path / "nothing.txt")]})
    with pytest.raises(SpecError, match=r"evaluation\.files\[0\]: no such file"):
        run_alone(missing, model)
