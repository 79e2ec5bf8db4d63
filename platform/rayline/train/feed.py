"""The data path of one rank: which sequences it computes, in each step and in an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rayline.data import (
    ALL,
    HELD_OUT_FILES,
    TRAINING_FILES,
    MixtureOrder,
    SampleOrder,
    Split,
    TokenDataset,
    collate,
    load_dataset,
    share,
)
from rayline.errors import SpecError
from rayline.spec import NO_TARGET, BatchSpec, Coordinate, EvalReport, JobSpec
from rayline.train.engine import Batch, Engine

Order = SampleOrder | MixtureOrder
"""Maps samples consumed and a count to the numbers of the samples that are next."""


def samples_of_step(
    order: Order, step: int, batch: BatchSpec, data_rank: int, data_size: int
) -> list[int]:
    """Numbers of the samples that one data rank computes in `step` (from 1). Which samples the
    shares of all ranks make up depends on the step alone, not on how many ranks there are."""
    indices = order.indices(batch.samples_after(step - 1), batch.sequences_at(step))
    return share(indices, data_rank, data_size)


@dataclass(frozen=True, slots=True)
class TrainingFeed:
    """The training sequences of one data rank."""

    dataset: TokenDataset
    order: MixtureOrder
    size: BatchSpec
    """The global batch."""
    data_rank: int
    data_size: int

    @classmethod
    def load(cls, job: JobSpec, place: Coordinate, model_directory: Path) -> Self:
        """Read the training data, on every rank; the feed of the one at `place`. Raises SpecError
        where it cannot be read."""
        fraction = job.held_out_fraction
        dataset = load_dataset(
            job.data,
            model_directory,
            split=Split("training", fraction) if fraction else ALL,
            cache_dir=Path(job.token_directory),
        )
        return cls(dataset, dataset.order(job.seed), job.batch, place.data, job.plan.data)

    def batch(self, step: int) -> Batch:
        """This data rank's share of the step's global batch."""
        mine = samples_of_step(self.order, step, self.size, self.data_rank, self.data_size)
        return Batch(*collate(self.dataset, mine))


@dataclass(frozen=True, slots=True)
class HeldOutFeed:
    """The held-out sequences, in the order of their sources, and the measuring on them."""

    dataset: TokenDataset
    sequences: int
    """How many of the dataset's sequences are used, from the first on."""
    rows: int
    """Sequences that a rank computes at a time: as many as a microbatch of training has, so that
    an evaluation needs no more memory than a step."""
    data_rank: int
    data_size: int

    @classmethod
    def load(cls, job: JobSpec, place: Coordinate, model_directory: Path) -> Self | None:
        """Read the held-out text, on every rank; None where the job has no evaluation. Raises
        SpecError where it cannot be read or holds fewer sequences than are asked for."""
        if job.evaluation is None or job.evaluation_data is None:
            return None
        fraction, field, split = job.evaluation.fraction, HELD_OUT_FILES, ALL
        if fraction is not None:
            field, split = TRAINING_FILES, Split("held out", fraction)
        dataset = load_dataset(
            job.evaluation_data,
            model_directory,
            field,
            split=split,
            cache_dir=Path(job.token_directory),
        )
        wanted = job.evaluation.sequences
        if wanted is not None and wanted > len(dataset):
            raise SpecError(
                "evaluation.sequences",
                "more than are held out",
                value=wanted,
                allowed=f"1..{len(dataset)}",
                fix=f"--set evaluation.sequences={len(dataset)}, or leave it out to take all",
            )
        sequences = wanted or len(dataset)
        return cls(dataset, sequences, job.sequences_per_microbatch, place.data, job.plan.data)

    def share(self, first: int) -> Batch:
        """This data rank's share of the round that begins with sequence number `first`. All ranks'
        are equally large; what lies past the last sequence has no target, so it adds nothing."""
        begin = first + self.data_rank * self.rows
        numbers = range(begin, begin + self.rows)
        batch = Batch(
            *collate(self.dataset, [min(number, self.sequences - 1) for number in numbers])
        )
        batch.labels[max(0, self.sequences - begin) :] = NO_TARGET
        return batch

    def evaluate(self, engine: Engine, step: int) -> EvalReport:
        """Validation loss after `step` steps; every rank calls it and gets the same."""
        began = time.perf_counter()
        loss_sum, tokens = 0.0, 0
        for first in range(0, self.sequences, self.rows * self.data_size):
            round_loss, round_tokens = engine.evaluate(self.share(first))
            loss_sum += round_loss
            tokens += round_tokens
        return EvalReport(
            step=step,
            loss=loss_sum / tokens,
            tokens=tokens,
            sequences=self.sequences,
            seconds=time.perf_counter() - began,
        )
