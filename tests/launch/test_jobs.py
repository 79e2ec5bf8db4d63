"""Jobs on a real cluster that is protected by a token, to their true ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rayline.errors import SpecError
from rayline.launch import JobStatus, submit
from rayline.launch.job_status import waiting_for
from rayline.launch.submission import chosen_environment, next_attempt

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
    job = launch.submit(spec, overrides, address=address, working_dir=working_dir).job_id
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
job = launch.submit(spec, overrides, address=address, working_dir=working_dir).job_id
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
        ("failed", -9, 137),
        ("failed", 137, 137),
        ("failed", 3, 3),
        ("failed", 300, 4),
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


def job(job_id: str, state: str, code: int | None = None, message: str = "") -> JobStatus:
    return JobStatus(job_id, state, "python x", message, code, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (3, "Job entrypoint command failed ...", "its process exited with 3"),
        (-9, "", "its process was killed by SIGKILL, as the kernel does where memory is short"),
        (143, "", "its process was killed by SIGTERM"),
        (None, "\nruntime_env setup failed: pip\nmore", "runtime_env setup failed: pip"),
        (None, "", "Ray lost it"),
    ],
)
def test_how_a_job_failed_is_told_in_a_line(code: int | None, message: str, reason: str) -> None:
    assert job("j", "failed", code, message).reason == reason
    assert job("j", "succeeded", 0).reason == ""


def test_a_job_says_what_it_waits_for() -> None:
    assert waiting_for("pending", "set up", "") == "set up"
    told = "waiting for room for 2 x (4 GPUs): gang a holds 8"
    assert waiting_for("running", "", f"begun\n{told}\n\n") == told
    assert waiting_for("running", "", f"{told}\nstep 1 loss 3\n") == ""
    assert waiting_for("failed", "", told) == ""


@pytest.mark.parametrize(
    ("known", "again", "job_id", "is_new", "words"),
    [
        ([], False, "a-12345678", True, ""),
        ([("b-12345678", "running")], False, "a-12345678", True, ""),
        ([("a-12345678", "pending")], False, "a-12345678", False, "waits as a-12345678"),
        ([("a-12345678", "running")], False, "a-12345678", False, "runs as a-12345678"),
        ([("a-12345678", "succeeded")], False, "a-12345678", False, "succeeded as"),
        ([("a-12345678", "succeeded")], True, "a-12345678-2", True, "succeeded before"),
        ([("a-12345678", "failed")], False, "a-12345678-2", True, "failed before"),
        (
            [("a-12345678", "failed"), ("a-12345678-10", "running"), ("a-12345678-9", "stopped")],
            False,
            "a-12345678-10",
            False,
            "runs as a-12345678-10",
        ),
        ([("a-12345678-2", "stopped")], False, "a-12345678-3", True, "was stopped before"),
    ],
)
def test_a_spec_is_sent_once_and_then_followed(
    known: list[tuple[str, str]], again: bool, job_id: str, is_new: bool, words: str
) -> None:
    meant = next_attempt("a-12345678", [job(name, state) for name, state in known], again)
    assert (meant.job_id, meant.is_new) == (job_id, is_new)
    assert words in meant.note
    assert bool(words) == bool(meant.note)


def test_the_environment_travels_by_name_alone() -> None:
    here = {"HF_TOKEN": "secret", "OTHER": "x", "RAY_ADDRESS": "y"}
    assert chosen_environment([], here) == {}
    assert chosen_environment(["HF_TOKEN"], here) == {"HF_TOKEN": "secret"}
    for name, words in {
        "A": "is not set",
        "HF_TOKEN=b": "seen by others",
        "RAY_ADDRESS": "own",
    }.items():
        with pytest.raises(SpecError, match=words) as refused:
            chosen_environment([name], here)
        assert refused.value.subject == "--env"
