"""train, export, runs and models with a real gang: what they print, leave and return."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayline.errors import SpecError
from rayline.sdk import Client
from rayline.spec import TrackingSpec
from rayline.tracking import list_runs, read_run

if TYPE_CHECKING:
    from conftest import RunningCommand

REPOSITORY = Path(__file__).resolve().parents[2]
Command = Callable[[list[str], Path], tuple[int, str, str]]
StartCommand = Callable[[list[str], Path], "RunningCommand"]

pytestmark = pytest.mark.ray


def quickstart(folder: Path, *sets: str) -> list[str]:
    """The bundled job, on the bundled model and data, leaving everything in `folder`."""
    overrides = [
        f"model.directory={REPOSITORY}/examples/models/tiny",
        f"data.files=[{REPOSITORY}/examples/data/text.jsonl]",
        f"output_dir={folder}/run",
        *sets,
    ]
    words = [word for text in overrides for word in ("--set", text)]
    return [str(REPOSITORY / "jobs" / "specs" / "quickstart.yaml"), *words]


def test_a_stopped_job_is_exported_and_found_again(tmp_path: Path, command: Command) -> None:
    spec = quickstart(tmp_path, "steps=20", "stop_after_step=4")
    code, shown, said = command(["train", *spec], tmp_path)
    assert code == 0, said
    assert re.search(r"^step 4/4  loss \d", shown, re.MULTILINE)
    assert "not exported" in shown
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")

    code, shown, said = command(["export", *spec, "--json"], tmp_path)
    assert code == 0, said
    outcome = json.loads(shown)
    assert (outcome["result"]["first_step"], outcome["result"]["last_step"]) == (5, 4)
    assert outcome["result"]["export"]["step"] == 4
    assert outcome["model"]["registry"] == "quickstart@latest"
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()

    code, shown, _ = command(["runs", "--json"], tmp_path)
    runs = json.loads(shown)
    assert code == 0
    assert [run["status"] for run in runs] == ["finished", "finished"]
    assert outcome["run_id"] in {run["run_id"] for run in runs}

    code, shown, _ = command(["models"], tmp_path)
    assert code == 0
    assert re.search(rf"^quickstart +1 .*{outcome['run_id']}$", shown, re.MULTILINE)


def test_interrupted_it_keeps_a_checkpoint_leaves_no_process_and_is_resumed_by_its_id(
    tmp_path: Path, start_command: StartCommand, command: Command
) -> None:
    running = start_command(["train", *quickstart(tmp_path, "steps=100000")], tmp_path)
    assert running.process.stdout is not None
    for line in running.process.stdout:
        if line.startswith("step 1/"):
            break
    running.process.send_signal(signal.SIGINT)
    code, _, said = running.finish()
    assert code == 130, said
    assert "stopped after step" in said
    assert "Traceback" not in said
    assert list((tmp_path / "run" / "checkpoints").glob("*/manifest.json"))
    (folder,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    last = int(folder.name.removeprefix("step-"))

    tracking = TrackingSpec(uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = list_runs(tracking)
    assert run.status == "interrupted"
    sets = ["--set", f"steps={last + 2}", "--json"]
    code, shown, said = command(["resume", run.run_id, *sets], tmp_path)
    assert code == 0, said
    outcome = json.loads(shown)
    assert outcome["run_id"] == run.run_id
    assert (outcome["result"]["first_step"], outcome["result"]["last_step"]) == (last + 1, last + 2)
    record = read_run(tracking, run.run_id)
    assert record.summary.status == "finished"
    assert [point.step for point in record.metrics["loss"]] == list(range(1, last + 3))
    with pytest.raises(SpecError, match="it is finished"):
        Client(tracking=tracking).resumed_job(run.run_id)
