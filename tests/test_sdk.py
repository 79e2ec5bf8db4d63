"""Client: what it does without Ray, and what it needs. Training and serving through it are run by
the notebook's test and by tests/cli."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayline import Client, JobSpec, ParallelPlan
from rayline.errors import CheckpointError, ServingError, SpecError
from rayline.spec import Coordinate, TrackingSpec
from support.echo import echo_endpoint

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    monkeypatch.chdir(REPOSITORY)
    return JobSpec.load("jobs/specs/tiny-3d.yaml")


def test_a_plan_says_what_runs_where(job: JobSpec) -> None:
    plan = Client().plan(job)
    assert plan.model.layers == 4
    assert plan.parameters == 658_560
    assert len(plan.workers) == 8
    assert plan.workers[5] == Coordinate(pipeline=1, data=0, context=0, tensor=1)
    assert plan.tokens_per_step == 16 * 128
    assert plan.memory.total_bytes > 3 * 4 * plan.parameters / 8
    assert sum(plan.pipeline.stage_layers) == 4
    assert len(plan.pipeline.stage_layers) == plan.job.plan.pipeline
    assert 0 < plan.pipeline.bubble_share < 0.5


def test_a_plan_refuses_what_cannot_work(job: JobSpec) -> None:
    wrong = job.changed({"plan": ParallelPlan(tensor=3).model_dump()})
    with pytest.raises(SpecError, match=r"plan\.tensor: does not divide"):
        Client().plan(wrong)


def test_data_is_checked_line_by_line(job: JobSpec, tmp_path: Path) -> None:
    file = tmp_path / "torn.jsonl"
    file.write_text('{"text": "whole"}\n{"text": "to')
    with pytest.raises(SpecError, match=r"torn\.jsonl\), line 2: is not JSON"):
        Client().check_data(job.changed({"data.files": [str(file)]}))


def test_without_a_checkpoint_there_is_nothing_to_export(job: JobSpec, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to export"):
        Client().export_job(job.changed({"output_dir": str(tmp_path)}))


def test_an_empty_store_has_no_runs_and_no_models(tmp_path: Path) -> None:
    client = Client(tracking=TrackingSpec(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert client.runs() == []
    assert client.models() == []
    with pytest.raises(SpecError, match="does not exist"):
        client.run("0a1b")


def test_closing_what_was_never_opened_does_nothing() -> None:
    Client().close()


@pytest.fixture
def url() -> Iterator[str]:
    with echo_endpoint() as address:
        yield address


def test_a_question_goes_to_the_first_model_served(url: str) -> None:
    assert Client().chat("who are you", url=url) == "echo who are you"


def test_an_answer_streams_and_several_turns_may_be_given(url: str) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c d"},
    ]
    assert list(Client().stream(turns, url=url, model="named")) == ["named", " c", " d"]


def test_nobody_there_is_a_serving_error() -> None:
    with pytest.raises(ServingError, match="nobody answers there"):
        Client().chat("hello", url="http://127.0.0.1:9/v1")


THIN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ray", "mlflow", "transformers", "numpy", "vllm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from rayline import Client, JobSpec
from rayline.errors import RaylineError
job = JobSpec.load("jobs/specs/quickstart.yaml")
print(Client().plan(job).parameters)
try:
    Client().train(job)
except RaylineError as error:
    print(error)
"""


def test_the_thin_core_plans_and_names_the_extra_for_the_rest() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", THIN],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    planned, _, refused = ended.stdout.partition("\n")
    assert planned == "658560"
    assert "is not installed" in refused
    assert "pip install 'rayline[train]'" in refused
