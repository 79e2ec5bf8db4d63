"""One rank's life on all that data can be: a mixture of forms, packed documents, a held-out part,
shards mapped from the cache; and the same after a resume."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayline.data import load_dataset, shards
from rayline.models.tiny import write_tiny_model
from support.one_rank import run_alone, small_job


def write_sources(folder: Path) -> list[dict[str, Any]]:
    texts = [f"{n} times seven is {7 * n}" for n in range(150)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[:100]))
    pq.write_table(pa.table({"text": texts[100:]}), folder / "b.parquet")
    return [
        {"files": [str(folder / "a.jsonl")], "weight": 0.25},
        {"files": [str(folder / "b.parquet")], "weight": 0.75},
    ]


@pytest.mark.dist
def test_a_run_on_a_mixture_resumes_as_if_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=64, ffn=128, layers=2)
    changes: dict[str, Any] = {
        "steps": 6,
        "data.files": None,
        "data.mixture": write_sources(tmp_path),
        "data.packing": "documents",
        "evaluation.fraction": 0.2,
        "evaluation.every_steps": 3,
    }
    job = small_job(tmp_path, "unbroken", model).changed(changes)
    whole, reports = run_alone(job, model)
    assert whole.finished
    (evaluation,) = reports[-1].evaluations
    assert evaluation.tokens > 100

    monkeypatch.setattr(shards, "load_tokenizer", None)  # the shards are there
    broken = job.changed({"output_dir": str(tmp_path / "broken"), "stop_after_step": 3})
    _, before = run_alone(broken, model)
    _, after = run_alone(broken.changed({"stop_after_step": None}), model)
    found = [(report.loss.hex(), report.evaluations[-1:]) for report in (*before, *after)]
    expected = [(report.loss.hex(), report.evaluations[-1:]) for report in reports]
    assert [loss for loss, _ in found] == [loss for loss, _ in expected]
    assert found[-1][1][0].loss == evaluation.loss

    dataset = load_dataset(job.data, model, cache_dir=Path(job.token_directory))
    assert dataset.order(job.seed).taken(24) == [6, 18]
