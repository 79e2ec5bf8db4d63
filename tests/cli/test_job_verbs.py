"""submit, status, list, logs and stop against a real cluster: the exit code is the job's.

The jobs are scripts of a few lines in the place of jobs/train.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from rayline import launch
from rayline.cli import run
from rayline.cli.processes import free_port
from support.thin import run_thin

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of one head, started and ended by its process group."""
    folder = tmp_path_factory.mktemp("ray")
    port = free_port(0)
    words = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    words += ["--num-cpus", "2", "--port", str(free_port(0)), "--dashboard-port", str(port)]
    words += ["--ray-client-server-port", str(free_port(0))]
    words += ["--dashboard-agent-listen-port", str(free_port(0)), "--temp-dir", str(folder / "r")]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    head = subprocess.Popen(
        words,
        env={
            **outside,
            # Jobs are started as `python`: that has to be this one.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until_it_answers(address, head)
        yield address
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def until_it_answers(address: str, head: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 90
    while True:
        assert head.poll() is None, "the head did not start"
        try:
            httpx.get(f"{address}/api/version", timeout=5)
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline_s, "the dashboard did not answer"
            time.sleep(0.5)


Folder = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """folder(NAME, SCRIPT): the working directory of a job whose whole run is SCRIPT; entered."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    quickstart = (REPOSITORY / "jobs" / "specs" / "quickstart.yaml").read_text()

    def make(name: str, script: str) -> Path:
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / "train.py").write_text(script)
        (tmp_path / "spec.yaml").write_text(
            re.sub("^name: .*", f"name: {name}", quickstart, flags=re.M)
        )
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


def detached(dashboard: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Submit without following; the job's id."""
    assert run(["submit", "spec.yaml", "--address", dashboard, "--detach", "--json", *words]) == 0
    job_id: str = json.loads(capsys.readouterr().out)["job_id"]
    return job_id


def until_printed(dashboard: str, job_id: str, words: str) -> None:
    deadline_s = time.monotonic() + 60
    while words not in launch.logs(job_id, address=dashboard):
        assert time.monotonic() < deadline_s, launch.status(job_id, address=dashboard)
        time.sleep(0.2)


@pytest.mark.ray
def test_a_scripts_own_code_comes_back_and_a_failed_job_is_sent_again(
    dashboard: str, capsys: pytest.CaptureFixture[str], folder: Folder
) -> None:
    folder("three", "print('begun', flush=True)\nraise SystemExit(3)")
    assert run(["submit", "spec.yaml", "--address", dashboard]) == 3
    shown = capsys.readouterr().out
    job_id = shown.split()[1]
    assert shown.splitlines()[-1] == f"{job_id} failed: its process exited with 3"
    assert shown.count("begun") == 1
    (Path.cwd() / "jobs" / "train.py").write_text("import os\nos.kill(os.getpid(), 9)")
    assert run(["submit", "spec.yaml", "--address", dashboard]) == 137
    shown = capsys.readouterr().out
    assert shown.startswith(f"submitted {job_id}-2\n{job_id} failed before\n")
    assert "its process was killed by SIGKILL" in shown.splitlines()[-1]


WRITES_A_SNAPSHOT = """
import signal, sys, time
def end(number, frame):
    time.sleep(4)
    print("snapshot saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(300)
"""
HEARS_NOTHING = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("script", "grace", "how", "saved"),
    [
        (WRITES_A_SNAPSHOT, "60", "ended by itself", True),
        (HEARS_NOTHING, "1", "killed, it had not ended within 1 s", False),
    ],
)
def test_a_stop_lets_a_snapshot_finish_and_ends_what_does_not_end(
    dashboard: str,
    capsys: pytest.CaptureFixture[str],
    folder: Folder,
    script: str,
    grace: str,
    how: str,
    saved: bool,
) -> None:
    folder(f"stop-{grace}", script)
    job_id = detached(dashboard, capsys, "--grace", grace)
    until_printed(dashboard, job_id, "ready")
    assert run(["stop", job_id, "--address", dashboard]) == 0
    shown = capsys.readouterr().out
    assert f"{job_id} may take {grace} s to end by itself" in shown
    assert f"{job_id} stopped: {how}" in shown
    assert run(["logs", job_id, "--follow", "--address", dashboard]) == 130
    captured = capsys.readouterr()
    assert ("snapshot saved" in captured.out) is saved
    assert "was stopped before its end" in captured.err


WAITS_TO_BE_TOLD = """
import os, pathlib, time
print("token", os.environ.get("A_TOKEN"), "other", os.environ.get("ANOTHER"), flush=True)
while not pathlib.Path({file!r}).exists():
    time.sleep(0.1)
print("done", flush=True)
"""


@pytest.mark.ray
def test_two_submits_of_one_spec_are_one_job(
    dashboard: str,
    capsys: pytest.CaptureFixture[str],
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("sign") / "go"
    folder("twice", WAITS_TO_BE_TOLD.format(file=str(file)))
    monkeypatch.setenv("A_TOKEN", "of-mine")
    monkeypatch.setenv("ANOTHER", "stays")
    job_id = detached(dashboard, capsys, "--env", "A_TOKEN")
    assert detached(dashboard, capsys) == job_id
    until_printed(dashboard, job_id, "token of-mine other None")
    file.write_text("")
    assert run(["submit", "spec.yaml", "--address", dashboard]) == 0
    shown = capsys.readouterr().out
    assert f"as {job_id}, which is followed; --again" in shown.splitlines()[0]
    assert shown.count("done\n") == 1
    assert run(["submit", "spec.yaml", "--address", dashboard, "--again"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"submitted {job_id}-2\n{job_id} succeeded before\n")
    assert run(["list", "--address", dashboard, "--json"]) == 0
    listed = [job["job_id"] for job in json.loads(capsys.readouterr().out)]
    assert [each for each in listed if each.startswith("twice-")] == [f"{job_id}-2", job_id]


PRINTS = """
import time
for number in range(40):
    print("line", number, flush=True)
    time.sleep(0.1)
print("the last words, without an end of line", end="", flush=True)
raise SystemExit(7)
"""


@pytest.mark.ray
def test_a_connection_that_is_cut_loses_no_line_and_repeats_none(
    dashboard: str, capsys: pytest.CaptureFixture[str], folder: Folder
) -> None:
    folder("cut", PRINTS)
    job_id = detached(dashboard, capsys)
    with cut_again_and_again(dashboard) as (address, cuts):
        code = run(["logs", job_id, "--follow", "--address", address])
    shown = capsys.readouterr().out
    assert len(cuts) >= 2
    assert code == 7, shown
    assert re.findall(r"^line (\d+)$", shown, re.M) == [str(number) for number in range(40)]
    assert shown.count("the last words") == 1


@contextmanager
def cut_again_and_again(dashboard: str) -> Iterator[tuple[str, list[float]]]:
    """A way to the dashboard on which every connection breaks within two seconds; the times of the
    breaks."""
    target = ("127.0.0.1", int(dashboard.rpartition(":")[2]))
    cuts: list[float] = []
    alive: list[socket.socket] = []
    over = threading.Event()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(target)
                alive.extend([near, far])
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def cut() -> None:
        while not over.wait(1.5):
            cuts.append(time.monotonic())
            while alive:
                with suppress(OSError):
                    alive.pop().shutdown(socket.SHUT_RDWR)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        for act, arguments in ((accept, (listener,)), (cut, ())):
            threading.Thread(target=act, args=arguments, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", cuts
        over.set()


@pytest.mark.ray
def test_what_ray_job_submit_sends_is_watched_as_well(
    dashboard: str, capsys: pytest.CaptureFixture[str], folder: Folder
) -> None:
    folder("plain", "")
    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--no-wait"]
    told = subprocess.run(
        [*ray, "--address", dashboard, "--", "python", "-c", "print('hello'); raise SystemExit(5)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"raysubmit_\w+", told.stdout)
    assert found is not None
    assert run(["logs", found[0], "--follow", "--address", dashboard]) == 5
    assert "hello" in capsys.readouterr().out
    assert run(["status", found[0], "--address", dashboard]) == 0
    assert "its process exited with 5" in capsys.readouterr().out


@pytest.mark.ray
def test_the_thin_core_sends_and_watches_a_job(dashboard: str, folder: Folder) -> None:
    home = folder("thin", "print('begun', flush=True)\nraise SystemExit(3)")
    at = ["--address", dashboard]
    sent = run_thin([["submit", "spec.yaml", *at], ["list", *at], ["init", "a.yaml", *at]], home)
    assert sent.stdout.strip().splitlines()[-1] == "codes 3 0 0", sent.stderr
    job_id = sent.stdout.split()[1]
    assert sent.stdout.count("begun") == 1
    assert "2 CPUs" in (home / "a.yaml").read_text()
    watched = run_thin(
        [["status", job_id, *at], ["logs", job_id, "--follow", *at], ["stop", job_id, *at]], home
    )
    assert watched.stdout.strip().splitlines()[-1] == "codes 0 3 0", watched.stderr
    assert "its process exited with 3" in watched.stdout


@pytest.mark.ray
def test_the_doctor_measures_a_cluster_through_its_dashboard(
    dashboard: str, capsys: pytest.CaptureFixture[str], folder: Folder
) -> None:
    folder("unused", "")
    run(["doctor", "--probe", "--address", dashboard, "--json"])
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["ray on the nodes"]["level"] == "ok", found
    assert found["python on the nodes"]["text"].endswith(", as here")
    assert "TFLOP/s in fp32" in found["matmul"]["text"]


def test_a_working_directory_that_is_too_large_is_refused_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], folder: Folder
) -> None:
    home = folder("large", "")
    noise = os.urandom(10 * 2**20)
    for name, times in {"data/weights.bin": 15, "video.mp4": 5}.items():
        (home / name).parent.mkdir(exist_ok=True)
        with (home / name).open("wb") as file:
            for _ in range(times):
                file.write(noise)
    # Nothing listens there: it is not asked.
    assert run(["submit", "spec.yaml", "--address", "http://127.0.0.1:9"]) == 2
    told = capsys.readouterr().err
    assert "200.0 MiB in " in told
    assert "the largest: data/weights.bin 150.0 MiB, video.mp4 50.0 MiB" in told
    assert ".rayignore" in told


@pytest.mark.ray
def test_a_job_that_fails_fails_here_with_its_own_code(
    dashboard: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["submit", "jobs/specs/quickstart.yaml", "--address", dashboard]
    code = run([*words, "--set", "model={registry: nobody@latest}"])
    shown = capsys.readouterr().out
    assert code == 2, shown
    job_id = shown.split()[1]
    assert "model.registry: " in shown
    assert f"{job_id} failed" in shown

    assert run(["status", "--address", dashboard, "--json"]) == 0
    newest, *_ = json.loads(capsys.readouterr().out)
    assert (newest["job_id"], newest["state"], newest["exit_code"]) == (job_id, "failed", 2)

    assert run(["logs", job_id, "--address", dashboard]) == 0
    assert "model.registry: " in capsys.readouterr().out

    assert run(["stop", "no-such-job", "--address", dashboard]) == 2
    assert "no such job" in capsys.readouterr().err


def test_a_dashboard_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--address", "http://127.0.0.1:9"]) == 3
    assert "cannot be reached" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_sends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["jobs/specs/tiny-3d.yaml", "--address", "http://127.0.0.1:9", "--dry-run"]
    assert run(["submit", *words]) == 0
    assert "data 2 x tensor 2 x pipeline 2 = 8 workers" in capsys.readouterr().out
