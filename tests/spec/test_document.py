"""From YAML and overrides to a validated spec, and what is said of what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.spec import JobSpec, ModelRef, TuneSpec

JOB: dict[str, Any] = {
    "name": "first",
    "model": {"directory": "models/tiny"},
    "steps": 10,
    "data": {"kind": "text", "files": ["a.jsonl", "b.txt"], "sequence_tokens": 64},
    "batch": {"sequences": 8},
    "optim": {"lr": 1e-3},
}
TUNE: dict[str, Any] = {
    "name": "search",
    "job": JOB,
    "trials": 2,
    "space": {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
}
YAML = """\
name: first
model: {directory: models/tiny}
steps: 10
data:
  kind: text
  files: [a.jsonl, b.txt]
  sequence_tokens: 64
batch: {sequences: 8}
optim: {lr: 1e-3}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "spec.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_gives_the_spec(tmp_path: Path) -> None:
    assert JobSpec.load(write(tmp_path, YAML)) == JobSpec.parse(JOB)


@given(
    lr=st.floats(1e-8, 10.0),
    steps=st.integers(1, 10**9),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    file=st.text(min_size=1),
)
def test_to_yaml_is_read_back_to_the_same_spec(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps: int, name: str, file: str
) -> None:
    spec = JobSpec.parse(JOB).changed(
        {"optim.lr": lr, "steps": steps, "name": name, "data.files": [file]}
    )
    again = JobSpec.load(write(tmp_path_factory.mktemp("yaml"), spec.to_yaml()))

    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("steps=7", "steps", 7),
        ("plan.tensor=2", "plan.tensor", 2),
        ("checkpoint.every_steps=null", "checkpoint.every_steps", None),
        ("optim.betas=[0.8, 0.99]", "optim.betas", "[0.8, 0.99]"),
        ("output_dir=runs/a=b", "output_dir", "runs/a=b"),
    ],
)
def test_overrides_are_put_at_their_place(
    tmp_path: Path, override: str, field: str, value: object
) -> None:
    assert JobSpec.load(write(tmp_path, YAML), [override]).flat()[field] == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert JobSpec.load(write(tmp_path, YAML), ["steps=3", "steps=4"]).steps == 4


