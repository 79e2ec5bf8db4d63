"""What a trial would run on, and whether that is there: the cluster's word to a draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from rayline.actors import Node, nodes, refuse_impossible, trial_bundles
from rayline.actors.automatic import machines_for
from rayline.actors.bundles import uses_gpu
from rayline.errors import PlacementError, SpecError
from rayline.planner.calibration_file import best_calibration
from rayline.spec import JobSpec, ModelRef, ModelShape, TuneSpec
from rayline.tracking import database_file, resolve_model
from rayline.tuning.course import Judge
from rayline.tuning.pruning import Devices, Pruning, Verdict

_PIN = 0.001
"""Share of a node's own Ray resource that keeps a trial's process there."""


def cluster_judge(spec: TuneSpec) -> Judge:
    """What refuses draws of this search on the cluster that the driver has joined: the planner's
    word first, then whether the nodes could hold the gang if they were idle."""
    pruning = Pruning(spec, best_calibration().curves)
    shapes: dict[ModelRef, ModelShape] = {}

    def judge(job: JobSpec, params: dict[str, Any]) -> Verdict:
        try:
            if job.model not in shapes:
                shapes[job.model] = _shape(job)
            _refuse_labels(job)
        except SpecError as wrong:
            return Verdict(refused="spec", reason=str(wrong))
        there = nodes()
        verdict = pruning.judge(job, params, shapes[job.model], devices_of(job, there, spec))
        if verdict.refused is None:
            try:
                refuse_impossible(trial_bundles(job, there))
            except PlacementError as wrong:
                return replace(verdict, refused="placement", reason=str(wrong))
        return verdict

    return judge


def devices_of(job: JobSpec, there: Sequence[Node], spec: TuneSpec) -> Devices:
    """What one worker of the job runs on, as these nodes tell."""
    told_gib = spec.prune.device_memory_gib
    gpu = uses_gpu(job.resources, there)
    try:
        machines = machines_for(job, there, gpu)[0]
    except SpecError:
        return Devices(None, told_gib)
    share = min(1.0, job.resources.gpus_per_worker) if gpu else 1.0
    memory_gib = told_gib or machines.accelerator.memory_gib * share
    accelerator = replace(machines.accelerator, memory_gib=memory_gib)
    return Devices(replace(machines, accelerator=accelerator), memory_gib)


def trial_places(job: JobSpec) -> list[dict[str, float]]:
    """The bundles of a trial's placement group: one for its own process, then its gang's. That
    process holds nothing, or, where runs are recorded in a local file, a place on this node, which
    has that file."""
    head: dict[str, float] = {}
    if database_file(job.tracking) is not None:
        head = {f"node:{ray.util.get_node_ip_address()}": _PIN}
    return [head, *trial_bundles(job, nodes())]


def _refuse_labels(job: JobSpec) -> None:
    if job.resources.labels:
        raise SpecError(
            "job.resources.labels",
            "Ray Tune places a trial's group without labels",
            value=job.resources.labels,
            allowed="{}",
            fix="ask for the nodes by job.resources.custom",
        )


def _shape(job: JobSpec) -> ModelShape:
    folder = resolve_model(job.model, job.tracking, need_weights=job.init == "weights")
    try:
        return ModelShape.from_config(json.loads((folder / "config.json").read_text("utf-8")))
    except ValueError:
        raise SpecError(
            "model", f"{folder}/config.json is not JSON", value=str(job.model)
        ) from None
