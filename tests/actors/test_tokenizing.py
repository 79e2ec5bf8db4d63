"""Token shards made by actors of Ray Data are those that a rank would make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayline.actors.tokenizing import RowTokenizer, idle_cpus, tokenize_on_cluster
from rayline.data import ShardTask, SourceFile, TokenCache, load_dataset, shards
from rayline.data.source import FilePart
from rayline.errors import SpecError
from rayline.launch.capacity import Node
from rayline.models.tiny import byte_tokenizer
from rayline.spec import JobSpec


def test_only_whole_cpus_that_are_free_count() -> None:
    free = [{"CPU": 2.5}, {"CPU": 0.5}, {}, {"CPU": 4.0}]
    nodes = [Node(str(n), "", {"CPU": 8.0}, available) for n, available in enumerate(free)]
    assert idle_cpus(nodes) == 6


@pytest.fixture(scope="module")
def one_node() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    texts = [f"{n} times seven is {7 * n}" for n in range(90)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts[:30]))
    (tmp_path / "b.txt").write_text("\n".join(texts[30:60]))
    (tmp_path / "c.txt").write_text("\n".join(texts[60:]))
    byte_tokenizer(vocab=264, max_positions=512).save_pretrained(tmp_path / "model")
    return JobSpec.parse(
        {
            "name": "tokens",
            "model": {"directory": str(tmp_path / "model")},
            "steps": 3,
            "data": {
                "kind": "text",
                "mixture": [{"files": [str(tmp_path / name)]} for name in ("a.jsonl", "b.txt")],
                "sequence_tokens": 64,
            },
            "evaluation": {"files": [str(tmp_path / "c.txt")], "every_steps": 3},
            "batch": {"sequences": 12},
            "optim": {"lr": 1e-3},
            "output_dir": str(tmp_path / "run"),
        }
    )


@pytest.mark.ray
@pytest.mark.usefixtures("one_node")
def test_the_cluster_makes_what_a_rank_would(job: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    model, nodes = Path(str(job.model.directory)), [Node("", "", {}, {"CPU": 1.0})]
    kept = Path(job.token_directory)
    alone = load_dataset(job.data, model)
    tokenize_on_cluster(job, model, nodes)
    assert not kept.exists()  # too little to be worth it

    tokenize_on_cluster(job, model, nodes, least_bytes=1)

    folders = sorted(kept.iterdir())
    found = [TokenCache(kept).find(folder.name, verify=True) for folder in folders]
    assert [len(each.shards) for each in found if each] == [1, 1, 1]
    monkeypatch.setattr(shards, "load_tokenizer", None)  # nobody needs it any more
    mapped = load_dataset(job.data, model, cache_dir=kept)
    assert len(mapped) == len(alone)
    for number in (0, len(alone) // 2, len(alone) - 1):
        assert np.array_equal(mapped[number].input_ids, alone[number].input_ids)
        assert np.array_equal(mapped[number].labels, alone[number].labels)
    tokenize_on_cluster(job, model, nodes, least_bytes=1)
    assert sorted(kept.iterdir()) == folders


def test_an_actor_answers_with_what_went_wrong(job: JobSpec, tmp_path: Path) -> None:
    model, file = Path(str(job.model.directory)), Path(job.data.sources[0].files[0])
    file.write_text('{"text": "fine"}\n{}')
    source = SourceFile("data.mixture[0].files", 0, str(file))
    tasks = [
        ShardTask(source, "text", model, FilePart(first, offset, 1), tmp_path, number)
        for number, (first, offset) in enumerate([(1, 0), (2, 17)])
    ]
    # Not its own folder: that of another node, where the model lies elsewhere.
    tasks = [replace(task, tokenizer_dir=tmp_path / "gone") for task in tasks]
    actor = RowTokenizer(job, model, tasks)
    fine, wrong = [actor({"number": number}) for number in (0, 1)]
    assert (fine["number"], wrong["number"]) == (0, 1)
    assert fine["answer"].files[0].name == "00000-tokens.npy"
    assert isinstance(wrong["answer"], SpecError)
    assert wrong["answer"].subject == f"data.mixture[0].files[0] ({file}), line 2"
    tasks = [replace(tasks[0], folder=tmp_path / "gone")]
    lost = RowTokenizer(job, model, tasks)({"number": 0})["answer"]
    assert isinstance(lost, FileNotFoundError)
