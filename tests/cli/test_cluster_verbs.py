"""rayline cluster: what each verb shows, asks and exits with; nothing here starts anything."""

import json
import re
from pathlib import Path

import pytest

from rayline.cli import run

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "cluster" / "specs"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_plan_shows_nodes_gpus_and_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "plan", "cluster/specs/aws.yaml"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"gpu-l4-spot +g6\.12xlarge \(4 x L4 24 GB\), spot +0 to 2 +\$4\.60", shown)
    assert "GPUs: 0 kept, 16 at most" in shown
    assert "price: $0.40 an hour while idle, $18.81 at most" in shown


def test_plan_as_json_follows_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster", "plan", "cluster/specs/fake.yaml", "--json", "--set", "head.cpus=4"]
    assert run(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gpus"] == {"kept": 0, "most": 6}
    assert document["usd_per_hour"] is None
    assert document["nodes"][0]["machine"] == "4 CPU"


def test_render_writes_every_file_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = sorted(str(path.relative_to(ROOT)) for path in SPECS.glob("*.yaml"))
    assert run(["cluster", "render", *sources, "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("wrote ") == len(sources)
    for source in sources:
        name = Path(source).name
        made = next(path for path in tmp_path.rglob(name))
        kept = ROOT / "cluster" / made.relative_to(tmp_path)
        below = [line for line in made.read_text().splitlines() if not line.startswith("#")]
        assert below == [line for line in kept.read_text().splitlines() if not line.startswith("#")]


def test_render_on_stdout_is_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "render", "cluster/specs/gcp.yaml"]) == 0
    assert capsys.readouterr().out == (ROOT / "cluster" / "gcp.yaml").read_text()


def test_several_specs_need_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster", "render", "cluster/specs/gcp.yaml", "cluster/specs/aws.yaml"]
    assert run(words) == 2
    assert "--into" in capsys.readouterr().err


def test_check_says_place_value_and_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "cluster" / "aws.yaml").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("GPU: 4", "GPU: 8", 1).replace("region: us", "regoin: us"))
    assert run(["cluster", "check", str(file)]) == 2
    shown = capsys.readouterr().out
    assert "available_node_types.gpu-l4.resources.GPU: g6.12xlarge (4 x L4 24 GB) has 4" in shown
    assert "(found 8)" in shown
    assert "to do:   GPU: 4" in shown
    assert "did you mean 'region'?" in shown
    assert run(["cluster", "check", str(file), "--json"]) == 2
    flaws = json.loads(capsys.readouterr().out)[str(file)]
    assert {flaw["kind"] for flaw in flaws} >= {"gpu-count", "unknown-key", "no-region"}


@pytest.mark.parametrize("name", ["aws", "on-premises", "fake", "eks-h100"])
def test_check_takes_specs_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "check", f"cluster/specs/{name}.yaml"]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_up_refuses_what_only_holds_a_place_before_it_asks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["cluster", "up", "cluster/specs/gcp.yaml", "--yes"]) == 2
    assert "provider.project_id: only holds the place" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["up", "down"])
def test_with_nobody_to_ask_yes_must_be_said(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", verb, "cluster/specs/fake.yaml"]) == 2
    assert "nobody is there to be asked" in capsys.readouterr().err


def test_up_dry_run_shows_the_plan_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cluster", "up", "cluster/specs/aws.yaml", "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["up"] is False
    assert document["plan"]["gpus"]["most"] == 16
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "status", "cluster/specs/fake.yaml"]) == 3
    assert "is not up" in capsys.readouterr().err
    assert run(["cluster", "down", "cluster/specs/fake.yaml", "--yes"]) == 0
    assert "was not up" in capsys.readouterr().out


def test_a_misspelt_key_of_a_spec_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text((SPECS / "fake.yaml").read_text().replace("cpus_per_node", "cpu_per_node"))
    assert run(["cluster", "plan", str(file)]) == 2
    assert "did you mean 'cpus_per_node'?" in capsys.readouterr().err


def test_every_verb_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("plan", "render", "check", "up", "down", "status"):
        assert run(["cluster", verb, "--help"]) == 0
        assert "Example: rayline cluster " + verb in capsys.readouterr().out
