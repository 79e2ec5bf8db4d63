"""Bad input through the real command line: the message says what is wrong and what to do, the exit
code says which kind it is, no traceback is shown, and nothing is left running."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from rayline.cli import run

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "examples" / "models" / "tiny"
Command = Callable[[list[str], Path], tuple[int, str, str]]
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


def job(folder: Path, **changes: object) -> Path:
    """A good job below `folder`, with some of its top-level keys changed."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(CHAT) + "\n" for _ in range(8)))
    tree = {
        "name": "bad",
        "model": {"directory": str(TINY)},
        "init": "random",
        "steps": 2,
        "data": {"kind": "chat", "files": [str(data)], "sequence_tokens": 32},
        "batch": {"sequences": 4},
        "optim": {"lr": 1e-3},
        "resources": {"device": "cpu", "cpus_per_worker": 0.5, "placement_timeout_s": 20},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "output_dir": str(folder / "run"),
    } | changes
    return written(folder / "job.yaml", yaml.safe_dump(tree))


def deployment(folder: Path, model: dict[str, str], port: int = 8000) -> Path:
    tree = {
        "name": "bad",
        "model": model,
        "device": "cpu",
        "gateway": {"port": port},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return written(folder / "serve.yaml", yaml.safe_dump(tree))


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def with_data(folder: Path, text: str) -> Path:
    spec = job(folder)
    (folder / "data.jsonl").write_text(text)
    return spec


@dataclass(frozen=True)
class Case:
    """One mistake: the command line that makes it, and what must be answered."""

    name: str
    words: Callable[[Path], list[str]]
    exit_code: int
    says: list[str] = field(default_factory=list)


def train(*sets: str, **changes: object) -> Callable[[Path], list[str]]:
    overrides = [word for text in sets for word in ("--set", text)]
    return lambda folder: ["train", str(job(folder, **changes)), *overrides]


CASES = [
    Case(
        "batch against world size",
        train("plan.data=2", "batch.sequences=5"),
        2,
        ["batch.sequences", "5", "a multiple of 2", "--set batch.sequences=4"],
    ),
    Case(
        "heads not divisible",
        train("plan.tensor=3"),
        2,
        ["plan.tensor", "3", "4 attention heads", "allowed: 1, 2, 4"],
    ),
    Case(
        "heads not divisible among the ranks of a sequence",
        train("plan.tensor=4", "plan.context=2"),
        2,
        ["plan.context", "2", "1 attention heads of a tensor rank", "allowed: 1"],
    ),
    Case(
        "more stages than layers",
        train("plan.pipeline=5", "plan.microbatches=5", "batch.sequences=5"),
        2,
        ["plan.pipeline", "5", "4 layers", "1..4"],
    ),
    Case(
        "fewer microbatches than stages",
        train("plan.pipeline=2"),
        2,
        ["plan.microbatches", "2 or more", "--set plan.microbatches=2"],
    ),
    Case(
        "experts of a dense model",
        train("plan.data=2", "plan.expert=2"),
        2,
        ["plan.expert", "dense", "--set plan.expert=1"],
    ),
    Case(
        "routers of a dense model",
        train("objective.router_aux_loss=0.01"),
        2,
        ["objective.router_aux_loss", "dense", "--set objective.router_aux_loss=0"],
    ),
    Case(
        "full experts of a dense model",
        train("objective.expert_capacity_factor=1.25"),
        2,
        ["objective.expert_capacity_factor", "dense", "1.25", "expert_capacity_factor=null"],
    ),
    Case(
        "deepspeed with tensor",
        train("engine=deepspeed", "plan.tensor=2"),
        2,
        ["engine deepspeed", "native"],
    ),
    Case("a misspelt key", train(stesp=3), 2, ["stesp", "unknown key", "did you mean 'steps'?"]),
    Case(
        "a misspelt key below another",
        train("optim.lrr=1"),
        2,
        ["optim.lrr", "unknown key", "did you mean 'lr'?"],
    ),
    Case("a value of another type", train("steps=many"), 2, ["steps", "many", "integer"]),
    Case("a value out of range", train("optim.lr=-1"), 2, ["optim.lr", "-1", "greater than 0"]),
    Case("--set without =", train("optim.lr"), 2, ["--set", "optim.lr", "a.b=value"]),
    Case(
        "--set below a value",
        train("steps.more=1"),
        2,
        ["steps.more", "is a value, not a section"],
    ),
    Case("--set with torn YAML", train("data.files=[a"), 2, ["--set data.files", "[a"]),
    Case(
        "a missing data file",
        train("data.files=[nowhere.jsonl]"),
        2,
        ["data.files[0]", "no such file", "nowhere.jsonl", "working directory"],
    ),
    Case(
        "an address of a kind that nobody knows",
        train("data.files=['nosuch://bucket/a.jsonl']"),
        2,
        ["data.files[0]", "nosuch://bucket/a.jsonl", "can't be read here", "fsspec"],
    ),
    Case(
        "files and a mixture",
        train("data.mixture=[{files: [a.jsonl]}]"),
        2,
        ["data", "exactly one of files and mixture"],
    ),
    Case(
        "a source of no weight",
        train("data.files=null", "data.mixture=[{files: [a.jsonl], weight: 0}]"),
        2,
        ["data.mixture", "weight", "0", "greater than 0"],
    ),
    Case(
        "a packing that is none",
        train("data.packing=tight"),
        2,
        ["data.packing", "tight", "allowed: dense, documents"],
    ),
    Case(
        "held out by files and by a fraction",
        train("evaluation.every_steps=1", "evaluation.fraction=0.1", "evaluation.files=[a.jsonl]"),
        2,
        ["evaluation", "exactly one of files and fraction"],
    ),
    Case(
        "a parquet file that is none",
        lambda folder: [
            "train",
            str(job(folder)),
            "--set",
            f"data.files=[{written(folder / 'a.parquet', 'PAR1 and no more')}]",
        ],
        2,
        ["data.files[0]", "a.parquet", "can't be read as parquet"],
    ),
    Case(
        "an empty data file",
        lambda folder: ["train", str(with_data(folder, ""))],
        2,
        ["data.files[0]", "data.jsonl", "is empty"],
    ),
    Case(
        "a torn line of JSON",
        lambda folder: ["train", str(with_data(folder, json.dumps(CHAT) + '\n{"messages": [{"ro'))],
        2,
        ["data.jsonl", "line 2", "is not JSON", "one JSON object on each line"],
    ),
    Case(
        "a chat without an answer",
        lambda folder: [
            "train",
            str(with_data(folder, '{"messages": [{"role": "user", "content": "Hi"}]}\n')),
        ],
        2,
        ["line 1", "no assistant speaks"],
    ),
    Case(
        "a model folder without weights",
        train("init=weights"),
        2,
        ["model", "no weights", "*.safetensors", "--set init=random"],
    ),
    Case(
        "a model folder that is none",
        lambda folder: ["train", str(job(folder, model={"directory": str(folder)}))],
        2,
        ["model", "config.json", "Hugging Face"],
    ),
    Case(
        "no such model folder",
        train(model={"directory": "no/such/model"}),
        2,
        ["model.directory", "no such folder", "no/such/model", "rayline models tiny"],
    ),
    Case(
        "two models at once",
        train("model.hub=a/b"),
        2,
        ["model", "exactly one of hub, directory, run, registry"],
    ),
    Case(
        "a registry alias that does not exist",
        lambda folder: ["deploy", str(deployment(folder, {"registry": "bot@champion"}))],
        2,
        ["model.registry", "bot@champion", "no model is registered"],
    ),
    Case(
        "a registry reference without an alias",
        lambda folder: ["deploy", str(deployment(folder, {"registry": "bot"}))],
        2,
        ["model", "name@alias"],
    ),
    Case("no spec", lambda folder: ["train", str(folder / "no.yaml")], 2, ["no such spec file"]),
    Case(
        "torn YAML",
        lambda folder: ["train", str(written(folder / "torn.yaml", "name: [a\nsteps: 3\n"))],
        2,
        ["torn.yaml, line 2", "not readable as YAML"],
    ),
    Case(
        "YAML without keys",
        lambda folder: ["train", str(written(folder / "list.yaml", "- a\n- b\n"))],
        2,
        ["list.yaml", "no mapping"],
    ),
    Case(
        "a key twice",
        lambda folder: ["train", str(written(folder / "twice.yaml", "name: a\nname: b\n"))],
        2,
        ["twice.yaml, line 2", "'name' stands twice"],
    ),
    Case(
        "a search over a field that is none",
        lambda folder: [
            "tune",
            str(
                written(
                    folder / "tune.yaml",
                    yaml.safe_dump(
                        {
                            "name": "bad",
                            "job": yaml.safe_load(job(folder).read_text()),
                            "space": {"optim.rate": {"low": 0.1, "high": 1.0}},
                            "trials": 2,
                        }
                    ),
                )
            ),
        ],
        2,
        ["space.optim.rate", "no field of the job"],
    ),
    Case(
        "nothing to export",
        lambda folder: ["export", str(job(folder))],
        5,
        ["run/checkpoints", "no checkpoint to export", "train the job first"],
    ),
    Case(
        "nobody to chat with",
        lambda folder: ["chat", "Hi", "--url", "http://127.0.0.1:9/v1"],
        6,
        ["url", "nobody answers there", "http://127.0.0.1:9/v1", "rayline deploy"],
    ),
    Case(
        "a model address without its kind",
        lambda folder: ["chat", "Hi", "--here", "bot@latest"],
        2,
        ["model", "bot@latest", "registry:NAME@ALIAS"],
    ),
    Case(
        "a tracking store that cannot be reached",
        lambda folder: ["runs", "--tracking-uri", "http://127.0.0.1:9"],
        2,
        ["tracking.uri", "http://127.0.0.1:9"],
    ),
    Case(
        "a run that does not exist",
        lambda folder: ["runs", "0a1b", "--tracking-uri", f"sqlite:///{folder}/none.db"],
        2,
        ["run", "0a1b", "does not exist"],
    ),
]


def check(case: Case, code: int, shown: str, said: str) -> None:
    assert code == case.exit_code, said
    for words in case.says:
        assert words in said, f"{words!r} is not in:\n{said}"
    assert "Traceback" not in shown + said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_before_anything_starts(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = case.words(tmp_path)
    before = set(psutil.Process().children(recursive=True))
    code = run(words)
    captured = capsys.readouterr()
    check(case, code, captured.out, captured.err)
    assert set(psutil.Process().children(recursive=True)) <= before

    assert run([*words, "--json"]) == case.exit_code
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == case.exit_code
    assert document["problem"]


@pytest.fixture(scope="module")
def trained(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the good job has run and left its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    code, _, said = command(["train", str(job(folder))], folder)
    assert code == 0, said
    return folder


@pytest.fixture
def resumed(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, whose checkpoint a test may spoil."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


@pytest.mark.ray
def test_more_gpus_on_a_node_than_any_node_has(tmp_path: Path, command: Command) -> None:
    words = ["train", str(job(tmp_path)), "--set", "resources.device=gpu", "--set", "plan.tensor=2"]
    code, shown, said = command(words, tmp_path)
    check(Case("", lambda _: [], 3, ["2", "GPU", "node"]), code, shown, said)


@pytest.mark.ray
def test_a_checkpoint_of_another_model(resumed: Path, command: Command) -> None:
    other = resumed / "other-model"
    assert (
        run(["models", "tiny", str(other), "--layers", "2", "--hidden", "64", "--heads", "2"]) == 0
    )
    code, shown, said = command(
        ["train", str(job(resumed, steps=3)), "--set", f"model.directory={other}"], resumed
    )
    check(Case("", lambda _: [], 5, ["checkpoints", "another model"]), code, shown, said)


@pytest.mark.ray
def test_a_corrupted_shard(resumed: Path, command: Command) -> None:
    (shard,) = (resumed / "run" / "checkpoints").rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    code, shown, said = command(["train", str(job(resumed, steps=3))], resumed)
    check(Case("", lambda _: [], 5, ["no intact checkpoint", shard.name]), code, shown, said)


@pytest.mark.serve
def test_a_port_that_is_taken(tmp_path: Path, command: Command) -> None:
    model = tmp_path / "model"
    assert run(["models", "tiny", str(model)]) == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        spec = deployment(tmp_path, {"directory": str(model)}, port)
        code, shown, said = command(["deploy", str(spec)], tmp_path)
    says = ["gateway.port", str(port), "another program listens there", "--set gateway.port="]
    check(Case("", lambda _: [], 6, says), code, shown, said)
