"""The tree of verbs: each with its example, in the order in which a newcomer meets them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rayline import __version__
from rayline.cli import (
    access,
    adapters,
    batch,
    chaos,
    checkpoints,
    checks,
    clusters,
    console,
    demo,
    diff,
    following,
    jobs,
    lineage,
    plan_verbs,
    records,
    rollout,
    search,
    serving,
    specs,
    sync,
    training,
    verify,
)

_VERBS = (
    ("Begin", demo.demo, "rayline demo --exit"),
    ("Begin", checks.doctor, "rayline doctor"),
    ("Begin", specs.init, "rayline init my-job.yaml"),
    ("Train", verify.verify, "rayline verify jobs/specs/tiny-3d.yaml --set precision=bf16"),
    ("Train", training.train, "rayline train jobs/specs/quickstart.yaml --set optim.lr=3e-4"),
    ("Train", chaos.chaos, "rayline chaos jobs/specs/tiny-3d.yaml --kills 3 --seed 7"),
    ("Train", search.tune, "rayline tune tune/quickstart.yaml --set trials=6"),
    ("Train", training.resume, "rayline resume 9f2c61d0 --set steps=2000"),
    ("Train", checkpoints.export, "rayline export runs/quickstart --to exported --step 100"),
    ("Train", checkpoints.import_, "rayline import deepspeed/checkpoints my-job.yaml"),
    ("Serve", serving.deploy, "rayline deploy serve/chat.yaml --set gateway.port=8001"),
    ("Serve", rollout.canary, "rayline canary chat 10%"),
    ("Serve", rollout.promote, "rayline promote chat"),
    ("Serve", rollout.rollback, "rayline rollback chat --to 3"),
    ("Serve", adapters.publish, "rayline publish chat legal run:9f2c61d0"),
    ("Serve", adapters.withdraw, "rayline withdraw chat legal"),
    ("Serve", serving.undeploy, "rayline undeploy chat"),
    ("Serve", batch.batch, "rayline batch in.jsonl out.jsonl --url http://127.0.0.1:8000/v1"),
    ("Serve", serving.chat, 'rayline chat "What is the capital of France?"'),
    ("Serve", access.usage, "rayline usage --by day --since 7d"),
    ("Train", following.attach, "rayline attach 9f2c61d0"),
    ("Look back", records.runs, "rayline runs --limit 5"),
    ("Look back", diff.diff, "rayline diff 9f2c61d0 41ab77e3 --picture diff.png"),
    ("Look back", lineage.lineage, "rayline lineage bot@champion --svg lineage.svg"),
    ("Look back", sync.sync, "rayline sync runs"),
    ("Look back", console.console, "rayline console --address auto"),
    ("On a cluster", jobs.submit, "rayline submit jobs/specs/quickstart.yaml"),
    ("On a cluster", jobs.status, "rayline status quickstart-1a2b3c4d"),
    ("On a cluster", jobs.list_, "rayline list"),
    ("On a cluster", jobs.logs, "rayline logs quickstart-1a2b3c4d"),
    ("On a cluster", jobs.stop, "rayline stop quickstart-1a2b3c4d"),
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"rayline {__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One line from a training spec to a served model, on Ray."""


def _tree() -> typer.Typer:
    tree = typer.Typer(
        name="rayline",
        # Boxes are for a person; a pipe gets the plain form of the same help.
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="A first try, end to end: rayline demo",
    )
    tree.callback()(_root)
    for panel, verb, example in _VERBS:
        # Python keeps the word import to itself.
        name = verb.__name__.rstrip("_")
        tree.command(name, rich_help_panel=panel, epilog=f"Example: {example}")(verb)
    tree.add_typer(specs.specs, name="specs", rich_help_panel="Begin")
    tree.add_typer(plan_verbs.plan, name="plan", rich_help_panel="Train")
    tree.add_typer(records.models, name="models", rich_help_panel="Look back")
    tree.add_typer(access.keys, name="keys", rich_help_panel="Serve")
    tree.add_typer(clusters.cluster, name="cluster", rich_help_panel="On a cluster")
    return tree


app = _tree()