@pytest.mark.parametrize(
    ("overrides", "subject", "message"),
    [
        (["steps"], "--set", "a.b=value"),
        (["=3"], "--set", "a.b=value"),
        (["steps=[1"], "--set steps", "not YAML"),
        (["steps.more=1"], "steps.more", "nothing can be set below"),
        (["optim.lrr=1"], "optim.lrr", "did you mean 'lr'"),
        (["optimm.lr=1"], "optimm", "did you mean 'optim'"),
        (["optim.lr=fast"], "optim.lr", "found 'fast'"),
        (["optim.lr=-1"], "optim.lr", "greater than 0"),
        (["optim.lr=.inf"], "optim.lr", "finite"),
        (["data.kind=chats"], "data.kind", "allowed: chat, text"),
        (["data.files=[]"], "data.files", "at least 1"),
        (["name=../etc"], "name", "found '../etc'"),
        (["stop_after_step=11"], "spec.yaml", "lies after steps 10"),
        (["engine=deepspeed", "plan.tensor=2"], "spec.yaml", "engine: native"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, overrides: list[str], subject: str, message: str
) -> None:
    with pytest.raises(SpecError) as refused:
        JobSpec.load(write(tmp_path, YAML), overrides)

    assert refused.value.subject.endswith(subject)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "subject", "message"),
    [
        ("steps: 1\nsteps: 2\n", "spec.yaml, line 2", "'steps' stands twice"),
        ("data:\n  kind: text\n  kind: chat\n", "spec.yaml, line 3", "'kind' stands twice"),
        ("a: [1\nb: 2\n", "spec.yaml, line 2", "not readable as YAML"),
        ("? [a, b]\n: 1\n", "spec.yaml, line 1", "not readable as YAML"),
        ("- 1\n", "spec.yaml", "no mapping"),
        ("", "spec.yaml", "is empty"),
        ("name: x\n", "model", "required"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_with_its_line(
    tmp_path: Path, text: str, subject: str, message: str
) -> None:
    with pytest.raises(SpecError) as refused:
        JobSpec.load(write(tmp_path, text))

    assert refused.value.subject.endswith(subject)
    assert message in str(refused.value)


def test_a_missing_file_and_one_that_is_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such spec file"):
        JobSpec.load(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: h\xe9ron".encode("latin-1"))
    with pytest.raises(SpecError, match="not UTF-8"):
        JobSpec.load(tmp_path / "latin.yaml")


def test_an_unknown_key_inside_a_mapping_of_models_is_refused() -> None:
    space = {"optim.lr": {"low": 1, "high": 2, "logg": True}}
    with pytest.raises(SpecError) as refused:
        TuneSpec.parse({**TUNE, "space": space})

    assert refused.value.subject == "space.optim.lr.logg"
    assert "did you mean 'log'" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"optim.speed": {"low": 1, "high": 2}}}, "no field of the job"),
        ({"space": {"optim.lr": {"low": 2, "high": 1}}}, "not below high"),
        ({"space": {"optim.lr": {"low": 0, "high": 1, "log": True}}}, "low above 0"),
        ({"space": {"optim.lr": {"low": 1, "high": 2, "choices": [1]}}}, "either low and high"),
        ({"space": {"optim.lr": {"choices": []}}}, "choices is empty"),
        ({"space": {}}, "at least 1"),
        ({"search": "grid"}, "needs points or choices"),
        ({"search": "bohb", "stopping": "asha"}, "stops by hyperband"),
        ({"stopping": "asha", "asha": {}}, "give one of them"),
        ({"stopping": "halving"}, "no such kind"),
        ({"objectives": ["loss", "loss"]}, "a metric twice"),
        ({"objectives": ["accuracy"]}, "accuracy"),
        ({"objectives": ["price"]}, "price_per_worker_hour is needed"),
        ({"budget": {"money": 5.0}}, "price_per_worker_hour is needed"),
        ({"budget": {"hours": 5.0}}, "unknown key"),
        ({"search": "cmaes", "objectives": ["loss", "memory_gib"]}, "one objective"),
        ({"search": "random", "warm_start": ["before"]}, "learns from nothing"),
        ({"population": {"every_steps": 10}}, "no second generation"),
        ({"population": {"every_steps": 5, "factors": [1.0]}}, "not 1"),
        ({"population": {"every_steps": 5}, "stopping": "asha"}, "leave out stopping"),
        ({"population": {"every_steps": 5}, "trials": 1}, "2 trials or more"),
        (
            {"population": {"every_steps": 5}, "space": {"plan.data": {"choices": [1, 2]}}},
            "cannot change while a model is trained",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TuneSpec.parse({**TUNE, **change})


def test_older_names_of_a_search_mean_what_they_did() -> None:
    older = TuneSpec.parse({**TUNE, "search": "optuna", "asha": {"grace_steps": 2}})
    newer = TuneSpec.parse(
        {**TUNE, "search": "tpe", "stopping": {"kind": "asha", "grace_steps": 2}}
    )
    assert older.search == newer.search
    assert older.rule == newer.rule
    assert TuneSpec.parse({**TUNE, "stopping": "none"}).rule is None
    assert TuneSpec.parse(older.model_dump(mode="json")) == older


def test_a_goal_is_short_for_its_metric() -> None:
    search = TuneSpec.parse(
        {**TUNE, "objectives": [{"metric": "loss", "goal": "min"}, "tokens_per_s", "memory_gib"]}
    )
    assert [goal.sign for goal in search.goals] == [1.0, -1.0, 1.0]
    assert [goal.metric for goal in TuneSpec.parse(TUNE).goals] == ["loss"]


def test_fingerprints_tell_specs_apart() -> None:
    job = JobSpec.parse(JOB)
    reordered = JobSpec.parse(dict(reversed(JOB.items())))

    assert job.fingerprint() == reordered.fingerprint()
    assert job.fingerprint() != job.changed({"seed": 1}).fingerprint()


def test_flat_names_every_leaf_once() -> None:
    flat = JobSpec.parse(JOB).flat()

    assert flat["model.directory"] == "models/tiny"
    assert flat["data.files"] == '["a.jsonl", "b.txt"]'
    assert not any(isinstance(value, dict | list) for value in flat.values())


def test_a_spec_is_frozen() -> None:
    job = JobSpec.parse(JOB)
    with pytest.raises(ValueError, match="frozen"):
        job.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["hub:org/name", "directory:models/x", "run:0a1b", "registry:bot@champion"]
)
def test_the_short_form_of_a_model_reads_back(text: str) -> None:
    assert str(ModelRef.from_text(text)) == text


@pytest.mark.parametrize("text", ["", "models/x", "hub:", "folder:x", "registry:bot", ":x"])
def test_what_is_no_model_address_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        ModelRef.from_text(text)


@pytest.mark.parametrize(
    ("tree", "found"), [({}, "none"), ({"hub": "a/b", "run": "1"}, "hub, run")]
)
def test_a_model_has_exactly_one_address(tree: dict[str, str], found: str) -> None:
    with pytest.raises(SpecError, match=f"exactly one of .* not {found}"):
        ModelRef.parse(tree)
