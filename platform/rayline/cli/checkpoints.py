"""export and import: checkpoints out to other programs, and in from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rayline.cli.options import DryRun, Json, RayAddress, Sets, SpecFile, TrackingUri, Verbose
from rayline.cli.plans import parameters_text, plan_document, show_job_plan
from rayline.cli.progress import CountProgress
from rayline.cli.screen import Screen, shown_path
from rayline.cli.training import show_outcome
from rayline.errors import SpecError

if TYPE_CHECKING:
    from rayline.sdk import Client
    from rayline.train.stored_export import StoredExport


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A job's spec file; with --to also its output_dir, a checkpoint's folder "
        "(step-00000100), or a run's id.",
    ),
]
Target = Annotated[
    Path | None,
    typer.Option(
        "--to",
        metavar="DIR",
        help="New folder to write to, by this process alone: no gang, no GPU, no Ray.",
    ),
]
Form = Annotated[
    Literal["huggingface", "universal"],
    typer.Option(
        "--format",
        help="huggingface: config, tokenizer and fp32 safetensors, for transformers and vLLM. "
        "universal: weights and Adam's states, for DeepSpeed's load_universal.",
    ),
]


def export(
    source: Source,
    sets: Sets,
    to: Target = None,
    form: Form = "huggingface",
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Step of the checkpoint; else the newest.")
    ] = None,
    tracking_uri: TrackingUri = None,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Export a checkpoint: to a folder with --to, else checked by logits and registered.

    With --to the checkpoint is read tensor by tensor, whatever plan wrote it, and the folder gets
    its name once it is complete. DeepSpeed takes a universal one with "checkpoint":
    {"load_universal": true} in its configuration and engine.load_checkpoint(DIR).

    Without --to the job's gang is started once more, to compare the exported model's logits with
    the checkpoint's and register it: for a job that was stopped before its end, as a finished one
    has been exported already."""
    from rayline.sdk import Client
    from rayline.spec import TrackingSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    tracking = TrackingSpec() if tracking_uri is None else TrackingSpec(uri=tracking_uri)
    client = Client(address=address, tracking=tracking)
    if to is None:
        if step is not None or form != "huggingface":
            raise SpecError(
                "--to", "missing: --step and --format need it", fix="--to DIR, a new folder"
            )
        _export_by_gang(screen, client, Path(source), sets, dry_run)
        return
    with CountProgress(screen, f"export {source}", "parameters") as progress:
        outcome = client.export_checkpoint(
            source, to, form, step=step, overrides=sets, dry_run=dry_run, observe=progress
        )
    _show_export(screen, outcome, dry_run)
    screen.result(outcome)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="UNIVERSAL_DIR",
            help="Folder with latest_universal, or the folder that it names.",
        ),
    ],
    spec: SpecFile,
    sets: Sets,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a universal checkpoint of DeepSpeed's the checkpoint that a job goes on from.

    The spec names the model (its config; no weights are read), an optimizer of kind adamw or lamb,
    the batch and the rest; `rayline train SPEC` then resumes after the checkpoint's step, under any
    plan and either engine, with the weights, the optimizer's states and its step count. Sequences
    consumed are those of so many steps of the spec's batch. Nothing in the source is run: files
    that name anything but tensors and plain values are refused.

    A checkpoint of DeepSpeed's that is not universal is made so by python -m
    deepspeed.checkpoint.ds_to_universal. A Hugging Face folder needs no import: a job whose
    model.directory is that folder, with init: weights, starts from it."""
    from rayline.sdk import Client
    from rayline.spec import JobSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    job = JobSpec.load(spec, sets)
    with CountProgress(screen, f"import {source}", "parameters") as progress:
        outcome = Client().import_checkpoint(source, job, dry_run=dry_run, observe=progress)
    done = "would be imported" if dry_run else "imported"
    screen.say(
        f"step {outcome.step} {done} to {shown_path(Path(outcome.checkpoint))}: "
        f"{parameters_text(outcome.parameters)} parameters, {outcome.optimizer_steps} optimizer "
        f"steps, {outcome.samples_consumed} sequences consumed"
    )
    if outcome.source_samples != outcome.samples_consumed:
        screen.say(
            f"DeepSpeed counted {outcome.source_samples} sequences: the spec's batch is another"
        )
    if not dry_run:
        screen.say(f"go on: rayline train {spec}")
    screen.result(outcome)


def _export_by_gang(
    screen: Screen, client: Client, spec: Path, sets: list[str], dry_run: bool
) -> None:
    from rayline.spec import JobSpec

    job = client.export_job(JobSpec.load(spec, sets))
    screen.say(f"export step {job.steps} of {job.name} to {job.directory}/export")
    plan = client.plan(job)
    show_job_plan(screen, plan)
    if dry_run:
        screen.result(plan_document(plan))
        return
    outcome = client.train(job)
    show_outcome(screen, job, outcome)
    screen.result(outcome)


def _show_export(screen: Screen, outcome: StoredExport, dry_run: bool) -> None:
    for reason in outcome.skipped:
        screen.say(f"passed over, damaged: {reason}")
    what = f"step {outcome.step} ({parameters_text(outcome.parameters)} parameters)"
    target = shown_path(Path(outcome.directory))
    if not outcome.made:
        screen.say(f"{what} is in {target} already")
    elif dry_run:
        screen.say(f"{what} would be written to {target}, format {outcome.format}")
    else:
        screen.say(f"{what} is in {target}, format {outcome.format}")
