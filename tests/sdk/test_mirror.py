"""The command line and the client are one thing: every verb has its methods, every method its verb,
and what has no counterpart says why."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from rayline import Client
from rayline.cli.app import app
from rayline.sdk.clusters import Clusters

VERBS = {
    "attach": ["attach"],
    "batch": ["batch"],
    "canary": ["canary"],
    "chaos": ["chaos"],
    "chat": ["chat", "stream"],
    "cluster": ["cluster.known"],
    "cluster check": ["cluster.check"],
    "cluster down": ["cluster.down"],
    "cluster plan": ["cluster.plan"],
    "cluster render": ["cluster.render"],
    "cluster status": ["cluster.status"],
    "cluster up": ["cluster.up"],
    "deploy": ["deploy"],
    "diff": ["diff"],
    "doctor": ["doctor"],
    "export": ["export", "export_job", "export_checkpoint"],
    "import": ["import_checkpoint"],
    "init": ["init"],
    "keys": ["keys"],
    "keys create": ["create_key"],
    "keys list": ["keys"],
    "keys revoke": ["revoke_key", "key"],
    "keys rotate": ["rotate_key", "key"],
    "keys team": ["limit_team"],
    "lineage": ["lineage"],
    "list": ["jobs"],
    "logs": ["logs", "wait"],
    "models": ["models"],
    "plan": ["plan", "plans", "plan_deployment"],
    "promote": ["promote"],
    "publish": ["publish"],
    "resume": ["resume", "resumed_job"],
    "rollback": ["rollback"],
    "runs": ["runs", "run"],
    "specs": ["specs"],
    "specs copy": ["copy_spec"],
    "specs list": ["specs"],
    "specs schema": ["schema"],
    "specs validate": ["validate"],
    "status": ["status", "served", "jobs"],
    "stop": ["stop"],
    "submit": ["submit", "wait"],
    "sync": ["sync"],
    "train": ["train"],
    "tune": ["tune"],
    "undeploy": ["undeploy"],
    "usage": ["usage"],
    "verify": ["verify"],
    "withdraw": ["withdraw"],
}
"""A verb to the methods that do what it does."""
VERBS_ALONE = {
    "console": "serves a page; what it shows and does are the other methods",
    "demo": "a tour of other verbs, for a person who watches",
    "models tiny": "writes files to begin with: rayline.models.tiny.write_tiny_model does",
    "models smollm2": "prepares the demo's model",
    "plan calibrate": "fits this machine's table; rayline.planner.calibration has the functions",
}
METHODS_ALONE = {
    "check_data": "train and tune do it by themselves; a notebook may want it before",
    "close": "a command's process ends instead",
    "deployments": "status APP names what there is where APP is unknown",
    "dashboard_url": "a command says it where it starts a cluster",
    "model_shape": "part of plan",
}


def verbs(tree: typer.Typer, before: str = "") -> Iterator[str]:
    """Every command line that does something, hidden ones left out."""
    for command in tree.registered_commands:
        if not command.hidden and command.callback is not None:
            yield before + (command.name or command.callback.__name__.rstrip("_"))
    for group in tree.registered_groups:
        assert group.name is not None
        assert group.typer_instance is not None
        yield before + group.name
        yield from verbs(group.typer_instance, f"{before}{group.name} ")


def methods() -> set[str]:
    """Every public method of the client and of what belongs to it."""
    own = {name for name, _ in public(Client)}
    return own | {f"cluster.{name}" for name, _ in public(Clusters)}


def public(kind: type) -> list[tuple[str, Any]]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return [(name, method) for name, method in found if not name.startswith("_")]


def test_every_verb_has_its_method_or_a_reason() -> None:
    assert set(verbs(app)) == VERBS.keys() | VERBS_ALONE.keys()
    assert not VERBS.keys() & VERBS_ALONE.keys()
    assert all(VERBS_ALONE.values())


def test_every_method_has_its_verb_or_a_reason() -> None:
    mirrored = {name for named in VERBS.values() for name in named}
    assert methods() == mirrored | METHODS_ALONE.keys()
    assert not mirrored & METHODS_ALONE.keys()


def test_every_method_is_typed_and_says_what_it_does() -> None:
    for name, method in [*public(Client), *public(Clusters)]:
        signature = inspect.signature(method)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in list(signature.parameters.values())[1:]:
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter}"
        assert inspect.getdoc(method), name
