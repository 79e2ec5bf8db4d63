"""The driver from a spec to a registered model, and its ends: refused, stopped, interrupted."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rayline.actors.driver import anchored_job
from rayline.errors import PlacementError, SpecError
from rayline.spec import JobSpec, StepReport

ROOT = Path(__file__).parents[2]
MakeJob = Callable[..., JobSpec]


def test_relative_paths_are_made_absolute_and_nothing_else_changes(make_job: MakeJob) -> None:
    job = make_job(**{"output_dir": "runs/{name}", "data.files": ["a.txt", "/data/b.txt"]})
    placed = anchored_job(job, Path("/home/of/driver"))
    assert placed.directory == "/home/of/driver/runs/gang"
    assert placed.data.files == ["/home/of/driver/a.txt", "/data/b.txt"]
    assert placed.tracking.uri == f"sqlite:///{Path.cwd()}/mlflow.db"
    assert anchored_job(placed, Path("/elsewhere")) == placed
    mixture = [
        {"files": ["a.txt", "s3://bucket/b.parquet"], "weight": 2.0},
        {"files": ["/data/c"], "weight": 1.0},
    ]
    mixed = job.changed({"data.files": None, "data.mixture": mixture, "data.cache_dir": "kept"})
    data = anchored_job(mixed, Path("/home/of/driver")).data
    assert data.files is None
    assert [part.files for part in data.sources] == [
        ["/home/of/driver/a.txt", "s3://bucket/b.parquet"],
        ["/data/c"],
    ]
    assert [part.weight for part in data.sources] == [2.0, 1.0]
    assert data.cache_dir == "/home/of/driver/kept"
    watched = job.changed({"evaluation.files": ["c.txt"], "evaluation.every_steps": 2})
    there = anchored_job(watched, Path("/home/of/driver"))
    assert there.evaluation is not None
    assert there.evaluation.files == ["/home/of/driver/c.txt"]
    for given, then in (
        ("kept/{name}", "/home/of/driver/kept/gang"),
        ("s3://bucket/{name}", "s3://bucket/gang"),
    ):
        kept = anchored_job(job.changed({"checkpoint.directory": given}), Path("/home/of/driver"))
        assert kept.checkpoint.directory == kept.checkpoint_directory == then
    back = {
        "output_dir": job.output_dir,
        "data.files": job.data.files,
        "tracking.uri": job.tracking.uri,
    }
    assert placed.changed(back) == job


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    """Ray on this machine with two CPUs."""
    import ray

    from support import rank_functions

    ray.cloudpickle.register_pickle_by_value(rank_functions)
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(rank_functions)


@pytest.fixture
def quick_job(tmp_path: Path) -> JobSpec:
    """The quickstart's job, three steps of it, recorded in a folder of its own."""
    job = JobSpec.load(ROOT / "jobs" / "specs" / "quickstart.yaml")
    return anchored_job(job, ROOT).changed(
        {
            "steps": 3,
            "output_dir": str(tmp_path / "run"),
            "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
        }
    )


@pytest.mark.ray
@pytest.mark.usefixtures("one_node")
def test_a_job_is_trained_recorded_and_registered(quick_job: JobSpec) -> None:
    from rayline.actors import train
    from rayline.tracking import read_gangs, read_run, resolve_model

    reports: list[StepReport] = []
    measured = {
        "evaluation.files": quick_job.data.files,
        "evaluation.every_steps": 2,
        "evaluation.sequences": 8,
        "profile.first_step": 2,
        "profile.last_step": 2,
    }
    outcome = train(quick_job.changed(measured), observers=[reports.append])
    assert [report.step for report in reports] == [1, 2, 3]
    assert outcome.result.finished
    assert outcome.model is not None
    assert outcome.model.registry == "quickstart@latest"
    assert (resolve_model(outcome.model, quick_job.tracking) / "model.safetensors").is_file()
    record = read_run(quick_job.tracking, outcome.run_id)
    assert record.summary.status == "finished"
    assert [point.value for point in record.metrics["loss"]] == [each.loss for each in reports]
    assert record.params["plan.data"] == "2"
    (gang,) = read_gangs(record.tags)
    assert [seat.coordinate for seat in gang.seats] == ["pp0-dp0-cp0-tp0", "pp0-dp1-cp0-tp0"]
    assert len({seat.pid for seat in gang.seats}) == 2
    assert record.tags["rayline.fingerprint"] == quick_job.changed(measured).fingerprint()
    assert [point.step for point in record.metrics["val_loss"]] == [0, 2, 3]
    assert len(record.metrics["mfu"]) == 3
    assert record.metrics["peak_memory_gib"][0].value > 0.1
    artifacts = outcome.directory.parent / "mlartifacts" / outcome.run_id / "artifacts"
    assert (artifacts / "memory.json").is_file()
    assert len(list((artifacts / "profile").glob("rank-00000-*.json.gz"))) == 1
    assert len(list((outcome.directory / "profile").glob("rank-0000*.json.gz"))) == 2
    assert len(list((outcome.directory / "logs").glob("rank-0000*-pp0-dp*-cp0-tp0.log"))) == 2


