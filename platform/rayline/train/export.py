"""Export: the trained model as a Hugging Face folder that is known to be the trained model.

The folder is written under a temporary name, loaded by transformers as any user would load it, and
its logits are compared with those of the model that still stands in the gang. Only then it gets
its name. What is registered or served later has passed this.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from rayline.errors import CheckpointError, RaylineError
from rayline.models.export import write_hugging_face
from rayline.models.stage import load_config
from rayline.models.stored import StoredNames
from rayline.spec import ExportReport, JobSpec
from rayline.train.engine import Engine

log = logging.getLogger(__name__)

_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 1e-2}
"""Relative to the largest logit. fp32: two orders of summation differ by about 1e-6; bf16 has 8
bits of mantissa, fp16 has 11, and layers add up."""


def export_verified(
    engine: Engine, job: JobSpec, source: Path, target: Path, probe: torch.Tensor, step: int
) -> ExportReport:
    """Write, check and name the folder `target`; every rank calls it and gets the same report.

    `probe`: int64 [sequences, tokens], the same on every rank. Raises CheckpointError on every rank
    where the exported model's logits are not the trained one's; `target` is left as it was."""
    trained = engine.logits(probe)
    partial = target.with_name(target.name + ".partial")
    outcome: list[ExportReport | RaylineError | None] = [None]
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        names = StoredNames(load_config(source).model_type)
        count = write_hugging_face(engine.weights(), source, partial, torch.float32, names)
        outcome = [_check(job, cast(torch.Tensor, trained), probe, partial, target, count, step)]
    else:
        _take_part(engine.weights())
    dist.broadcast_object_list(outcome, src=0)
    (report,) = outcome
    if not isinstance(report, ExportReport):
        raise cast(RaylineError, report)
    return report


def _take_part(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Run through the collectives; only rank 0 is handed tensors."""
    for _ in weights:
        pass


def _check(
    job: JobSpec,
    trained: torch.Tensor,
    probe: torch.Tensor,
    partial: Path,
    target: Path,
    parameters: int,
    step: int,
) -> ExportReport | RaylineError:
    """Compare, then move `partial` to `target`."""
    difference = logit_difference(trained, partial, probe)
    tolerance = job.export.logits_tolerance or _TOLERANCE[job.precision]
    if not difference <= tolerance:
        return CheckpointError(
            f"export {target}",
            "the exported model's logits are not the trained model's: they differ by "
            f"{difference:.2e} of the largest logit",
            allowed=f"at most {tolerance:.0e} (export.logits_tolerance)",
            fix=f"the folder stays as {partial.name} for a look; nothing was registered",
        )
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    log.info("exported to %s, logits differ by %.1e", target, difference)
    return ExportReport(
        directory=str(target),
        step=step,
        parameters=parameters,
        logit_difference=difference,
        logit_tolerance=tolerance,
        probed_tokens=probe.numel(),
        sha256={file.name: _sha256(file) for file in sorted(target.iterdir()) if file.is_file()},
    )


def logit_difference(trained: torch.Tensor, directory: Path, probe: torch.Tensor) -> float:
    """Largest absolute difference between `trained` [sequences, tokens, vocab] and the logits of
    the model in `directory`, over the largest absolute logit. One process calls it."""
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        # The plain one: transformers' fused attention leaves out a softcap without a word.
        attn_implementation="eager",
    )
    model.eval()
    with torch.no_grad():
        exported = model(input_ids=probe, use_cache=False).logits.float()
    return float((exported - trained).abs().max() / trained.abs().max())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
