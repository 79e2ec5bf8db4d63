"""What every contender of engines.py trains on, and how it says how long it took.

A work folder holds `model/` (Hugging Face layout), `tokens.pt` (int64 [steps x sequences, tokens],
in the order of training) and `work.json`. Each contender runs the same steps on it and rank 0
writes the moments at which steps ended, and their losses, to a file of its own.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

STEPS_FILE = "BENCH_STEPS_FILE"
"""Environment variable: where rank 0 of a torchrun contender writes each step as it goes."""


@dataclass(frozen=True)
class Work:
    """The settings that all contenders share."""

    folder: str
    steps: int
    sequences: int
    workers: int
    zero_stage: int
    lr: float = 1e-3
    clip_grad_norm: float = 1.0
    device: Literal["cpu", "gpu"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"

    @classmethod
    def load(cls, folder: str) -> Work:
        return cls(**json.loads((Path(folder) / "work.json").read_text()))

    def save(self) -> None:
        (Path(self.folder) / "work.json").write_text(json.dumps(asdict(self)))

    @property
    def model(self) -> str:
        return f"{self.folder}/model"

    @property
    def share(self) -> int:
        """Sequences of one step that one worker computes."""
        return self.sequences // self.workers

    def described(self) -> str:
        """In words, for a result file."""
        plan = f"data {self.workers}, ZeRO-{self.zero_stage}"
        return f"{self.precision}, {plan}, {self.sequences} sequences a step, {self.steps} steps"

    def tokens(self) -> torch.Tensor:
        """[steps, sequences, tokens]."""
        tokens: torch.Tensor = torch.load(f"{self.folder}/tokens.pt", weights_only=True)
        return tokens.view(self.steps, self.sequences, -1)


@dataclass
class Record:
    """When steps ended and what they lost."""

    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        self.ends.append(time.time())
        self.losses.append(loss)
        # Who takes turns with others has to tell of each step at once.
        steps = os.environ.get(STEPS_FILE)
        if steps and os.environ.get("RANK") == "0" and len(self.ends) > 1:
            with Path(steps).open("a") as file:
                file.write(f"{self.ends[-2]!r} {self.ends[-1]!r} {loss!r}\n")

    def save(self, out: str) -> None:
        seconds = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        Path(out).write_text(json.dumps({"seconds": seconds, "losses": self.losses}))
