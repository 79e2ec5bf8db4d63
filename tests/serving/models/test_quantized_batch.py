"""A batch over Ray Data with a real engine: an int8 checkpoint (compressed-tensors), on CPU, that
embeds and scores. One engine for the whole module."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rayline.models.tiny import write_tiny_model
from rayline.serving.batch import BatchSummary, run_batch
from rayline.spec import ServeSpec
from support.quantized_models import quantize

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

TEXTS = [f"{n} times seven is {7 * n}" for n in range(12)]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BatchSummary, Path]]:
    folder = tmp_path_factory.mktemp("batch")
    plain = write_tiny_model(folder / "plain", layers=2)
    spec = ServeSpec.parse(
        {
            "name": "int8",
            "model": {"directory": str(quantize(plain, folder / "int8", "int8"))},
            "device": "cpu",
            "engine": {
                "task": "score",
                "max_model_len": 256,
                "max_num_seqs": 4,
                "kv_cache_gib": 0.03125,
            },
        }
    )
    scored = [
        {"model": "int8", "text_1": TEXTS[0], "text_2": TEXTS[:3]},
        {"model": "int8", "query": TEXTS[1], "documents": TEXTS[:2]},
        {"model": "int8", "text_1": "x" * 4000, "text_2": "y"},
    ]
    urls = ["/v1/score", "/v1/rerank", "/v1/score"]
    file = folder / "in.jsonl"
    file.write_text(
        "".join(
            json.dumps({"custom_id": f"{n}", "method": "POST", "url": url, "body": body}) + "\n"
            for n, (url, body) in enumerate(zip(urls, scored, strict=True))
        )
    )
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield run_batch(file, folder / "out.jsonl", spec), folder / "out.jsonl"
    finally:
        ray.shutdown()
        assert [
            child.name()
            for child in psutil.Process().children(recursive=True)
            if child.name().startswith("VLLM")
        ] == []


@pytest.fixture
def bodies(answered: tuple[BatchSummary, Path]) -> dict[str, Any]:
    lines = map(json.loads, answered[1].read_bytes().splitlines())
    return {line["custom_id"]: line["response"] for line in lines}


def test_every_line_has_its_answer_in_the_shape_of_its_route(answered, bodies):
    assert answered[0] == BatchSummary(requests=3, resumed=0, answered=3, failed=1)
    scores = [one["score"] for one in bodies["0"]["body"]["data"]]
    assert len(scores) == 3
    # A text is nearest to itself.
    assert scores[0] == pytest.approx(1, abs=0.01)
    assert max(scores[1:]) < scores[0]
    assert all(math.isfinite(score) for score in scores)
    assert bodies["1"]["body"]["results"][0]["index"] == 1


def test_a_text_that_is_too_long_is_refused_in_its_line(bodies):
    assert bodies["2"]["status_code"] == 400
    assert bodies["2"]["body"]["error"]["code"] == "context_length_exceeded"
