"""When a run is measured, which steps are traced, and what is refused of both."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.spec import (
    EvalReport,
    EvaluationSpec,
    JobSpec,
    ProfileSpec,
    StepParts,
    profile_overrides,
)

JOB: dict[str, Any] = {
    "name": "measured",
    "model": {"directory": "models/tiny"},
    "steps": 20,
    "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 64},
    "batch": {"sequences": 8},
    "optim": {"lr": 1e-3},
}


@pytest.mark.parametrize(
    ("at_start", "steps"), [(True, [0, 4, 8, 10]), (False, [4, 8, 10])], ids=["start", "no start"]
)
def test_evaluations_are_due_on_schedule_and_after_the_last_step(
    at_start: bool, steps: list[int]
) -> None:
    spec = EvaluationSpec(files=["b.txt"], every_steps=4, at_start=at_start)
    assert [step for step in range(11) if spec.is_due(step, 10)] == steps


def test_held_out_files_are_read_as_the_training_files_are() -> None:
    job = JobSpec.parse(JOB | {"evaluation": {"files": ["b.txt"], "every_steps": 5}})
    assert job.evaluation_data == job.data.model_copy(update={"files": ["b.txt"]})
    assert JobSpec.parse(JOB).evaluation_data is None
    mixed = job.changed({"data.files": None, "data.mixture": [{"files": ["c.txt"]}]})
    assert mixed.evaluation_data == job.evaluation_data
    assert (job.held_out_fraction, mixed.held_out_fraction) == (0.0, 0.0)


def test_a_fraction_is_held_out_of_the_training_data() -> None:
    job = JobSpec.parse(JOB | {"evaluation": {"fraction": 0.02, "every_steps": 5}})
    assert job.evaluation_data == job.data
    assert job.held_out_fraction == 0.02


def test_a_run_is_neither_measured_nor_traced_unless_asked() -> None:
    job = JobSpec.parse(JOB)
    assert (job.evaluation, job.profile) == (None, None)


@given(first=st.integers(1, 10**6), more=st.integers(0, 10**6), step=st.integers(1, 10**7))
def test_the_short_form_names_the_steps(first: int, more: int, step: int) -> None:
    last = first + more
    job = JobSpec.parse(JOB | {"steps": 10**7})
    assert profile_overrides(f"{first}:{last}") == [
        f"profile.first_step={first}",
        f"profile.last_step={last}",
    ]
    traced = job.changed({"profile.first_step": first, "profile.last_step": last}).profile
    assert traced == ProfileSpec(first_step=first, last_step=last)
    assert traced.holds(step) == (first <= step <= last)


@pytest.mark.parametrize("text", ["", "10", "10:", ":15", "10-15", "a:b", "-1:3", "1:2:3", "1.5:2"])
def test_what_names_no_steps_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"(?s)--profile: does not name steps.*FIRST:LAST"):
        profile_overrides(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"profile.first_step": 5, "profile.last_step": 4}, "lies before first_step 5"),
        ({"profile.first_step": 21, "profile.last_step": 22}, "lies after steps 20"),
        ({"profile.first_step": 0, "profile.last_step": 2}, "greater than or equal to 1"),
        ({"evaluation.files": [], "evaluation.every_steps": 5}, "evaluation.files"),
        ({"evaluation.files": ["b.txt"]}, r"evaluation\.every_steps"),
        ({"evaluation.every_steps": 5}, "evaluation: give exactly one of files and fraction"),
        (
            {"evaluation.every_steps": 5, "evaluation.files": ["b"], "evaluation.fraction": 0.1},
            "evaluation: give exactly one of files and fraction",
        ),
        ({"evaluation.every_steps": 5, "evaluation.fraction": 1.0}, "less than 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        JobSpec.parse(JOB).changed(changes)


@given(st.floats(0, 2000))
def test_perplexity_never_overflows(loss: float) -> None:
    report = EvalReport(step=1, loss=loss, tokens=1, sequences=1, seconds=0.0)
    assert report.perplexity >= 1.0


@given(st.lists(st.floats(0, 100), min_size=5, max_size=5), st.floats(0, 1))
def test_communication_is_within_the_engines_time(times: list[float], share: float) -> None:
    data_s, engine_s, evaluation_s, checkpoint_s, profile_s = times
    parts = StepParts(data_s, engine_s, share * engine_s, evaluation_s, checkpoint_s, profile_s)
    assert parts.total_s == pytest.approx(sum(times))
    assert parts.compute_s is not None
    assert 0 <= parts.compute_s <= engine_s