@pytest.mark.ray
@pytest.mark.usefixtures("one_node")
def test_a_tracking_server_that_never_answers_does_not_harm_a_job(
    quick_job: JobSpec, tmp_path: Path
) -> None:
    from rayline.actors import train
    from rayline.tracking import fill_in, list_models, read_run, resolve_model

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{probe.getsockname()[1]}"
    reports: list[StepReport] = []
    job = quick_job.changed({"tracking.uri": away, "steps": 6})
    outcome = train(job, observers=[reports.append])
    assert outcome.result.finished
    assert outcome.model is not None
    assert outcome.model.directory == outcome.result.export.directory
    assert (resolve_model(outcome.model, job.tracking) / "model.safetensors").is_file()

    (filled,) = fill_in(outcome.directory, tracking=quick_job.tracking)
    assert filled.problem is None
    record = read_run(quick_job.tracking, outcome.run_id)
    assert record.summary.status == "finished"
    assert [point.value for point in record.metrics["loss"]] == [each.loss for each in reports]
    assert record.tags["rayline.project.commit"]
    assert record.tags["rayline.plan_chosen"] == "spec"
    assert [event.kind for event in record.events] == ["predicted", "registered"]
    (model,) = list_models(quick_job.tracking)
    assert (model.name, model.run_id) == ("quickstart", filled.run_id)


@pytest.mark.ray
@pytest.mark.usefixtures("one_node")
def test_the_callers_stop_ends_a_job_without_an_error(quick_job: JobSpec) -> None:
    from rayline.actors import train
    from rayline.tracking import read_run
    from support import rank_functions

    stop = threading.Event()

    def observe(report: StepReport) -> None:
        if report.step >= 2:
            stop.set()

    (Path(quick_job.directory)).mkdir()
    outcome = train(
        quick_job, observers=[observe], stop=stop, rank_function=rank_functions.until_stopped
    )
    assert outcome.model is None
    assert outcome.result.last_step >= 2
    assert not outcome.result.finished
    assert read_run(quick_job.tracking, outcome.run_id).summary.status == "finished"


@pytest.mark.ray
@pytest.mark.usefixtures("one_node")
def test_what_cannot_work_is_refused_before_a_run_is_opened(quick_job: JobSpec) -> None:
    from rayline.actors import train
    from rayline.tracking import list_runs

    with pytest.raises(SpecError, match=r"plan\.tensor: does not divide"):
        train(quick_job.changed({"plan.tensor": 3, "plan.data": 1}))
    with pytest.raises(PlacementError, match="needs 4 CPUs on one node; the largest node has 2"):
        train(quick_job.changed({"resources.cpus_per_worker": 4}))
    with pytest.raises(SpecError, match="no such folder"):
        train(quick_job.changed({"model.directory": "/nowhere"}))
    assert list_runs(quick_job.tracking) == []


DRIVER = """
import sys
import ray
from support import rank_functions
from rayline.actors import train
from rayline.errors import RaylineError
from rayline.spec import JobSpec

ray.cloudpickle.register_pickle_by_value(rank_functions)
job = JobSpec.load(sys.argv[1])
try:
    train(job, observers=[print], rank_function=rank_functions.until_stopped)
except RaylineError as wrong:
    print("ended:", wrong)
    sys.exit(wrong.exit_code)
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("sent", "code", "status"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGKILL, -signal.SIGKILL, "running")],
)
def test_a_driver_that_is_stopped_or_killed_leaves_no_process(
    quick_job: JobSpec, tmp_path: Path, sent: signal.Signals, code: int, status: str
) -> None:
    from rayline.tracking import list_runs

    spec = tmp_path / "job.yaml"
    spec.write_text(quick_job.to_yaml())
    Path(quick_job.directory).mkdir()
    paths = [str(ROOT / "platform"), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    driver = subprocess.Popen(
        [sys.executable, "-u", "-c", DRIVER, str(spec)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if "StepReport(step=3" in line:
            break
    workers = [int(file.read_text()) for file in Path(quick_job.directory).glob("pid-*")]
    assert len(workers) == 2
    # Of Ray too: the driver started it. Its agents take half a minute to miss a killed parent.
    started = [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if sent == signal.SIGINT or not process.name().endswith("Agent")
    ]
    assert {process.pid for process in started} >= set(workers)
    driver.send_signal(sent)
    told, _ = driver.communicate(timeout=60)
    assert driver.returncode == code, told
    assert ("ended: job: stopped after step" in told) == (sent == signal.SIGINT)
    _, left = psutil.wait_procs(started, timeout=15)
    assert left == [], "processes outlived their driver"
    assert [run.status for run in list_runs(quick_job.tracking)] == [status]
