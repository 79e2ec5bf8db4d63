"""Tokenizing on the cluster, by Ray Data, before the gang is placed.

Each part of a file is one row; actors that hold the tokenizer write its shard to the job's cache,
which all nodes see, and the rows that come back say what was written. Data that a rank tokenizes in
less time than it takes to start an actor is left to the ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from rayline.actors.environment import workers_environment
from rayline.errors import RaylineError
from rayline.launch.capacity import Node
from rayline.spec import JobSpec
from rayline.train.tokens import ShardDone, ShardTask, Tokenizing, do_task, make_tokens

log = logging.getLogger(__name__)

SPREAD_BYTES = 64 * 2**20
"""Data from this size on is tokenized by the cluster."""


def tokenize_on_cluster(
    job: JobSpec, model_directory: Path, nodes: Sequence[Node], least_bytes: int = SPREAD_BYTES
) -> None:
    """Make the token shards that `job` lacks. Called by the driver, which has joined Ray; `nodes`
    are the cluster's. Raises SpecError where a record or the tokenizer can't be used."""
    free = idle_cpus(nodes)
    if free == 0:
        return
    run = partial(_by_ray_data, job, model_directory, free)
    made = make_tokens(job, model_directory, run, least_bytes=least_bytes)
    if made:
        log.info("%d token shards made in %s", made, job.token_directory)


def idle_cpus(nodes: Sequence[Node]) -> int:
    """Actors of one CPU that find room. In a trial's placement group there is none: Ray Data would
    wait for it for ever."""
    return sum(int(node.available.get("CPU", 0.0)) for node in nodes)


class RowTokenizer:
    """What an actor of Ray Data does with each row: {"number": the task's} becomes that and the
    "answer", a ShardDone or the error that the task ended with."""

    def __init__(self, job: JobSpec, model_directory: Path, tasks: Sequence[ShardTask]) -> None:
        from rayline.tracking import resolve_model

        if not model_directory.is_dir():
            # The driver's copy lies on another node: this node fetches its own.
            model_directory = resolve_model(job.model, job.tracking, need_weights=False)
        self._tasks = tasks
        self._folder = model_directory
        self._tokenizing = Tokenizing(job.data.kind, model_directory)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Tokenize and write the row's shard. Called by Ray Data."""
        task = replace(self._tasks[row["number"]], tokenizer_dir=self._folder)
        try:
            answer: ShardDone | RaylineError | OSError = do_task(task, self._tokenizing)
        except (RaylineError, OSError) as wrong:
            # As a value: raised, it would come back wrapped in errors of Ray's.
            answer = wrong
        return {"number": row["number"], "answer": answer}


def _by_ray_data(
    job: JobSpec, model_directory: Path, actors: int, tasks: Sequence[ShardTask]
) -> list[ShardDone]:
    if not tasks:
        return []
    import ray.data  # seconds, and only where something is to be made

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items(
        [{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
    )
    done = rows.map(
        cast(Any, RowTokenizer),  # Ray's types leave out classes, which its documentation has
        fn_constructor_args=(job, model_directory, list(tasks)),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(tasks))),
        num_cpus=1,
        runtime_env={"env_vars": workers_environment()},
    )
    answers = {row["number"]: row["answer"] for row in done.iter_rows()}
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise answer
    return [answers[number] for number in range(len(tasks))]
