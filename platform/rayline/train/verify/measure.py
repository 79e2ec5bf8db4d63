"""What a trial's ranks left behind, measured against the reference: tensors in, figures out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rayline import checkpoint
from rayline.parallel.piece import Piece
from rayline.spec import StepReport
from rayline.train.verify.trial import RESUME_AFTER, Lived, ReferenceResult, Trial
from rayline.train.verify.verdict import FIRST_RESUMED, Figures, Measured

Tensors = dict[str, torch.Tensor]
_WEIGHT = "weight/"


def measure(
    trials: Sequence[Trial], lived: Sequence[Lived], folder: Path, reference: ReferenceResult
) -> list[Measured]:
    """All figures of every trial. One process calls it, after every rank has lived; `lived` is what
    rank 0 saw of each, `folder` that of `train_twice`. Raises CheckpointError where a checkpoint
    cannot be read."""
    return [
        _measure(trial, seen, folder, reference) for trial, seen in zip(trials, lived, strict=True)
    ]


def _measure(trial: Trial, lived: Lived, folder: Path, reference: ReferenceResult) -> Measured:
    start = load_file(folder / "start.safetensors")
    ended, expected = whole_weights(trial), load_file(folder / "weights.safetensors")
    found = _figures(_changes(ended, start), _changes(expected, start), reference.weight_noise)
    runs = (lived.unbroken, lived.resumed)
    compared, resumed = _compare_runs(*runs)
    tensors, differing = _compare_checkpoints(trial)
    return Measured(
        start=tuple(_figures(load_file(trial.start), start, {})),
        gradients=tuple(
            _figures(
                load_file(trial.gradients),
                load_file(folder / "gradients.safetensors"),
                reference.gradient_noise,
            )
        ),
        losses=_by_step(
            [report.loss for report in lived.unbroken], reference.losses, reference.loss_noise
        ),
        grad_norms=_by_step(
            [report.grad_norm for report in lived.unbroken],
            reference.grad_norms,
            reference.grad_norm_noise,
        ),
        weights=tuple(found),
        resumed=(*resumed, *differing),
        compared_on_resume=compared + tensors,
    )


def whole_weights(trial: Trial) -> Tensors:
    """Every parameter's value at the end of the unbroken run, put together from its checkpoint."""
    folder = trial.checkpoint("unbroken")
    manifest = checkpoint.read_manifest(folder)
    shapes = {p.tensor: tuple(p.shape) for p in manifest.pieces if p.tensor.startswith(_WEIGHT)}
    pieces = [
        Piece(name, shape, (0,) * len(shape), torch.empty(shape), owner=False)
        for name, shape in shapes.items()
    ]
    checkpoint.read_into(folder, manifest, pieces)
    return {piece.tensor.removeprefix(_WEIGHT): piece.data for piece in pieces}


def _changes(weights: Tensors, start: Tensors) -> Tensors:
    return {name: w - start[name] if name in start else w for name, w in weights.items()}


def _figures(here: Tensors, there: Tensors, noise: Mapping[str, float]) -> Iterator[Figures]:
    for name in sorted(here.keys() | there.keys()):
        if name in here and name in there and here[name].shape == there[name].shape:
            yield figures_of(name, here[name], there[name], noise.get(name, 0.0))
        else:
            norms = [float(t[name].norm()) if name in t else math.nan for t in (here, there)]
            yield Figures(name, norms[0], norms[1], math.nan)


def figures_of(name: str, here: torch.Tensor, there: torch.Tensor, noise: float = 0.0) -> Figures:
    """Figures of one tensor; computed in float64, so that measuring adds no error."""
    a, b = here.double().flatten(), there.double().flatten()
    norms = float(a.norm()), float(b.norm())
    product = norms[0] * norms[1]
    apart = float((a - b).norm())
    return Figures(
        name=name,
        here=norms[0],
        there=norms[1],
        apart=apart,
        noise=noise,
        cosine=float(a @ b) / product if product > 0 else 0.0,
        permuted=bool(apart > 0.01 * norms[1] and _permuted(a, b)),
    )


def _permuted(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both hold the same values, up to rounding, in whatever places."""
    ordered = a.sort().values, b.sort().values
    return float((ordered[0] - ordered[1]).norm()) < 1e-3 * float(ordered[1].norm())


def _by_step(
    here: list[float], there: tuple[float, ...], noise: tuple[float, ...]
) -> tuple[Figures, ...]:
    return tuple(
        Figures(f"step {step}", a, b, abs(a - b), rounding)
        for step, (a, b, rounding) in enumerate(zip(here, there, noise, strict=True), start=1)
    )


def _compare_runs(
    unbroken: tuple[StepReport, ...], resumed: tuple[StepReport, ...]
) -> tuple[int, list[Figures]]:
    """Numbers compared, and those of the resumed run that are not the unbroken one's to the bit."""
    steps, steps_again = ([report.step for report in run] for run in (unbroken, resumed))
    if steps != steps_again:
        began = float(steps_again[RESUME_AFTER]) if len(steps_again) > RESUME_AFTER else math.nan
        wanted = float(RESUME_AFTER + 1)
        return 1, [Figures("first step after the resume", began, wanted, abs(began - wanted))]
    differing = []
    for kind in ("loss", "grad_norm"):
        for before, after in zip(unbroken, resumed, strict=True):
            b, a = getattr(before, kind), getattr(after, kind)
            if a != b:
                first = FIRST_RESUMED if after.step == RESUME_AFTER + 1 else ""
                differing.append(Figures(f"{kind} of step {after.step}{first}", a, b, abs(a - b)))
    return 2 * len(unbroken), differing


def _compare_checkpoints(trial: Trial) -> tuple[int, list[Figures]]:
    """Tensors compared, and the figures of the worst piece of each that differs."""
    unbroken, resumed = (dict(_pieces(trial.checkpoint(run))) for run in ("unbroken", "resumed"))
    worst: dict[str, Figures] = {}
    for key in sorted(unbroken.keys() | resumed.keys()):
        name = key.rpartition("@")[0]
        a, b = resumed.get(key), unbroken.get(key)
        if a is None or b is None:
            norms = [math.nan if t is None else float(t.double().norm()) for t in (a, b)]
            worst[name] = Figures(name, norms[0], norms[1], math.nan)
        elif not torch.equal(a, b):
            found = figures_of(name, a, b)
            if name not in worst or worst[name].error < found.error:
                worst[name] = found
    names = {key.rpartition("@")[0] for key in unbroken.keys() | resumed.keys()}
    return len(names), list(worst.values())


def _pieces(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every stored piece as it is, by its tensor's name and place."""
    manifest = checkpoint.read_manifest(folder)
    for record in manifest.pieces:
        with safe_open(folder / record.file, framework="pt") as shard:
            yield f"{record.tensor}@{record.offset}", shard.get_tensor(record.key)
