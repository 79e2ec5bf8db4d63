"""Every sample once in an epoch, however often a job is resumed and under whatever plans."""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.data import SampleOrder
from rayline.models.tiny import write_tiny_model
from rayline.spec import BatchSpec, JobSpec, RampSpec
from rayline.train.feed import samples_of_step
from support.engine_gang import run_ranks
from support.recorded_rank import DIGITS, run_recorded, write_numbered

SAMPLES = 96
BATCH = 8
STEPS = SAMPLES // BATCH
LIVES = ((2, 3), (4, 6), (4, 9), (2, STEPS))
"""Data-parallel size of each start of the job, and the step after which it stops: three resumes,
two changes of the size."""
TRACED = (4, 5)


@given(
    sequences=st.sampled_from([4, 8, 12]),
    lives=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 4])), max_size=8),
    seed=st.integers(0, 2**40),
    grows=st.booleans(),
)
def test_any_split_over_lives_and_ranks_uses_each_sample_once(
    sequences: int, lives: list[tuple[int, int]], seed: int, grows: bool
) -> None:
    ramp = RampSpec(start=4, increment=4, steps=6) if grows and sequences > 4 else None
    batch = BatchSpec(sequences=sequences, ramp=ramp)
    steps = sum(count for count, _ in lives)
    used: list[int] = []
    done = 0
    for count, data_size in lives:
        # A new object in each life, as in a process that knows only the number of steps done.
        order = SampleOrder(max(1, batch.samples_after(steps)), seed)
        for step in range(done + 1, done + count + 1):
            for rank in range(data_size):
                used += samples_of_step(order, step, batch, rank, data_size)
        done += count
    assert Counter(used) == Counter(range(batch.samples_after(steps)))


@dataclass(frozen=True)
class Life:
    """What the ranks of one start of the job left."""

    folder: Path
    notes: list[dict[str, Any]]

    def samples(self) -> list[list[int]]:
        """Of each step, those that all ranks used, in their order."""
        by_rank = [note["samples"] for note in self.notes]
        return [[one for part in step for one in part] for step in zip(*by_rank, strict=True)]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> list[Life]:
    root = tmp_path_factory.mktemp("order")
    model = write_tiny_model(root / "model", hidden=64, ffn=128)
    write_numbered(root / "numbers.txt", SAMPLES)
    found = []
    for number, (data, stop) in enumerate(LIVES):
        job = JobSpec.parse(
            {
                "name": "order",
                "model": {"directory": str(model)},
                "seed": 7,
                "steps": STEPS,
                "stop_after_step": stop,
                "data": {
                    "kind": "text",
                    "files": [str(root / "numbers.txt")],
                    "sequence_tokens": DIGITS + 1,
                },
                "batch": {"sequences": BATCH},
                "optim": {"lr": 1e-3},
                "plan": {"data": data},
                "profile": {"first_step": TRACED[0], "last_step": TRACED[1]},
                "output_dir": str(root / "run"),
            }
        )
        folder = root / f"life-{number}"
        folder.mkdir()
        (folder / "job.yaml").write_text(job.to_yaml())
        run_ranks(folder, data, run_recorded, folder / "job.yaml")
        notes = [json.loads((folder / f"note-{rank}.json").read_text()) for rank in range(data)]
        found.append(Life(root / "run", notes))
    return found


@pytest.mark.dist
def test_three_resumes_and_two_sizes_use_each_sample_of_an_epoch_once(lives: list[Life]) -> None:
    starts = [life.notes[0]["result"]["first_step"] for life in lives]
    assert starts == [1, 4, 7, 10]
    steps = [step for life in lives for step in life.samples()]
    assert len(steps) == STEPS
    assert Counter(one for step in steps for one in step) == Counter(range(SAMPLES))
    # And in the very order of a run without any break.
    order = SampleOrder(SAMPLES, seed=7)
    assert [one for step in steps for one in step] == order.indices(0, SAMPLES)


@pytest.mark.dist
def test_every_rank_leaves_a_trace_that_names_the_steps(lives: list[Life]) -> None:
    life = lives[1]
    files = sorted((life.folder / "profile").iterdir())
    assert [file.name[:10] for file in files] == [f"rank-{rank:05d}" for rank in range(4)]
    for file in files:
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        names = Counter(event.get("name") for event in events)
        assert names["step 4"] == names["step 5"] == 1
        assert names["engine"] == 2
        assert "step 6" not in names
        assert any(str(name).startswith("gloo:") for name in names)
    traces = [note["result"]["trace"] for note in life.notes]
    assert traces == [str(file) for file in files]
    assert lives[0].notes[0]["result"]["trace"] is None


@pytest.mark.dist
def test_the_traced_steps_tell_what_communication_took(lives: list[Life]) -> None:
    reports = {report["step"]: report for report in lives[1].notes[0]["reports"]}
    assert [step for step, report in reports.items() if report["parts"]["communication_s"]] == [5]
    traced_s = sum(reports[step]["parts"]["engine_s"] for step in TRACED)
    # Four ranks that wait for one another on two cores: a good part, never all.
    assert 0 < 2 * reports[5]["parts"]["communication_s"] < traced_s


@pytest.mark.dist
def test_every_rank_tells_its_memory(lives: list[Life]) -> None:
    for life in lives:
        peaks = {tuple(note["result"]["peak_memory_bytes"]) for note in life.notes}
        assert len(peaks) == 1
        (held,) = peaks
        assert len(held) == len(life.notes)
        assert all(2**26 < peak < 2**34 for peak in held)
