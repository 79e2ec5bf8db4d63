"""Every error says what, where and how to mend it, and arrives whole from another process."""

from __future__ import annotations

import json
import pickle

import pytest

from rayline import errors
from rayline.errors import RaylineError, SpecError, WorkerError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RaylineError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[RaylineError]) -> None:
    error = kind("plan.tensor", "too wide", value=[4], allowed="1, 2", fix="use 2")
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert str(again) == str(error)
    assert again.as_dict() == error.as_dict()
    # A second journey (worker to driver to notebook) changes nothing either.
    assert pickle.loads(pickle.dumps(again)).as_dict() == error.as_dict()


def test_a_worker_error_keeps_its_rank_and_traceback() -> None:
    error = WorkerError("worker 3", "died")
    error.rank, error.remote_traceback = 3, "Traceback: here"
    again = pickle.loads(pickle.dumps(error))

    assert (again.rank, again.remote_traceback) == (3, "Traceback: here")


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {
        "RaylineError": 1,
        "SpecError": 2,
        "PlacementError": 3,
        "WorkerError": 4,
        "CheckpointError": 5,
        "ServingError": 6,
        "InterruptedByUser": 130,
    }


def test_the_message_names_field_value_allowed_and_cure() -> None:
    error = SpecError("plan.tensor", "too wide", value=4, allowed="1, 2", fix="use 2")

    assert str(error).splitlines() == [
        "plan.tensor: too wide (found 4)",
        "  allowed: 1, 2",
        "  to do:   use 2",
    ]
    assert json.loads(json.dumps(error.as_dict()))["exit_code"] == 2


def test_none_can_be_the_value_found() -> None:
    assert "found None" in str(SpecError("a", "b", value=None))
    assert "found" not in str(SpecError("a", "b"))
