"""export and import without a gang: what they print, leave and return."""

import json
from pathlib import Path

import pytest

from rayline.cli import run
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec, TrackingSpec
from rayline.spec.job_file import SPEC_FILE
from rayline.tracking import open_run
from support.plain_training import job
from support.stored_checkpoints import store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's spec, and checkpoints of its steps 2 and 3 in run/."""
    folder = tmp_path_factory.mktemp("home")
    write_tiny_model(folder / "model", hidden=64, ffn=96, layers=2)
    spec = job(
        {"data": 2},
        model={"directory": str(folder / "model")},
        output_dir=str(folder / "run"),
        tracking={"uri": f"sqlite:///{folder}/mlflow.db"},
    )
    (folder / "job.yaml").write_text(spec.to_yaml())
    store(spec, step=2)
    store(spec, step=3)
    return folder


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_jobs_folder_is_exported_and_imported_again(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", home / "run", "--to", tmp_path / "hf")
    code, shown, said = answer(capsys, *words, "--dry-run")
    assert code == 0, said
    assert "step 3" in shown
    assert "would be written" in shown
    assert not (tmp_path / "hf").exists()
    code, shown, said = answer(capsys, *words, "--json")
    assert code == 0, said
    outcome = json.loads(shown)
    assert (outcome["step"], outcome["made"], outcome["format"]) == (3, True, "huggingface")
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    code, shown, _ = answer(capsys, *words)
    assert (code, shown.rstrip().endswith("already")) == (0, True)

    universal = tmp_path / "universal"
    step = home / "run" / "checkpoints" / "step-00000002"
    code, _, said = answer(capsys, "export", step, "--to", universal, "--format", "universal")
    assert code == 0, said
    sets = ("--set", f"output_dir={tmp_path}/new", "--set", "batch.sequences=4")
    code, shown, said = answer(capsys, "import", universal, home / "job.yaml", *sets, "--dry-run")
    assert code == 0, said
    assert "would be imported" in shown
    assert not (tmp_path / "new").exists()
    code, shown, said = answer(capsys, "import", universal, home / "job.yaml", *sets)
    assert code == 0, said
    assert "step 2 imported to" in shown
    assert "8 sequences consumed" in shown
    assert "DeepSpeed counted 16 sequences" in shown
    assert (tmp_path / "new" / "checkpoints" / "step-00000002" / "manifest.json").is_file()
    code, _, said = answer(capsys, "import", universal, home / "job.yaml", *sets)
    assert (code, "holds a checkpoint already" in said) == (5, True)


def test_a_run_is_exported_by_its_id(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = TrackingSpec(uri=f"sqlite:///{home}/mlflow.db")
    with open_run(tracking, name="parity", params={}, tags={}) as kept:
        kept.log_text(JobSpec.load(home / "job.yaml").to_yaml(), SPEC_FILE)
    code, shown, said = answer(
        capsys,
        *("export", kept.run_id, "--to", tmp_path / "hf", "--step", "2", "--json"),
        *("--tracking-uri", tracking.uri),
    )
    assert code == 0, said
    assert json.loads(shown)["step"] == 2


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("job.yaml", "--step", "2"), 2, r"--to: missing"),
        (("run/checkpoints/step-00000002", "--step", "3", "--to", "x"), 2, "--step: the folder"),
        (("run", "--step", "9", "--to", "x"), 5, "no checkpoint of this step"),
        (("run", "--to", "run"), 2, "to: holds something else"),
        (("nowhere/run", "--to", "x"), 2, "source: neither a folder, nor a spec"),
        (("model", "--to", "x"), 2, "source: no spec.yaml lies with the checkpoints"),
        (("run", "--to", "x", "--format", "gguf"), 2, "no such choice (found 'gguf')"),
        (("run", "--to", "x", "--format", "universal", "--set", "optim.kind=lion"), 2, "optim"),
    ],
)
def test_what_cannot_be_exported_is_named(
    home: Path,
    words: tuple[str, ...],
    code: int,
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    found, shown, said = answer(capsys, "export", *words)
    assert (found, shown) == (code, "")
    assert problem in said
    assert not (home / "x").exists()


def test_what_is_no_universal_checkpoint_is_not_imported(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("--set", f"output_dir={tmp_path}/new")
    code, _, said = answer(capsys, "import", home / "model", home / "job.yaml", *sets)
    assert (code, "not a universal checkpoint" in said) == (5, True)
    assert not (tmp_path / "new").exists()
