"""Which of many failures is the cause, and what follows from it."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.failure import (
    Failure,
    FailureKind,
    death_of,
    failure_of,
    first_cause,
    hang_of,
    lost_contact,
    slow_of,
)
from rayline.actors.straggler import Straggler
from rayline.errors import SpecError, WorkerError
from rayline.spec import Coordinate

HERE = Coordinate(pipeline=1, data=0, context=0, tensor=1)
KINDS: list[FailureKind] = ["refused", "raised", "hung", "died", "slow", "lost_contact"]

failures = st.builds(
    Failure,
    rank=st.integers(0, 63),
    kind=st.sampled_from(KINDS),
    error=st.just(WorkerError("worker", "gone")),
    at_s=st.floats(0, 100),
)


def raised(wrong: BaseException) -> Failure:
    try:
        raise wrong
    except BaseException as caught:
        return failure_of(3, HERE, caught, at_s=1.0)


def test_a_users_error_keeps_its_words_its_place_and_its_traceback() -> None:
    failure = pickle.loads(pickle.dumps(raised(KeyError("labels"))))
    assert failure.kind == "raised"
    assert failure.error.subject == "worker rank 3 (pp1-dp0-cp0-tp1)"
    assert failure.error.problem.startswith("KeyError: 'labels', at ")
    assert "test_failure.py" in failure.error.problem
    assert failure.error.rank == 3
    assert "raise wrong" in failure.error.remote_traceback
    assert failure.error.exit_code == 4


def test_a_rayline_error_arrives_unchanged() -> None:
    wrong = SpecError("data.files", "no such file", value="x")
    assert raised(wrong).error is wrong
    assert raised(wrong).kind == "refused"


def test_out_of_memory_is_known_and_not_tried_again() -> None:
    failure = raised(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert failure.out_of_memory
    assert failure.kind == "refused"
    assert not raised(RuntimeError("out of range")).out_of_memory


def test_a_process_that_the_memory_monitor_ended_is_known() -> None:
    told = "The actor is dead because its worker was killed due to the node running low on memory."
    assert death_of(0, Coordinate(0, 0, 0, 0), told, "log", 1.0).out_of_memory
    told = "The actor is dead because there was no room for it on its node."
    assert not death_of(0, Coordinate(0, 0, 0, 0), told, "log", 1.0).out_of_memory


@pytest.mark.parametrize(
    ("wrong", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:9"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (ValueError("connection closed by peer"), False),
    ],
)
def test_only_the_transports_own_words_mean_a_lost_neighbour(
    wrong: BaseException, lost: bool
) -> None:
    assert lost_contact(wrong) is lost


def test_a_lost_neighbour_is_found_below_a_wrapping_error() -> None:
    outer = RuntimeError("step 3 failed")
    outer.__cause__ = RuntimeError("Connection closed by peer")
    assert lost_contact(outer)
    assert not lost_contact(RuntimeError("step 3 failed"))


@given(st.lists(failures, min_size=1, max_size=8))
def test_the_cause_is_never_a_consequence(found: list[Failure]) -> None:
    cause = first_cause(found)
    for other in found:
        assert KINDS.index(cause.kind) <= KINDS.index(other.kind)
        assert other.kind != cause.kind or cause.at_s <= other.at_s


def test_a_death_tells_the_reason_without_rays_ids() -> None:
    told = (
        "The actor died.\n\tclass_name: Worker\nThe actor is dead because its node has died. "
        "Some common causes include: (1) the OOM killer"
    )
    failure = death_of(2, HERE, told, "/runs/x.log", at_s=1.0)
    assert failure.error.problem == "its process ended: its node has died."
    assert "/runs/x.log" in failure.error.fix


def test_a_hang_names_the_rank_the_step_and_what_it_does() -> None:
    failure = hang_of(3, HERE, 7, "does not answer while others wait in all_reduce", at_s=1.0)
    assert failure.kind == "hung"
    assert failure.error.subject == "worker rank 3 (pp1-dp0-cp0-tp1)"
    assert failure.error.problem == (
        "hangs in step 7: it does not answer while others wait in all_reduce"
    )


def test_a_slow_rank_is_named_with_its_node() -> None:
    failure = slow_of(Straggler(3, 2.13, 1, 120), HERE, "10.0.0.7")
    assert (failure.rank, failure.kind) == (3, "slow")
    assert failure.error.subject == "worker rank 3 (pp1-dp0-cp0-tp1)"
    assert failure.error.problem == (
        "takes 2.1 times as long for its own part of a step as its only peer, since step 120, "
        "on node 10.0.0.7"
    )
