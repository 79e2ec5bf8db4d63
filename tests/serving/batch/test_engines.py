"""A batch over Ray Data: a real cluster and real actors, with rehearsals in the place of vLLM (a
real one: tests/serving/models)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import ServingError, SpecError
from rayline.serving.batch import BatchSummary, run_batch
from rayline.serving.batch.engines import rows_of_a_block
from rayline.serving.rehearsal import oracle
from rayline.spec import ServeSpec


@given(lines=st.integers(1, 10**6), replicas=st.integers(1, 64), seqs=st.integers(1, 1024))
def test_blocks_keep_an_engine_busy_and_are_shared_out(lines, replicas, seqs):
    rows = rows_of_a_block(lines, replicas, seqs)
    assert 1 <= rows <= max(1, -(-seqs // 3))
    # Where there is enough for all, every sequence is in use while one of the blocks ends.
    if lines >= 4 * replicas * seqs:
        assert 3 * rows >= seqs
    # And where there is little, no engine has all of it.
    assert rows <= -(-lines // (4 * replicas))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def spec(**rehearsal: object) -> ServeSpec:
    return ServeSpec.parse(
        {
            "name": "bot",
            "model": {"hub": "a/b"},
            "device": "cpu",
            "rehearsal": {"first_token_ms": 1, "token_ms": 0, "answer_tokens": 4, **rehearsal},
            "scale": {"min_replicas": 2, "max_replicas": 2},
            "cpus_per_replica": 1,
        }
    )


def written(folder: Path, bodies: list[dict[str, Any]]) -> Path:
    file = folder / "in.jsonl"
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


@pytest.mark.engines
def test_every_line_is_answered_once_by_one_of_the_engines(cluster, tmp_path):
    bodies = [{"model": "bot", "prompt": f"prompt {n}", "max_tokens": 4} for n in range(50)]
    bodies[7] = {"model": "other", "prompt": "x"}
    bodies[8] = {"model": "bot", "prompt": "x", "temperature": 9}
    file, out = written(tmp_path, bodies), tmp_path / "out.jsonl"
    summary = run_batch(file, out, spec())
    assert summary == BatchSummary(requests=50, resumed=0, answered=50, failed=2)
    lines = {line["custom_id"]: line for line in map(json.loads, out.read_bytes().splitlines())}
    assert len(lines) == 50
    assert lines["7"]["response"]["status_code"] == 404
    assert lines["7"]["error"]["code"] == "model_not_found"
    assert lines["8"]["response"]["status_code"] == 400
    for n in set(range(50)) - {7, 8}:
        (choice,) = lines[f"{n}"]["response"]["body"]["choices"]
        assert choice["text"] == oracle(f"prompt {n}", 4)
    again = run_batch(file, out, spec(), retry_failed=True)
    assert (again.resumed, again.answered, again.failed) == (48, 2, 2)


@pytest.mark.engines
def test_an_engine_that_does_not_come_up_ends_the_batch_with_its_reason(cluster, tmp_path):
    file = written(tmp_path, [{"model": "bot", "prompt": "x"}] * 4)
    with pytest.raises(ServingError):
        run_batch(file, tmp_path / "out.jsonl", spec(fails_at_start=True))
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.engines
def test_what_the_task_does_not_answer_is_refused_before_an_engine_is_started(tmp_path):
    embed = spec().changed({"engine.task": "embed"})
    with pytest.raises(SpecError, match="which task embed does not answer"):
        run_batch(written(tmp_path, [{"model": "bot"}]), tmp_path / "out.jsonl", embed)
