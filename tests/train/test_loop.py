"""One rank's whole life, alone: steps, checkpoints, resuming, stopping, export."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayline.errors import CheckpointError, SpecError, WorkerError
from rayline.models.tiny import write_tiny_model
from rayline.spec import StepReport, TrainResult
from rayline.train.export import logit_difference
from support.one_rank import run_alone, small_job

pytestmark = pytest.mark.dist

Run = Callable[..., tuple[TrainResult, list[StepReport]]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the gang has it: tiny products on several threads mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=64, ffn=128, tied=True)


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Run:
    """run("kind", **changes) trains in the folder of that name and returns what came of it."""

    def train(
        name: str, stop: Callable[[], bool] = lambda: False, model: Path = model, **changes: Any
    ) -> tuple[TrainResult, list[StepReport]]:
        return run_alone(small_job(tmp_path, name, model).changed(changes), model, stop)

    return train


def losses(reports: list[StepReport]) -> list[str]:
    return [report.loss.hex() for report in reports]


def test_stopped_at_six_and_resumed_equals_unbroken(run: Run) -> None:
    whole, unbroken = run("unbroken")
    assert whole.finished
    assert [report.step for report in unbroken] == list(range(1, 13))
    half, before = run("broken", stop_after_step=6)
    assert (half.first_step, half.last_step, half.finished) == (1, 6, False)
    assert half.export is None
    rest, after = run("broken")
    assert (rest.first_step, rest.last_step, rest.finished) == (7, 12, True)
    assert losses(before) + losses(after) == losses(unbroken)
    assert unbroken[-1].loss < unbroken[0].loss


GROWING = {"sequences": 6, "ramp": {"start": 2, "increment": 2, "steps": 8}}
PLATEAU = {"lr": 5e-3, "schedule": {"kind": "plateau", "patience_steps": 0, "factor": 0.7}}


def test_a_growing_batch_and_a_plateau_resume_as_if_unbroken(run: Run) -> None:
    """Broken within the ramp, and once the plateau has made the rate fall."""
    changes = {"batch": GROWING, "optim": PLATEAU}
    _, unbroken = run("unbroken", **changes)
    sizes = [report.processed_tokens // 24 for report in unbroken]
    assert sizes == [2] * 4 + [4] * 4 + [6] * 4
    rates = [report.lr for report in unbroken]
    _, before = run("broken", stop_after_step=6, **changes)
    _, after = run("broken", **changes)
    assert losses(before) + losses(after) == losses(unbroken)
    assert [report.lr for report in (*before, *after)] == rates
    assert rates[0] > rates[6]
    with pytest.raises(CheckpointError, match="batch size"):
        run("broken", batch={"sequences": 6}, optim=PLATEAU)


def test_a_loss_that_is_not_finite_stops_the_job_before_the_step(run: Run) -> None:
    """Steps of the size of the weights' range: the third one meets what the second one made."""
    wild = {"kind": "sgd", "lr": 1e30, "clip_grad_norm": None, "momentum": 0.0}
    with pytest.raises(WorkerError, match=r"the (loss|gradient norm) is (nan|inf)") as stopped:
        run("wild", optim=wild)
    assert stopped.value.subject in ("step 2", "step 3")
    assert stopped.value.rank == 0


def test_skipped_steps_are_reported_and_leave_the_weights(run: Run) -> None:
    wild = {"kind": "sgd", "lr": 1e30, "clip_grad_norm": None, "momentum": 0.0}
    guard = {"nonfinite": "skip", "max_skips": 3}
    with pytest.raises(WorkerError, match="3 steps in a row were skipped"):
        run("wild", optim=wild, guard=guard)
    result, reports = run("spikes", guard={"spike_factor": 1.000001, "window_steps": 1})
    skipped = [report.step for report in reports if report.skipped]
    assert skipped
    assert result.finished
    assert all("times its mean" in report.skipped for report in reports if report.skipped)


def test_fp16_follows_fp32_and_resumes_bit_by_bit(run: Run) -> None:
    _, exact = run("fp32")
    _, reports = run("fp16", precision="fp16")
    expected = [report.loss for report in exact]
    assert [report.loss for report in reports] == pytest.approx(expected, abs=5e-3)
    assert losses(reports) != losses(exact)
    _, before = run("broken", precision="fp16", stop_after_step=6)
    _, after = run("broken", precision="fp16")
    assert losses(before) + losses(after) == losses(reports)


def test_asked_to_stop_it_keeps_a_checkpoint(run: Run) -> None:
    seen: list[int] = []

    def after_three() -> bool:
        seen.append(1)
        return len(seen) >= 3

    result, reports = run("asked", stop=after_three)
    assert result.last_step == len(reports) == 3
    assert result.checkpoint is not None
    assert Path(result.checkpoint).name == "step-00000003"


def test_a_damaged_checkpoint_is_passed_over(run: Run, tmp_path: Path) -> None:
    _, unbroken = run("whole", **{"checkpoint.every_steps": 4})
    run("damaged", stop_after_step=8, **{"checkpoint.every_steps": 4})
    newest = tmp_path / "damaged" / "checkpoints" / "step-00000008" / "rank-00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    result, after = run("damaged", **{"checkpoint.every_steps": 4})
    assert result.first_step == 5
    assert losses(after) == losses(unbroken)[4:]


def test_a_checkpoint_of_another_model_or_batch_is_refused(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run("other", stop_after_step=2)
    wider = write_tiny_model(tmp_path_factory.mktemp("wider"), hidden=64, ffn=256, tied=True)
    with pytest.raises(CheckpointError, match="ffn 128 there, 256 here"):
        run("other", model=wider)
    with pytest.raises(CheckpointError, match="batch size"):
        run("other", **{"batch.sequences": 2})
    with pytest.raises(SpecError, match=r"checkpoint\.resume"):
        run("other", **{"checkpoint.resume": "never"})


def test_the_export_is_the_trained_model(run: Run, tmp_path: Path, model: Path) -> None:
    result, _ = run("export")
    report = result.export
    assert report is not None
    assert report.logit_difference < 1e-5
    folder = Path(report.directory)
    exported = AutoModelForCausalLM.from_pretrained(folder)
    assert exported.num_parameters() == report.parameters
    assert AutoTokenizer.from_pretrained(folder).encode("abc")
    assert set(report.sha256) >= {"model.safetensors", "config.json", "tokenizer.json"}
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        trained = exported(ids).logits
    assert logit_difference(trained, folder, ids) < 1e-6
    assert logit_difference(trained, model, ids) > 1e-2


def test_the_average_of_the_weights_is_exported_if_asked(run: Run, tmp_path: Path) -> None:
    average = {"decay": 0.9, "export": True}
    run("last")
    report = run("average", ema=average)[0].export
    assert report is not None
    assert report.logit_difference < 1e-5
    last, mean = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "export").state_dict()
        for name in ("last", "average")
    )
    assert all(not torch.equal(weight, mean[name]) for name, weight in last.items())
    run("broken", ema=average, stop_after_step=6)
    run("broken", ema=average)
    resumed = AutoModelForCausalLM.from_pretrained(tmp_path / "broken" / "export").state_dict()
    assert all(torch.equal(weight, resumed[name]) for name, weight in mean.items())


def test_an_export_that_differs_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="logits are not the trained model's"):
        run("strict", precision="bf16", **{"export.logits_tolerance": 1e-9})
    assert not (tmp_path / "strict" / "export").exists()
