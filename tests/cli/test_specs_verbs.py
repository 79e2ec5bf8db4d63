"""init and specs: a first spec that runs as it stands, those that come along, and completion."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from rayline import Client, JobSpec, ModelRef
from rayline.cli import run
from rayline.launch.dashboard import ClusterNode
from rayline.launch.drafting import Wishes, draft
from rayline.launch.machines import Found, sum_of
from rayline.planner.model_catalogue import find_shape

REPOSITORY = Path(__file__).resolve().parents[2]
LAPTOP = Found("this machine", 1, 2, 8 * 2**30, 0)
HOPPERS = Found("http://head:8265", 2, 128, 2**40, 16, "H100")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_first_spec_runs_as_it_stands(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    shown = capsys.readouterr().out
    assert "run:  rayline train job.yaml" in shown
    assert shown.count("wrote ") == 3
    text = (empty / "job.yaml").read_text()
    assert text.startswith("# rayline train job.yaml\n# Made for this machine: ")
    assert text.count(" # ") >= 6
    assert run(["train", "job.yaml", "--dry-run"]) == 0
    assert "auto: the planner's choice" in capsys.readouterr().out


def test_the_planners_choice_can_be_written_out(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "mine.yaml", "--plan", "now"]) == 0
    capsys.readouterr()
    job = JobSpec.load("mine.yaml")
    assert not job.plan.auto
    assert job.plan.world_size == min(4, len(os.sched_getaffinity(0)))
    assert run(["plan", "mine.yaml"]) == 0
    assert "memory" in capsys.readouterr().out


def test_nothing_is_replaced_without_force_and_a_dry_run_writes_nothing(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--dry-run"]) == 0
    assert "sequence_tokens:" in capsys.readouterr().out
    assert list(empty.iterdir()) == []
    (empty / "job.yaml").write_text("mine\n")
    assert run(["init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (empty / "job.yaml").read_text() == "mine\n"
    assert run(["init", "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "rayline train job.yaml"
    assert document["text"] == (empty / "job.yaml").read_text()


@pytest.mark.parametrize("found", [LAPTOP, HOPPERS], ids=["laptop", "hoppers"])
@pytest.mark.parametrize("now", [False, True])
def test_a_draft_is_for_what_there_is(found: Found, now: bool) -> None:
    shape = find_shape("meta-llama/Llama-3-8B")
    wishes = Wishes(
        "mine", ModelRef(hub="meta-llama/Llama-3-8B"), "s3://bucket/chats.jsonl", True, now
    )
    if found is LAPTOP and now:
        return  # eight billion parameters do not fit there
    text = draft(found, wishes, shape, "rayline train mine.yaml")
    job = JobSpec.parse(yaml.safe_load(text))
    assert job.resources.device == ("cpu" if found is LAPTOP else "gpu")
    assert job.data.kind == "chat"
    assert job.batch.sequences == 8 * (16 if found is HOPPERS else 2)
    assert job.plan.auto is not now
    if now:
        assert job.plan.world_size == 16
        job.check(shape)


def test_nodes_are_added_up() -> None:
    nodes = [
        ClusterNode("a", True, {"CPU": 8.0, "memory": 2.0**34}),
        ClusterNode("b", False, {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0}),
        ClusterNode("c", False, {"CPU": 64.0, "GPU": 4.0, "accelerator_type:A100": 1.0}),
    ]
    found = sum_of("x", nodes)
    assert (found.nodes, found.cpus, found.gpus, found.gpu_kind) == (3, 136, 12, "H100")
    assert found.text == "3 nodes: 12 x H100, 136 CPUs, 16 GiB"


class Dashboard(http.server.BaseHTTPRequestHandler):
    """As much of Ray's dashboard as tells of nodes."""

    def do_GET(self) -> None:
        node = {"node_id": "a", "is_head_node": True, "state": "ALIVE"}
        node |= {"resources_total": {"CPU": 4.0, "memory": 2.0**33}}
        body = (
            {"ray_version": "2.60.0"}
            if self.path == "/api/version"
            else {"data": {"result": {"result": [node, {**node, "state": "DEAD"}]}}}
        )
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_spec_for_a_cluster_brings_what_a_submit_needs(
    empty: Path, dashboard: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert run(["init", "mine.yaml", "--address", dashboard]) == 0
    shown = capsys.readouterr().out
    assert f"run:  rayline submit mine.yaml --address {dashboard}" in shown
    assert (empty / "jobs" / "train.py").is_file()
    assert f"# Made for {dashboard}: 4 CPUs, 8 GiB." in (empty / "mine.yaml").read_text()


def test_every_shipped_spec_is_listed_with_what_it_is_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["specs", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    files = [
        *REPOSITORY.glob("jobs/specs/*.yaml"),
        *REPOSITORY.glob("serve/*.yaml"),
        *REPOSITORY.glob("tune/*.yaml"),
        *REPOSITORY.glob("cluster/specs/*.yaml"),
    ]
    assert {Path(spec["path"]) for spec in listed} == set(files)
    assert all(len(spec["about"]) > 20 for spec in listed)
    assert run(["specs"]) == 0
    assert "jobs/quickstart" in capsys.readouterr().out


def test_every_shipped_spec_is_valid(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    files = [str(spec.path) for spec in Client().specs()]
    assert run(["specs", "validate", *files]) == 0
    shown = capsys.readouterr().out
    assert shown.count("nothing wrong") == len(files)
    for kind in ("JobSpec", "ServeSpec", "TuneSpec", "ClusterSpec"):
        assert kind in shown


def test_wrong_files_are_told_and_the_right_ones_too(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty / "wrong.yaml").write_text("name: a\nmodel: {hub: a/b}\nstepz: 3\n")
    good = str(REPOSITORY / "serve" / "tiny.yaml")
    assert run(["specs", "validate", "wrong.yaml", good, "--json"]) == 2
    first, second = json.loads(capsys.readouterr().out)
    assert "steps" in first["error"]["fix"]
    assert second["error"] is None


@pytest.mark.parametrize("name", [spec.name for spec in Client().specs()])
def test_a_copy_is_the_same_spec_and_brings_what_it_reads(
    name: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["specs", "copy", name, "mine.yaml"]) == 0
    assert "run: rayline " in capsys.readouterr().out
    spec = next(each for each in Client().specs() if each.name == name)
    assert (empty / "mine.yaml").read_text() == spec.path.read_text()
    if name == "jobs/quickstart":
        assert run(["train", "mine.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize("kind", ["job", "serve", "tune", "cluster"])
def test_a_schema_admits_every_shipped_spec_of_its_kind(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["specs", "schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for spec in Client().specs():
        if spec.kind == kind:
            tree = yaml.safe_load(spec.path.read_text())
            assert [error.message for error in validator.iter_errors(tree)] == [], spec.name


def test_an_installed_wheel_has_them_too(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(REPOSITORY)).build(
        directory=str(tmp_path / "dist"), versions=["standard"]
    )
    with zipfile.ZipFile(wheel) as package:
        names = set(package.namelist())
        package.extractall(tmp_path / "site")
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rayline"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".db")]
    (tmp_path / "home").mkdir()
    script = (
        "import sys; from rayline.cli import run; import rayline; print(rayline.__file__);"
        "sys.exit(run(['specs', 'copy', 'jobs/quickstart', 'a.yaml']) or run(['init', 'b.yaml'])"
        " or run(['plan', 'a.yaml']) or run(['specs', 'list']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "home",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert str(tmp_path / "site") in ended.stdout
    assert (tmp_path / "home" / "examples" / "models" / "tiny" / "config.json").is_file()
    assert ended.stdout.count("jobs/") >= 5


def completed(words: str, empty: Path) -> list[str]:
    """What bash would offer behind these words."""
    ended = subprocess.run(
        [sys.executable, "-c", "from rayline.cli import main; main()"],
        cwd=empty,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "platform"),
            "_RAYLINE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.stdout.split()


def test_a_shell_completes_verbs_options_and_shipped_specs(empty: Path) -> None:
    assert completed("rayline tr", empty) == ["train"]
    assert "--dry-run" in completed("rayline train --d", empty)
    assert completed("rayline specs copy tune/p", empty) == ["tune/pareto", "tune/population"]


def test_completion_is_installed_for_a_shell(empty: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rayline.cli import main; main()",
            "--install-completion",
            "bash",
        ],
        cwd=empty,
        env={
            **os.environ,
            "HOME": str(empty),
            "PYTHONPATH": str(REPOSITORY / "platform"),
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "completion installed" in ended.stdout
    written = "".join(file.read_text() for file in empty.rglob("*") if file.is_file())
    assert "_RAYLINE_COMPLETE" in written
