"""What a checkpoint says about the run that wrote it, besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rayline.spec import ModelShape, ParallelPlan


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """The manifest less what the writing itself finds out (files, pieces); equal on every rank."""

    step: int
    """Optimizer steps done."""
    samples_consumed: int
    """Sequences used."""
    plan: ParallelPlan
    engine: str
    spec_fingerprint: str
    """`JobSpec.fingerprint()`."""
    model_fingerprint: str
    """`model_fingerprint(shape)` of the model that is trained."""
    scalars: dict[str, float | int]
    """`Engine.scalars()`; every value is finite."""


def model_fingerprint(shape: ModelShape) -> str:
    """The shape as one line of text, so that an error can say how two models differ."""
    return " ".join(f"{field.name}={getattr(shape, field.name)}" for field in fields(shape))


def fingerprint_difference(saved: str, wanted: str) -> str:
    """What differs between two fingerprints: the fields with both values, or the whole texts."""
    ours, theirs = _parts(wanted), _parts(saved)
    if ours.keys() != theirs.keys():
        return f"{saved!r} there, {wanted!r} here"
    return ", ".join(
        f"{name} {theirs[name]} there, {ours[name]} here"
        for name in ours
        if ours[name] != theirs[name]
    )


def _parts(fingerprint: str) -> dict[str, str]:
    split = (part.partition("=") for part in fingerprint.split(" "))
    return {name: value for name, _, value in split}
