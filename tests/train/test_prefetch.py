"""One batch ahead: the same batches, earlier; errors where they are needed; no thread left."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from rayline.errors import SpecError
from rayline.train.engine import Batch
from rayline.train.prefetch import Prefetch


def batch_of(step: int) -> Batch:
    return Batch(torch.full((1, 2), step), torch.zeros((1, 2), dtype=torch.int64))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_the_next_batch_is_ready_when_the_step_is_done() -> None:
    prepared, ready = [], threading.Event()

    def prepare(step: int) -> Batch:
        prepared.append(step)
        if step == 5:
            ready.set()
        return batch_of(step)

    with Prefetch(prepare, last_step=6) as prefetch:
        assert int(prefetch.batch(4).input_ids[0, 0]) == 4
        assert ready.wait(10)  # while step 4 computes
        assert int(prefetch.batch(5).input_ids[0, 0]) == 5
        assert int(prefetch.batch(6).input_ids[0, 0]) == 6
    assert prepared == [4, 5, 6]  # in order, each once, none beyond the last step
    assert threads() == []


def test_a_step_out_of_turn_gets_its_own_batch() -> None:
    with Prefetch(batch_of, last_step=9) as prefetch:
        assert [int(prefetch.batch(step).input_ids[0, 0]) for step in (1, 4, 2, 9)] == [1, 4, 2, 9]


def test_an_error_comes_with_the_step_that_needs_the_batch() -> None:
    wrong = SpecError("data.files", "gone", value="a.jsonl")

    def prepare(step: int) -> Batch:
        if step == 3:
            raise wrong
        return batch_of(step)

    with Prefetch(prepare, last_step=5) as prefetch:
        prefetch.batch(1)
        prefetch.batch(2)
        time.sleep(0.05)  # the thread has failed by now, and nobody is told before step 3
        with pytest.raises(SpecError) as raised:
            prefetch.batch(3)
        assert raised.value is wrong
    assert threads() == []


def test_leaving_early_waits_for_no_further_batch() -> None:
    begun, prepared = threading.Event(), []

    def prepare(step: int) -> Batch:
        if step == 2:
            begun.set()
            time.sleep(0.1)
        prepared.append(step)
        return batch_of(step)

    def leave() -> None:
        with Prefetch(prepare, last_step=100) as prefetch:
            prefetch.batch(1)
            assert begun.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert prepared == [1, 2]
    assert threads() == []
