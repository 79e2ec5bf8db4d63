"""A batch answered by engines that are started for it, over Ray Data.

Each engine is an actor of Ray Data's pool, placed as a replica is, that answers with vLLM's OpenAI
layer: tools, schemas and embeddings come out as a deployment gives them. (ray.data.llm's own
processor hands back text and counts, not OpenAI's answers.) Rows travel in small blocks, several of
which an engine has at once, so that it is never idle between two of them; a block whose actor died
is given to another.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import ray
import ray.data
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayline.serving.batch.lines import BatchAnswer, BatchFile, BatchLine
from rayline.serving.batch.output import BatchOutput
from rayline.serving.batch.rows import EngineRows
from rayline.serving.requests import Tree
from rayline.serving.settings import environment, placement_strategy, replica_bundles
from rayline.spec import Device, ServeSpec

_BLOCKS_AT_ONCE = 4
"""Blocks that one engine works on: while one ends, the next ones keep it busy."""


def run_on_engines(
    file: BatchFile,
    output: BatchOutput,
    spec: ServeSpec,
    device: Device,
    observe: Callable[[], None] = lambda: None,
) -> None:
    """Answer every line that has no answer yet, by scale.min_replicas to scale.max_replicas
    engines. `spec` has its model pinned; `observe` is called after each answer.

    Called by the driver, which has joined Ray. Raises what starting an engine raises.
    """
    waiting = [line for line in file.lines if line.custom_id not in output.done]
    if not waiting:
        return
    for row in _answered_rows(file, waiting, spec, device):
        if row["failure"] is not None:
            raise row["failure"]
        body = cast("Tree", json.loads(row["body"]))
        output.write(BatchAnswer(row["custom_id"], int(row["status"]), row["request_id"], body))
        observe()


def rows_of_a_block(lines: int, replicas: int, max_num_seqs: int) -> int:
    """Rows of one block: with several blocks at once every sequence of the engine is in use, and at
    the end of the batch no engine waits long for another."""
    enough = -(-max_num_seqs // (_BLOCKS_AT_ONCE - 1))
    return max(1, min(enough, -(-lines // (replicas * _BLOCKS_AT_ONCE))))


def _answered_rows(
    file: BatchFile, waiting: list[BatchLine], spec: ServeSpec, device: Device
) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    least, most = max(1, spec.scale.min_replicas), max(1, spec.scale.max_replicas)
    size = rows_of_a_block(len(waiting), most, spec.engine.max_num_seqs)
    rows = [
        {"custom_id": line.custom_id, "route": line.route, "body": json.dumps(body)}
        for line, body in zip(waiting, file.bodies(waiting), strict=True)
    ]
    groups: list[Any] = []
    try:
        answers = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size)).map_batches(
            cast("Any", EngineRows),  # Ray's types leave out classes, which its documentation has
            fn_constructor_args=(spec.model_dump(mode="json"), device),
            compute=ray.data.ActorPoolStrategy(
                min_size=least, max_size=most, max_tasks_in_flight_per_actor=2 * _BLOCKS_AT_ONCE
            ),
            batch_size=None,
            num_cpus=spec.cpus_per_replica,
            max_concurrency=_BLOCKS_AT_ONCE,
            runtime_env={"env_vars": environment(spec, device)},
            ray_remote_args_fn=lambda: _place(spec, device, groups),
        )
        yield from answers.iter_rows()
    finally:
        for group in groups:
            ray.util.remove_placement_group(group)


def _place(spec: ServeSpec, device: Device, groups: list[Any]) -> dict[str, Any]:
    """A placement group for one engine, as a replica has it. Called by Ray Data, on the driver."""
    group = ray.util.placement_group(
        replica_bundles(spec, device), strategy=placement_strategy(spec)
    )
    groups.append(group)
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    return {"scheduling_strategy": inside}
