"""From ranges to distributions, from draws to jobs: exact, and refused where none could work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.spec import Range, TuneSpec
from rayline.tuning.space import (
    best_job,
    check_space,
    distributions,
    drawn_indices,
    drawn_values,
    grid_values,
    holds,
    segment_job,
    trial_job,
)

MakeSearch = Callable[..., TuneSpec]

numbers = st.floats(1e-6, 1e6)
intervals = st.builds(
    lambda low, width, log: Range(low=low, high=low + width, log=log),
    numbers,
    st.floats(1e-3, 1e6),
    st.booleans(),
)
whole_intervals = st.builds(
    lambda low, width, log: Range(low=low, high=low + width, log=log, integer=True),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.booleans(),
)
lists = st.builds(
    lambda values: Range(choices=values),
    st.lists(
        st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.floats(0, 1))),
        min_size=1,
        max_size=5,
    ),
)


@given(
    st.dictionaries(
        st.sampled_from(["a.b", "c", "d.e.f"]),
        st.one_of(intervals, whole_intervals, lists),
        min_size=1,
    ),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=50)
def test_every_draw_lies_in_its_range(space: dict[str, Range], seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    values = drawn_values(space, study.ask(distributions(space)).params)
    assert set(values) == set(space)
    # Of equal choices the first stands for all.
    assert drawn_values(space, drawn_indices(space, values)) == values
    for dotted, wanted in space.items():
        value = values[dotted]
        assert holds(wanted, value)
        if wanted.choices is not None:
            assert value in wanted.choices
        else:
            assert wanted.low is not None
            assert wanted.high is not None
            assert wanted.low <= value <= wanted.high
            assert isinstance(value, int) == wanted.integer


@pytest.mark.parametrize(
    ("dotted", "wanted", "named"),
    [
        ("optim.warmup_steps", {"low": 0, "high": 10}, "integer: true"),
        ("optim.lr", {"low": -1.0, "high": 1.0}, "greater than 0"),
        ("precision", {"choices": ["fp32", "fp8"]}, "fp8"),
        ("batch.sequences", {"low": 0, "high": 4, "integer": True}, "found 0"),
        ("batch.sequences", {"low": 1.5, "high": 4, "integer": True}, "whole"),
        ("output_dir", {"choices": ["a", "b"]}, "itself"),
        ("export.alias", {"choices": ["a", "b"]}, "itself"),
    ],
)
def test_a_range_that_no_trial_could_take_is_refused(
    make_search: MakeSearch, dotted: str, wanted: dict[str, Any], named: str
) -> None:
    search = make_search(space={dotted: wanted})
    with pytest.raises(SpecError, match=named) as refused:
        check_space(search)
    assert refused.value.subject == f"space.{dotted}"


@pytest.mark.parametrize(
    ("dotted", "wanted"),
    [
        ("optim.lr", {"low": 1e-4, "high": 1.0, "log": True}),
        ("optim.warmup_steps", {"low": 0, "high": 10, "integer": True}),
        ("optim.clip_grad_norm", {"choices": [None, 1.0]}),
        ("optim.betas", {"choices": [[0.9, 0.95], [0.9, 0.999]]}),
        ("plan.zero_stage", {"choices": [0, 1, 2, 3]}),
        # Works with engine native, not with deepspeed: known only once both are drawn.
        ("plan.tensor", {"choices": [1, 2]}),
    ],
)
def test_a_range_that_fits_passes(
    make_search: MakeSearch, dotted: str, wanted: dict[str, Any]
) -> None:
    search = make_search(space={dotted: wanted}, **{"job.engine": "deepspeed"})
    assert check_space(search) is None


def test_a_trial_has_its_own_name_and_folder_and_registers_nothing(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    kept = {"job.export.register_as": "bot", "job.checkpoint.directory": "s3://bucket/kept"}
    search = make_search(name="s" * 63, **kept)
    job = trial_job(search, 12, {"optim.lr": 0.5}, str(tmp_path))
    assert job.optim.lr == 0.5
    assert job.name == "s" * 58 + "-012"
    assert job.directory == str(tmp_path / job.name)
    assert job.checkpoint_directory == str(tmp_path / job.name / "checkpoints")
    assert job.export.register_as is None
    best = best_job(search, {"optim.lr": 0.5})
    assert (best.name, best.optim.lr) == ("best", 0.5)
    assert best.export.register_as == "bot"
    assert best == search.job.changed({"optim.lr": 0.5})


@given(lr=st.floats(1e-8, 10), tensor=st.integers(1, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_drawn_is_what_the_job_holds(
    make_search: MakeSearch, lr: float, tensor: int
) -> None:
    job = trial_job(make_search(), 0, {"optim.lr": lr, "plan.tensor": tensor}, "x")
    assert (job.optim.lr, job.plan.tensor) == (lr, tensor)


def test_a_grid_takes_ends_points_and_all_choices() -> None:
    space = {
        "a": Range(low=1e-4, high=1e-2, log=True, points=3),
        "b": Range(low=0.0, high=1.0, points=5),
        "c": Range(low=1, high=4, integer=True),
        "d": Range(low=0, high=10, integer=True, points=3),
        "e": Range(choices=[None, "x"]),
    }
    found = grid_values(space)
    assert found["a"] == [1e-4, pytest.approx(1e-3), 1e-2]
    assert found["b"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found["c"] == [1, 2, 3, 4]
    assert found["d"] == [0, 5, 10]
    assert found["e"] == [None, "x"]
    assert all(holds(space[name], value) for name, values in found.items() for value in values)


@pytest.mark.parametrize(
    ("wanted", "value", "there"),
    [
        ({"low": 1, "high": 3, "integer": True}, 2, True),
        ({"low": 1, "high": 3, "integer": True}, 2.5, False),
        ({"low": 1, "high": 3}, 2.5, True),
        ({"low": 1, "high": 3}, 4, False),
        ({"low": 0, "high": 3}, True, False),
        ({"low": 1, "high": 3}, "2", False),
        ({"choices": ["2"]}, "2", True),
    ],
)
def test_whether_a_range_has_a_value(wanted: dict[str, Any], value: object, there: bool) -> None:
    assert holds(Range.parse(wanted), value) is there


def test_a_generation_ends_early_and_has_checkpoints_of_its_own(make_search: MakeSearch) -> None:
    job = trial_job(make_search(), 1, {"optim.lr": 1e-3}, "folder")
    first, last = segment_job(job, 0, 4), segment_job(job, 2, job.last_step)
    assert first.last_step == 4
    assert first.steps == last.steps == last.last_step == 9
    assert first.checkpoint_directory != last.checkpoint_directory
    assert first.checkpoint_directory.startswith(job.directory)
