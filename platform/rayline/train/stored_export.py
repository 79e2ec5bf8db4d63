"""A stored checkpoint as a Hugging Face folder or as DeepSpeed's universal checkpoint.

One process reads it, one tensor at a time, whatever plan wrote it: no gang, no device, and never
the whole model in memory. The folder is filled under a temporary name and gets its own once it is
complete; what it was made of is written into it, so that the same export is made once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from rayline.checkpoint import Found, list_steps, located, model_fingerprint, newest_intact
from rayline.checkpoint.universal import STATES, Group, Progress, UniversalWriter
from rayline.checkpoint.whole import WholeTensors
from rayline.errors import CheckpointError, SpecError
from rayline.models.export import write_hugging_face
from rayline.models.skeleton import parameter_shapes
from rayline.models.stage import load_config
from rayline.models.stored import StoredNames
from rayline.spec import AdamWSpec, CheckpointSource, JobSpec, LambSpec, ModelShape
from rayline.train.optimizer import AVERAGE, rate_and_decay
from rayline.train.schedule import Plateau, learning_rate

log = logging.getLogger(__name__)

ExportFormat = Literal["huggingface", "universal"]
Observer = Callable[[int, int], None]
"""Told how many parameters are done, and how many there are."""
_ORIGIN_FILE = "rayline-export.json"


@dataclass(frozen=True, slots=True)
class StoredExport:
    """What came of exporting a stored checkpoint."""

    directory: str
    format: ExportFormat
    step: int
    parameters: int
    checkpoint: str
    """Folder that it was made of."""
    skipped: list[str]
    """Newer checkpoints that were damaged and passed over, and why."""
    made: bool
    """False where the same export stands there already."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """What an export is determined by."""

    format: ExportFormat
    step: int
    manifest_sha256: str
    spec_fingerprint: str


def find_stored(source: CheckpointSource, model_directory: Path) -> Found:
    """The checkpoint that is meant, every byte of it verified. Raises CheckpointError."""
    shape = ModelShape.from_config(load_config(model_directory).to_dict())
    root = located(source.root)
    found = newest_intact(root, model_fingerprint(shape), source.step)
    if found is not None:
        return found
    if source.step is None:
        raise CheckpointError(
            source.root,
            "holds no checkpoint to export",
            fix="train the job first, or give the output_dir, or checkpoint.directory, that it was "
            "trained with",
        )
    raise CheckpointError(
        source.root,
        "holds no checkpoint of this step",
        value=source.step,
        allowed=", ".join(map(str, list_steps(root))) or "none: it holds no checkpoint",
        fix="checkpoint.keep says how many stay",
    )


def export_stored(
    source: CheckpointSource,
    model_directory: Path,
    target: Path,
    form: ExportFormat,
    *,
    dry_run: bool = False,
    observe: Observer = lambda done, total: None,
) -> StoredExport:
    """Write the checkpoint that `source` means into the new folder `target`; `model_directory`
    holds the config and tokenizer of the job's model. One process calls it; `dry_run` looks at all
    and writes nothing.

    Raises SpecError where the optimizer has no such form or `target` holds anything else,
    CheckpointError where the checkpoint is damaged, of another model, or the disk is full.
    """
    job, target = source.job, target.absolute()
    if form == "universal":
        adam(job)
    # Before the checkpoint's every byte is read.
    standing = _standing(target)
    found = find_stored(source, model_directory)
    origin = asdict(_origin(found, job, form))
    if standing not in (None, origin):
        raise _taken(target, f"holds another export: {_ORIGIN_FILE} says which")
    shapes = parameter_shapes(model_directory)
    outcome = StoredExport(
        directory=str(target),
        format=form,
        step=found.manifest.step,
        parameters=sum(map(prod, shapes.values())),
        checkpoint=str(found.folder),
        skipped=found.skipped,
        made=standing is None,
    )
    if dry_run or not outcome.made:
        return outcome
    with _renamed_when_whole(target) as partial:
        if form == "universal":
            _write_universal(found, job, shapes, partial, observe)
        else:
            weights = _weights(found, job, shapes, observe)
            names = StoredNames(load_config(model_directory).model_type)
            write_hugging_face(weights, model_directory, partial, torch.float32, names)
        (partial / _ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n")
    log.info("exported step %d to %s", outcome.step, target)
    return outcome


@contextmanager
def _renamed_when_whole(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, which takes its place at the end; nothing stays where that
    is not reached. Raises CheckpointError where storage fails."""
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.rename(target)
    except (OSError, SafetensorError) as wrong:
        raise CheckpointError(
            f"export {target}", f"not written: {wrong}", fix="make room, or mend the storage"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def adam(job: JobSpec) -> AdamWSpec | LambSpec:
    """The job's optimizer, where it keeps what a universal checkpoint holds. Raises SpecError."""
    if isinstance(job.optim, AdamWSpec | LambSpec):
        return job.optim
    raise SpecError(
        "optim.kind",
        "a universal checkpoint holds Adam's two means of each parameter and nothing else",
        value=getattr(job.optim, "kind", None),
        allowed="adamw, lamb",
    )


def _standing(target: Path) -> object:
    """What the export in `target` is made of; None where nothing stands there. Raises SpecError
    where something else does."""
    try:
        return json.loads((target / _ORIGIN_FILE).read_text())
    except (OSError, ValueError):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise _taken(target, "holds something else") from None
        return None


def _taken(target: Path, problem: str) -> SpecError:
    return SpecError("to", problem, value=str(target), fix="give a folder that is new or empty")


def _origin(found: Found, job: JobSpec, form: ExportFormat) -> _Origin:
    text = json.dumps(found.manifest.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _Origin(form, found.manifest.step, digest, job.fingerprint())


def _weights(
    found: Found, job: JobSpec, shapes: dict[str, tuple[int, ...]], observe: Observer
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight, or its running mean where the job exports that."""
    averaged = job.ema is not None and job.ema.export
    prefix = f"optimizer/{AVERAGE}" if averaged else "weight"
    stored = WholeTensors(found.folder, found.manifest)
    stored.check({f"{prefix}/{name}": shape for name, shape in shapes.items()})
    for number, (name, shape) in enumerate(shapes.items(), 1):
        yield name, stored.read(f"{prefix}/{name}", shape)
        observe(number, len(shapes))


def _write_universal(
    found: Found,
    job: JobSpec,
    shapes: dict[str, tuple[int, ...]],
    root: Path,
    observe: Observer,
) -> None:
    manifest = found.manifest
    stored = WholeTensors(found.folder, manifest)
    tensors = {"fp32": "weight", **{state: f"optimizer/{state}" for state in STATES}}
    for prefix in tensors.values():
        stored.check({f"{prefix}/{name}": shape for name, shape in shapes.items()})
    progress = Progress(
        steps=manifest.step,
        optimizer_steps=int(manifest.scalars["optimizer_steps"]),
        samples=manifest.samples_consumed,
    )
    writer = UniversalWriter(root, progress)
    for number, (name, shape) in enumerate(shapes.items(), 1):
        writer.put(
            name,
            {key: stored.read(f"{prefix}/{name}", shape) for key, prefix in tensors.items()},
        )
        observe(number, len(shapes))
    # The next step's, as a scheduler leaves it behind a step.
    plateau = Plateau.from_scalars(manifest.scalars)
    lr = learning_rate(job.optim, manifest.step + 1, job.steps, plateau)
    writer.finish(optimizer_groups(job, shapes, lr), job.optim.clip_grad_norm or 0.0)


def optimizer_groups(job: JobSpec, shapes: dict[str, tuple[int, ...]], lr: float) -> list[Group]:
    """Parameters that are stepped alike, in the order in which the model first has one of them: as
    a rule matrices, then vectors. Two at least, because DeepSpeed leaves unread, without a word,
    what a program puts into more groups than the checkpoint names."""
    optim = adam(job)
    told = dict.fromkeys(rate_and_decay(name, len(shape), optim) for name, shape in shapes.items())
    groups = [
        Group(lr=lr * scale, betas=optim.betas, eps=optim.eps, weight_decay=decay)
        for scale, decay in told
    ]
    return groups if len(groups) > 1 else groups * 2
