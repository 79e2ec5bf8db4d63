"""DeepSpeed's universal checkpoints: one folder a parameter, whole, under no plan.

    latest_universal                                  the name of the folder below
    global_step6_universal/
        mp_rank_00_model_states.pt                    steps and samples
        zero_pp_rank_0_mp_rank_00_model_states.pt     the same, where ZeRO 3 looks for it
        zero/optimizer_state.pt                       each group's rate, decay and betas
        zero/NAME/fp32.pt, exp_avg.pt, exp_avg_sq.pt  {"param": tensor}; from ZeRO 3 a flat tensor
        zero/NAME/step.pt                             optimizer steps done; from ZeRO 3 none

Written and read as DeepSpeed 0.19.8 does it: checkpoint/ds_to_universal.py,
checkpoint/universal_checkpoint.py, runtime/engine.py, runtime/zero/stage3.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rayline.checkpoint.torch_file import read_torch_file
from rayline.errors import CheckpointError

DEEPSPEED_VERSION = "0.19.8"
"""The version whose files these are; written into them, as DeepSpeed asks for it."""
STATES = ("exp_avg", "exp_avg_sq")
"""What is kept beside a weight: all that DeepSpeed's converter knows."""
_UNIVERSAL_VERSION = 0.4
_LATEST = "latest_universal"
_MODEL_STATES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARAMETER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
"""A parameter's name becomes a folder: nothing that could lead out of the one it is made in."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run had come."""

    steps: int
    """Steps done, those included that were skipped."""
    optimizer_steps: int
    """Steps that the optimizer took: its bias corrections go by them."""
    samples: int
    """Sequences consumed."""


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are stepped alike, as torch's Adam and DeepSpeed's both name it."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class UniversalWriter:
    """Fills a new folder, parameter by parameter; `finish` comes last."""

    def __init__(self, root: Path, progress: Progress) -> None:
        """`root` is made; it must not exist. Raises CheckpointError."""
        self._root = root
        self._progress = progress
        self._tag = f"global_step{progress.steps}_universal"
        self._zero = root / self._tag / "zero"
        try:
            self._zero.mkdir(parents=True)
        except OSError as wrong:
            raise _not_written(self._zero, wrong) from None

    def put(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """One parameter: its weight as `fp32`, and its states. Raises CheckpointError, also for a
        name that is no folder's."""
        folder = self._zero / checked_name(name)
        try:
            folder.mkdir()
        except OSError as wrong:
            raise _not_written(folder, wrong) from None
        for key, tensor in tensors.items():
            # cat_dim: what the parts of a tensor-parallel rank were joined along; there are none.
            _save(folder / f"{key}.pt", {"param": tensor, "cat_dim": 0})
        _save(folder / "step.pt", self._step())

    def finish(self, groups: Sequence[Group], clip_grad: float) -> None:
        """What belongs to no parameter. Raises CheckpointError."""
        told = [
            {
                "lr": group.lr,
                "betas": group.betas,
                "eps": group.eps,
                "weight_decay": group.weight_decay,
                "params": [number],
            }
            for number, group in enumerate(groups)
        ]
        state = {
            "ds_version": DEEPSPEED_VERSION,
            "clip_grad": clip_grad,
            "param_groups": told,
            # Where ZeRO 3 looks: it takes the step from the first state, and the first group.
            "optimizer_state_dict": {"state": {0: {"step": self._step()}}, "param_groups": told},
        }
        _save(self._zero / "optimizer_state.pt", state)
        for file in _MODEL_STATES:
            _save(self._root / self._tag / file, self._model_states(len(groups)))
        try:
            (self._root / _LATEST).write_text(self._tag)
        except OSError as wrong:
            raise _not_written(self._root / _LATEST, wrong) from None

    def _step(self) -> torch.Tensor:
        """A float, as torch's Adam counts."""
        return torch.tensor(float(self._progress.optimizer_steps))

    def _model_states(self, groups: int) -> dict[str, Any]:
        """What the engine takes over by itself. Weights are not among it: a universal checkpoint's
        are read from zero/."""
        steps = self._progress.steps
        return {
            "module": {},
            "optimizer": None,
            # DeepSpeed's schedulers read the first of these, torch's the others.
            "lr_scheduler": {
                "last_batch_iteration": steps - 1,
                "last_epoch": steps,
                "lr_lambdas": [None] * groups,
            },
            "global_steps": steps,
            "global_samples": self._progress.samples,
            "skipped_steps": steps - self._progress.optimizer_steps,
            "dp_world_size": 1,
            "mp_world_size": 1,
            "ds_version": DEEPSPEED_VERSION,
            "universal_checkpoint_info": {"universal_checkpoint_version": _UNIVERSAL_VERSION},
        }


class UniversalReader:
    """A universal checkpoint that somebody wrote, of which nothing is believed."""

    def __init__(self, source: Path) -> None:
        """`source`: the folder with `latest_universal`, or the one that it names. Raises
        CheckpointError where there is no such checkpoint."""
        self.folder = _tagged(source)
        self._zero = self.folder / "zero"

    def progress(self, name: str) -> Progress:
        """How far the run had come; `name` is any of its parameters. Raises CheckpointError."""
        file = next((self.folder / n for n in _MODEL_STATES if (self.folder / n).exists()), None)
        if file is None:
            raise CheckpointError(
                str(self.folder), f"holds no {_MODEL_STATES[0]}, which says what step it is of"
            )
        told = _dict(file, read_torch_file(file))
        steps = _count(file, "global_steps", told.get("global_steps"))
        skipped = _count(file, "skipped_steps", told.get("skipped_steps", 0))
        samples = _count(file, "global_samples", told.get("global_samples", 0))
        counter = self._file(name, "step")
        if not counter.exists():
            return Progress(steps, steps - skipped, samples)
        taken = read_torch_file(counter)
        if isinstance(taken, torch.Tensor) and taken.numel() == 1:
            taken = taken.item()
        return Progress(steps, _count(counter, "step", taken), samples)

    def names(self) -> list[str]:
        """Parameters of which there is a state, in the order of the alphabet: a tied copy and a
        buffer have a value alone."""
        return sorted(
            entry.name for entry in self._zero.iterdir() if (entry / f"{STATES[0]}.pt").exists()
        )

    def read(self, name: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One tensor of a parameter: `fp32`, or a state; mapped from its file where it is float32
        there. Raises CheckpointError where it is missing or of another shape."""
        file = self._file(name, key)
        found = read_torch_file(file)
        tensor = found.get("param") if isinstance(found, dict) else found
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise CheckpointError(str(file), "holds no tensor of floating-point numbers")
        # ZeRO 3 keeps them flat.
        if tuple(tensor.shape) not in (shape, (math.prod(shape),)):
            raise CheckpointError(
                str(file),
                f"of shape {shape} in the job's model",
                value=tuple(tensor.shape),
                fix="give the spec of the model that was trained",
            )
        if not tensor.is_contiguous():
            raise CheckpointError(str(file), "its tensor is a view that repeats or skips elements")
        return tensor.detach().reshape(shape).float()

    def _file(self, name: str, key: str) -> Path:
        return self._zero / checked_name(name) / f"{key}.pt"


def checked_name(name: str) -> str:
    """A parameter's name that is safe as a folder's. Raises CheckpointError."""
    if not _PARAMETER.fullmatch(name):
        raise CheckpointError(
            "parameter",
            "its name cannot be a folder's",
            value=name,
            allowed="letters, digits, and _ . - within it",
        )
    return name


def _tagged(source: Path) -> Path:
    if (source / "zero").is_dir():
        return source
    try:
        tag = (source / _LATEST).read_text()[:256].strip()
    except (OSError, UnicodeDecodeError):
        plain = (source / "latest").exists()
        raise CheckpointError(
            str(source),
            "a DeepSpeed checkpoint, but not a universal one"
            if plain
            else f"not a universal checkpoint: it holds neither {_LATEST} nor zero/",
            fix="python -m deepspeed.checkpoint.ds_to_universal --input_folder "
            "CHECKPOINT/global_stepN --output_folder CHECKPOINT/global_stepN_universal "
            "--inject_missing_state",
        ) from None
    if not _TAG.fullmatch(tag) or not (source / tag / "zero").is_dir():
        raise CheckpointError(
            str(source / _LATEST), "names no folder beside it that holds zero/", value=tag
        )
    return source / tag


def _dict(file: Path, found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise CheckpointError(str(file), "holds no dict", value=type(found).__name__)
    return found


def _count(file: Path, what: str, found: object) -> int:
    """A number of steps or samples."""
    whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
    if whole and int(found) >= 0:  # type: ignore[call-overload]
        return int(found)  # type: ignore[call-overload]
    raise CheckpointError(str(file), f"its {what} is no number of them", value=found)


def _save(path: Path, value: object) -> None:
    try:
        torch.save(value, path)
    except (OSError, RuntimeError) as wrong:
        raise _not_written(path, wrong) from None


def _not_written(path: Path, wrong: Exception) -> CheckpointError:
    first = str(wrong).partition("\n")[0]
    return CheckpointError(str(path), f"not written: {first}", fix="make room, or mend the storage")
