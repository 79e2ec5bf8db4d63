"""Which rank a gang hangs on, by what its ranks say."""

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.effort import Effort, EffortMeter
from rayline.actors.hang import find_hang, overdue_s
from rayline.actors.progress import Progress, Standing, collective_of
from rayline.parallel import waiting
from rayline.train.link import Phase


def at(
    step: int, phase: Phase = "engine", for_s: float = 20.0, collective: str | None = "all_reduce"
) -> Standing:
    return Standing(step, phase, for_s, collective, "stacks")


def test_a_rank_that_does_not_answer_is_named_before_all_others() -> None:
    hang = find_hang({0: at(7), 1: None, 2: at(7), 3: at(7, collective=None)}, 12.0)
    assert hang is not None
    assert (hang.rank, hang.step, hang.collective) == (1, 7, "all_reduce")
    assert hang.reason == "does not answer while others wait in all_reduce"


def test_a_rank_outside_of_collectives_is_what_the_others_wait_for() -> None:
    hang = find_hang({0: at(7), 1: at(7), 2: at(7, "data", 19.0, None)}, 12.0)
    assert hang is not None
    assert (hang.rank, hang.step) == (2, 7)
    assert hang.reason == "is in data for 19 s while others wait in all_reduce"


def test_of_ranks_that_all_wait_the_odd_one_is_named() -> None:
    hang = find_hang({0: at(7), 1: at(7, collective="recv"), 2: at(7)}, 12.0)
    assert hang is not None
    assert (hang.rank, hang.collective) == (1, "recv")


@given(st.dictionaries(st.integers(0, 7), st.floats(0, 11.9), min_size=1))
def test_ranks_that_are_not_late_hang_on_nobody(for_s: dict[int, float]) -> None:
    standings: dict[int, Standing | None] = {rank: at(3, "engine", s) for rank, s in for_s.items()}
    assert find_hang(standings, 12.0) is None
    # One that is slow to answer, as while it imports, is no hang either.
    assert find_hang({**standings, 9: None}, 12.0) is None


def test_what_has_no_usual_length_is_waited_for() -> None:
    phases: list[Phase] = ["start", "evaluate", "save", "export"]
    for phase in phases:
        assert find_hang({0: at(3, phase, 100.0, None), 1: at(3, phase, 100.0)}, 12.0) is None
        assert find_hang({0: at(3, phase, 700.0, None), 1: at(3, phase, 700.0)}, 12.0) is not None


def test_a_step_is_overdue_after_five_medians_or_the_specs_time() -> None:
    assert overdue_s([0.1, 0.2, 0.1], 12.0) == 12.0
    assert overdue_s([4.0, 4.0, 90.0], 12.0) == 20.0
    assert overdue_s([], 12.0) > 100


def test_the_collective_is_what_the_caller_asked_torch_for() -> None:
    inside = [
        ("/rayline/train/native.py", "_agree"),
        ("/lib/torch/distributed/c10d_logger.py", "wrapper"),
        ("/lib/torch/distributed/distributed_c10d.py", "all_reduce"),
    ]
    assert collective_of(inside) == "all_reduce"
    assert collective_of([*inside, ("/user/code.py", "hook")]) is None
    assert collective_of([]) is None
    # An operator called by its name: what called it tells whether it waits.
    by_name = ("/lib/torch/_ops.py", "__call__")
    functional = ("/lib/torch/distributed/_functional_collectives.py", "wait_tensor")
    assert collective_of([functional, by_name]) == "wait_tensor"
    assert collective_of([("/rayline/train/native.py", "step"), by_name]) is None
    # torch computes with the parts of distributed tensors in a folder of torch.distributed.
    dispatch = ("/lib/torch/distributed/tensor/_dispatch.py", "dispatch")
    assert collective_of([dispatch, by_name]) is None


def test_waiting_for_sums_under_way_and_for_a_devices_numbers_is_waiting() -> None:
    """`Work.wait` leaves no frame of its own; this file stands for it."""
    replicas = ("/rayline/parallel/replicas.py", "finish")
    assert collective_of([replicas, (str(waiting.__file__), "wait_all")]) == "wait_all"
    assert collective_of([replicas]) is None


class Sum:
    """A sum under way until `done` is released; its `wait` is C, as that of torch's is."""

    def __init__(self) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.wait = self.done.acquire


def seen(meter: EffortMeter, least: int) -> Effort:
    deadline_s = time.monotonic() + 10
    while (effort := meter.effort()).looks < least:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return effort


def test_a_rank_is_at_work_unless_it_waits_for_others() -> None:
    """In the training thread, an engine's step that works, one that waits, then an evaluation."""
    progress = Progress()
    meter = EffortMeter(progress)
    summed, worked, evaluated = Sum(), threading.Event(), threading.Event()

    def train() -> None:
        with meter.measuring():
            with progress.around("engine", 1):
                worked.wait(10)
            with progress.around("engine", 2):
                waiting.wait_all([None, summed])  # type: ignore[list-item]
            with progress.around("evaluate", 2):
                evaluated.wait(10)

    thread = threading.Thread(target=train)
    thread.start()
    working = seen(meter, 5)
    assert working.step == 1
    assert working.at_work == working.looks
    worked.set()
    idle = seen(meter, working.looks + 6)
    assert idle.step == 2
    # It may have been seen at work once more before it waited.
    assert idle.at_work <= working.at_work + 2
    summed.done.release()
    while progress.standing().phase != "evaluate":
        time.sleep(0.001)
    over = meter.effort()
    time.sleep(0.1)
    assert meter.effort().looks <= over.looks + 1
    evaluated.set()
    thread.join()
    assert "effort" not in {one.name for one in threading.enumerate()}


def test_a_rank_tells_its_phase_and_the_stacks_of_its_threads() -> None:
    progress = Progress()
    assert progress.standing().phase == "start"
    with progress.around("engine", 4):
        standing = progress.standing()
    assert (standing.step, standing.phase, standing.collective) == (4, "engine", None)
    assert "test_a_rank_tells_its_phase" in standing.stacks
