"""Jobs on a real cluster that is protected by a token, to their true ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rayline.errors import SpecError
from rayline.launch import JobStatus, submit

if TYPE_CHECKING:
    from conftest import ProtectedCluster

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "jobs" / "specs" / "quickstart.yaml")

SUBMIT_AND_WAIT = """
import sys
from rayline import launch
from rayline.errors import RaylineError
address, working_dir, spec, *overrides = sys.argv[1:]
try:
    job = launch.submit(spec, overrides, address=address, working_dir=working_dir)
    ended = launch.wait(job, address=address, timeout_s=200, on_log=sys.stdout.write)
    whole = launch.logs(job, address=address)
    print("\\njob", job, ended.state, ended.driver_exit_code, len(whole))
except RaylineError as wrong:
    print(wrong)
    sys.exit(wrong.exit_code)
sys.exit(ended.exit_code)
"""

STOP = """
import json, sys, time
from rayline import launch
address, working_dir, spec, *overrides = sys.argv[1:]
job = launch.submit(spec, overrides, address=address, working_dir=working_dir)
while "step 2 " not in launch.logs(job, address=address):
    assert not launch.status(job, address=address).ended, launch.logs(job, address=address)
    time.sleep(0.5)
running = launch.status(job, address=address)
ended = launch.stop(job, address=address)
again = launch.stop(job, address=address)
listed = [each.job_id for each in launch.list_jobs(address=address)]
try:
    launch.status("no-such-job", address=address)
except launch.jobs.SpecError as wrong:
    unknown = str(wrong)
print(json.dumps([job, running.state, running.exit_code, ended.state, ended.exit_code,
                  again.state, listed, unknown]))
"""


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """One worker, two steps, everything written where the test looks."""
    return [
        "plan.data=1",
        "steps=2",
        "data.sequence_tokens=32",
        f"output_dir={tmp_path}/run",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]


@pytest.mark.ray
def test_a_job_that_trains_exits_0_and_its_log_comes_over(
    protected_cluster: "ProtectedCluster", overrides: list[str], tmp_path: Path
) -> None:
    told = protected_cluster.run_user(
        SUBMIT_AND_WAIT, protected_cluster.address, str(ROOT), QUICKSTART, *overrides
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("step 1 loss ") == 1
    assert told.stdout.count("step 2 loss ") == 1
    assert " succeeded 0 " in told.stdout
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.ray
def test_a_job_that_fails_gives_its_own_exit_code(
    protected_cluster: "ProtectedCluster", overrides: list[str]
) -> None:
    told = protected_cluster.run_user(
        SUBMIT_AND_WAIT,
        protected_cluster.address,
        str(ROOT),
        QUICKSTART,
        *overrides,
        "plan.tensor=3",
    )
    assert told.returncode == SpecError.exit_code, told.stdout + told.stderr
    assert "error: plan.tensor: does not divide" in told.stdout
    assert "Traceback" not in told.stdout
    assert " failed 2 " in told.stdout


@pytest.mark.ray
def test_a_stopped_job_is_no_success_and_leaves_no_worker(
    protected_cluster: "ProtectedCluster", overrides: list[str]
) -> None:
    told = protected_cluster.run_user(
        STOP, protected_cluster.address, str(ROOT), QUICKSTART, *overrides, "steps=100000"
    )
    assert told.returncode == 0, told.stdout + told.stderr
    job, *states, listed, unknown = json.loads(told.stdout.strip().splitlines()[-1])
    assert states == ["running", None, "stopped", 130, "stopped"]
    assert listed[0] == job
    assert unknown.startswith("job: the cluster knows no such job (found 'no-such-job')")
    assert job.startswith("quickstart-")
    alive = [each for each in psutil.process_iter() if each.name().startswith("ray::Worker")]
    ours = [each for each in alive if str(protected_cluster.session_dir) in _environment(each)]
    assert ours == []


def _environment(process: psutil.Process) -> str:
    try:
        return str(process.parent().cmdline())
    except (psutil.Error, AttributeError):
        return ""


@pytest.mark.ray
def test_without_the_token_the_way_in_is_told(
    protected_cluster: "ProtectedCluster", overrides: list[str]
) -> None:
    arguments = (protected_cluster.address, str(ROOT), QUICKSTART, *overrides)
    told = protected_cluster.run_user(SUBMIT_AND_WAIT, *arguments, with_token=False)
    assert told.returncode == 3, told.stdout + told.stderr
    assert "protected by a token" in told.stdout
    assert "export RAY_AUTH_MODE=token" in told.stdout


@pytest.mark.ray
def test_nothing_listens_and_another_address_is_set(
    protected_cluster: "ProtectedCluster", overrides: list[str]
) -> None:
    arguments = ("http://127.0.0.1:1", str(ROOT), QUICKSTART, *overrides)
    told = protected_cluster.run_user(SUBMIT_AND_WAIT, *arguments)
    assert told.returncode == 3, told.stdout + told.stderr
    assert "dashboard cannot be reached" in told.stdout
    told = protected_cluster.run_user(
        SUBMIT_AND_WAIT, *arguments, RAY_ADDRESS=protected_cluster.address
    )
    assert told.returncode == 2, told.stdout + told.stderr
    assert "unset RAY_ADDRESS" in told.stdout


@pytest.mark.parametrize(
    ("state", "driver_exit_code", "exit_code"),
    [
        ("pending", None, None),
        ("running", None, None),
        ("succeeded", 0, 0),
        ("failed", 2, 2),
        ("failed", 5, 5),
        ("failed", None, 4),
        ("failed", -9, 4),
        ("stopped", None, 130),
        ("stopped", 0, 130),
    ],
)
def test_the_exit_code_is_the_jobs_own(
    state: str, driver_exit_code: int | None, exit_code: int | None
) -> None:
    status = JobStatus("job", state, "python x", "", driver_exit_code, None, None)  # type: ignore[arg-type]
    assert status.exit_code == exit_code
    assert status.ended == (exit_code is not None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "jobs" / "train.py").unlink(), "holds no jobs/train.py"),
        (lambda folder: (folder / "spec.yaml").write_text("stepz: 3"), "steps|required"),
        (lambda folder: (folder / "spec.yaml").unlink(), "no such spec file"),
    ],
)
def test_what_cannot_run_is_refused_before_a_cluster_is_asked(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("")
    (tmp_path / "spec.yaml").write_text(Path(QUICKSTART).read_text())
    change(tmp_path)
    with pytest.raises(SpecError, match=words):
        submit(tmp_path / "spec.yaml", address="http://127.0.0.1:1", working_dir=tmp_path)


def test_a_spec_outside_the_working_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("")
    with pytest.raises(SpecError, match="would not travel"):
        submit(QUICKSTART, address="http://127.0.0.1:1", working_dir=tmp_path)
