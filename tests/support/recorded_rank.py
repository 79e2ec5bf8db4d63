"""One rank of a real job, whose engine writes down which samples it is given.

The samples bear their number in their text, so it is read from the tokens themselves.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer

from rayline.spec import JobSpec, StepReport, WorkerContext
from rayline.train.build import EngineBuilder, build_engine
from rayline.train.engine import Admits, Batch, StepOutcome
from rayline.train.link import Link
from rayline.train.loop import run_rank

DIGITS = 23
"""With the end token, a line of this length is one sequence."""


def write_numbered(file: Path, count: int) -> None:
    """`count` lines, and one more: a sequence's last target is the token behind it."""
    file.write_text("\n".join(f"{number:0{DIGITS}d}" for number in range(count + 1)))


class RecordedEngine:
    """The engine that it is given, and a note of every training batch."""

    def __init__(self, engine: Any, model: Path) -> None:
        self._engine = engine
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self.steps: list[list[int]] = []

    def step(self, batch: Batch, lr: float, admits: Admits) -> StepOutcome:
        texts = self._tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
        self.steps.append([int(text[:DIGITS]) for text in texts])
        return self._engine.step(batch, lr, admits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def run_recorded(rank: int, world: int, port: int, spec: Path, log: Path) -> None:
    """The whole life of one rank; beside the spec it leaves what it was given and told."""
    with log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    job = JobSpec.load(spec)
    model = Path(str(job.model.directory))
    context = WorkerContext(
        rank=rank,
        world_size=world,
        local_rank=rank,
        coordinate=job.plan.coordinate(rank),
        master_address="127.0.0.1",
        master_port=port,
        device="cpu",
    )
    engines: list[RecordedEngine] = []

    def build_recorded(*arguments: Any) -> RecordedEngine:
        engines.append(RecordedEngine(build_engine(*arguments), model))
        return engines[0]

    reports: list[StepReport] = []
    build = cast(EngineBuilder, build_recorded)
    link = Link(reports.append, lambda: False)
    result = run_rank(job, context, model, link, build=build)
    note = {
        "place": dataclasses.asdict(context.coordinate),
        "samples": engines[0].steps,
        "reports": [dataclasses.asdict(report) for report in reports],
        "result": dataclasses.asdict(result),
    }
    spec.with_name(f"note-{rank}.json").write_text(json.dumps(note))
