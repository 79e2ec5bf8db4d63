"""A checkpoint of a job that nobody trained: the model's weights, moved, with means beside them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rayline.checkpoint import (
    CheckpointHeader,
    commit,
    make_folder,
    model_fingerprint,
    write_own,
    writing_folder,
)
from rayline.models.stage import load_config
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointSource, JobSpec, ModelShape
from rayline.spec.job_file import keep_job


def store(job: JobSpec, step: int = 2, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write it where the job keeps its checkpoints, cut along dim 0 over two ranks; returns the
    whole tensors by their names in the checkpoint."""
    folder = Path(str(job.model.directory))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    drawn = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=drawn)
        tensors[f"weight/{name}"] = parameter.detach() + 0.01 * noise
        tensors[f"optimizer/exp_avg/{name}"] = 1e-3 * noise
        tensors[f"optimizer/exp_avg_sq/{name}"] = 1e-5 * noise.square()
        if job.ema is not None:
            tensors[f"optimizer/average/{name}"] = parameter.detach() + 0.005 * noise
    root = Path(CheckpointSource.of_job(job).root)
    temporary = writing_folder(root, step, "0123abcd")
    make_folder(temporary)
    reports = [write_own(temporary, _share(tensors, rank), rank) for rank in range(2)]
    shape = ModelShape.from_config(load_config(folder).to_dict())
    header = CheckpointHeader(
        step=step,
        samples_consumed=job.batch.samples_after(step),
        plan=job.plan,
        engine=job.engine,
        spec_fingerprint=job.fingerprint(),
        model_fingerprint=model_fingerprint(shape),
        scalars={"optimizer_steps": step},
    )
    assert commit(root, temporary, header, reports, keep=9) == ""
    keep_job(job)
    return tensors


def _share(tensors: dict[str, torch.Tensor], rank: int) -> list[Piece]:
    pieces = []
    for name, whole in tensors.items():
        half = -(-len(whole) // 2)
        part = whole[:half] if rank == 0 else whole[half:]
        offset = (rank * half, *(0 for _ in whole.shape[1:]))
        pieces.append(Piece(name, tuple(whole.shape), offset, part, owner=True))
    return pieces
