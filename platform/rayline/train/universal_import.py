"""A universal checkpoint of DeepSpeed's as a checkpoint of a job, from which it goes on under any
plan and either engine.

The spec says what is trained; of the source only numbers are taken: tensors of the shapes that the
spec's model has, and counts. They are mapped from the source's files while they are written anew,
so no more than a few pages of them are in memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from rayline.checkpoint import (
    CheckpointHeader,
    Location,
    commit,
    discard,
    list_steps,
    located,
    make_folder,
    model_fingerprint,
    write_own,
    writing_folder,
)
from rayline.checkpoint.folder import final_folder, step_name
from rayline.checkpoint.universal import STATES, Progress, UniversalReader
from rayline.errors import CheckpointError, SpecError
from rayline.models.skeleton import parameter_shapes
from rayline.models.stage import load_config
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointSource, JobSpec, ModelShape
from rayline.train.optimizer import AVERAGE
from rayline.train.stored_export import Observer, adam

SHARD_BYTES = 2 * 2**30
"""Most that goes into one file, where a parameter alone does not have more."""
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class ImportedCheckpoint:
    """What came of an import."""

    checkpoint: str
    """Folder of the new checkpoint."""
    source: str
    """Folder that it was made of."""
    step: int
    optimizer_steps: int
    samples_consumed: int
    """Sequences that the job counts as used: those of so many steps of its own batch."""
    source_samples: int
    """Sequences that DeepSpeed counted."""
    parameters: int


@dataclass(frozen=True, slots=True)
class UniversalImport:
    """An import that can be made: everything but the tensors was looked at."""

    job: JobSpec
    root: Location
    reader: UniversalReader
    progress: Progress
    shapes: dict[str, tuple[int, ...]]
    model: str
    """Fingerprint of the model's shape."""

    @classmethod
    def prepare(cls, source: Path, job: JobSpec, model_directory: Path) -> UniversalImport:
        """Look at the source and the place where its checkpoint would stand. Raises SpecError
        where the job could not go on from it, CheckpointError where there is no such checkpoint,
        it is of another model, or checkpoints stand in the job's folder already."""
        adam(job)
        root = located(CheckpointSource.of_job(job).root)
        if steps := list_steps(root):
            raise CheckpointError(
                str(root),
                f"holds a checkpoint already, of step {steps[-1]}",
                fix="`rayline train` goes on from it; for another import give another output_dir",
            )
        reader = UniversalReader(source)
        shapes = parameter_shapes(model_directory)
        _check_names(reader, list(shapes))
        progress = reader.progress(next(iter(shapes)))
        if progress.steps > job.steps:
            raise SpecError(
                "steps",
                f"the checkpoint is of step {progress.steps} already",
                value=job.steps,
                allowed=f"{progress.steps} or more, those that were done included",
            )
        shape = ModelShape.from_config(load_config(model_directory).to_dict())
        return cls(job, root, reader, progress, shapes, model_fingerprint(shape))

    def outcome(self) -> ImportedCheckpoint:
        """What the import comes to."""
        step = self.progress.steps
        return ImportedCheckpoint(
            checkpoint=str(self.root / step_name(step)),
            source=str(self.reader.folder),
            step=step,
            optimizer_steps=self.progress.optimizer_steps,
            samples_consumed=self.job.batch.samples_after(step),
            source_samples=self.progress.samples,
            parameters=sum(map(prod, self.shapes.values())),
        )

    def run(
        self,
        observe: Observer = lambda done, total: None,
        shard_bytes: int = SHARD_BYTES,
    ) -> ImportedCheckpoint:
        """Write the checkpoint; nothing stands there before it is whole. Raises CheckpointError."""
        header = self._header()
        writing = writing_folder(self.root, header.step, secrets.token_hex(4))
        fault = "interrupted"
        try:
            make_folder(writing)
            reports, done = [], 0
            for number, names in enumerate(self._shards(shard_bytes)):
                pieces = [piece for name in names for piece in self._pieces(name)]
                reports.append(write_own(writing, pieces, number))
                done += len(names)
                observe(done, len(self.shapes))
            fault = commit(self.root, writing, header, reports, self.job.checkpoint.keep)
        except OSError as wrong:
            fault = str(wrong)
        finally:
            if fault:
                discard(writing)
        if fault:
            raise CheckpointError(
                str(self.root), f"not written: {fault}", fix="make room, or mend the storage"
            )
        return replace(self.outcome(), checkpoint=str(final_folder(writing)))

    def _header(self) -> CheckpointHeader:
        return CheckpointHeader(
            step=self.progress.steps,
            samples_consumed=self.job.batch.samples_after(self.progress.steps),
            plan=self.job.plan,
            engine="deepspeed",
            spec_fingerprint=self.job.fingerprint(),
            model_fingerprint=self.model,
            scalars={"optimizer_steps": self.progress.optimizer_steps},
        )

    def _shards(self, shard_bytes: int) -> Iterator[list[str]]:
        """The parameters that go into each file with their states."""
        names: list[str] = []
        held_bytes = 0
        for name, shape in self.shapes.items():
            size_bytes = prod(shape) * _FLOAT32_BYTES * (1 + len(STATES))
            if names and held_bytes + size_bytes > shard_bytes:
                yield names
                names, held_bytes = [], 0
            names.append(name)
            held_bytes += size_bytes
        yield names

    def _pieces(self, name: str) -> list[Piece]:
        shape = self.shapes[name]
        keys = {f"weight/{name}": "fp32", **{f"optimizer/{s}/{name}": s for s in STATES}}
        if self.job.ema is not None:
            # DeepSpeed keeps none: it begins at the weights.
            keys[f"optimizer/{AVERAGE}/{name}"] = "fp32"
        return [
            Piece(key, shape, (0,) * len(shape), self.reader.read(name, file, shape), owner=True)
            for key, file in keys.items()
        ]


def _check_names(reader: UniversalReader, wanted: list[str]) -> None:
    """Refuse a checkpoint of other parameters than the job's model has. Raises CheckpointError."""
    found = reader.names()
    missing = [name for name in wanted if name not in set(found)]
    unknown = [name for name in found if name not in set(wanted)]
    if not missing and not unknown:
        return
    told = [
        f"{len(names)} {what}, such as {names[0]}"
        for what, names in (("are missing", missing), ("are not the model's", unknown))
        if names
    ]
    raise CheckpointError(
        str(reader.folder),
        f"of another model than the job's: of its parameters {'; '.join(told)}",
        allowed="parameters named as transformers names those of the job's model",
        fix="give the spec of the model that was trained; a module around the model changes names",
    )
