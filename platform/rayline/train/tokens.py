"""Token shards of a whole job, made before its ranks start and need them."""

from __future__ import annotations

from pathlib import Path

from rayline.data import (
    HELD_OUT_FILES,
    TRAINING_FILES,
    RunTasks,
    ShardDone,
    ShardTask,
    SourceFile,
    TokenCache,
    Tokenizing,
    check_tokenizer,
    do_task,
    files_by_source,
    fill_cache,
    size_bytes,
)
from rayline.spec import JobSpec

__all__ = ["ShardDone", "ShardTask", "Tokenizing", "do_task", "make_tokens"]


def make_tokens(
    job: JobSpec, model_directory: Path, run: RunTasks, *, least_bytes: int
) -> int | None:
    """Have `run` tokenize what the job's ranks will not find in its cache; returns how many shards
    were made. None where the job's data is smaller than `least_bytes`: its ranks tokenize it
    sooner than others could begin. Called by the driver. Raises SpecError."""
    files = _files(job)
    if sum(size_bytes(file, job.data.kind) for file in files) < least_bytes:
        return None
    check_tokenizer(job.data, model_directory)
    cache = TokenCache(Path(job.token_directory))
    return fill_cache(files, job.data.kind, model_directory, cache, run)


def _files(job: JobSpec) -> list[SourceFile]:
    """All files of training and evaluation."""
    listed = files_by_source(job.data, TRAINING_FILES)
    held_out = job.evaluation_data
    if held_out is not None and held_out is not job.data:
        listed += files_by_source(held_out, HELD_OUT_FILES)
    return [file for source in listed for file in source]
