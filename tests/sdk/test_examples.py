"""Every public method of the client has an example in its docstring, and each of them runs: here
those that need nothing but this process and Ray on this machine.

The examples of a group run one after another, and what one of them assigns the next ones find.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayline import Client, JobSpec, ServeSpec, TuneSpec
from rayline.models.tiny import write_tiny_model
from rayline.sdk.clusters import Clusters
from rayline.spec import ClusterSpec, KeySpec, Limits, StepReport, TrackingSpec, UsageQuery
from support.docs import example_of, run_example
from support.echo import echo_endpoint

PLAIN: list[Any] = [
    Client,
    Client.plan,
    Client.model_shape,
    Client.check_data,
    Client.plans,
    Client.plan_deployment,
    Client.init,
    Client.specs,
    Client.copy_spec,
    Client.validate,
    Client.schema,
    Client.create_key,
    Client.keys,
    Client.key,
    Client.rotate_key,
    Client.limit_team,
    Client.usage,
    Client.revoke_key,
    Client.chat,
    Client.stream,
    Client.batch,
    Client.doctor,
    Client.dashboard_url,
    Client.close,
    Clusters.plan,
    Clusters.render,
    Clusters.check,
    Clusters.known,
]
TRAINING: list[Any] = [
    Client.train,
    Client.run,
    Client.attach,
    Client.models,
    Client.export_checkpoint,
    Client.import_checkpoint,
    Client.tune,
    Client.export_job,
    Client.export,
    Client.resumed_job,
    Client.resume,
    Client.runs,
    Client.verify,
    Client.lineage,
    Client.diff,
    Client.sync,
]
UNDER_FAULTS: list[Any] = [Client.chaos]
"""Run by tests/actors/test_recovery.py, which has nodes to lose."""
ON_A_CLUSTER: list[Any] = [
    Clusters.up,
    Clusters.status,
    Client.submit,
    Client.jobs,
    Client.status,
    Client.wait,
    Client.logs,
    Client.stop,
    Clusters.down,
]
"""Run by tests/examples/test_cluster_door.py, which has a cluster up."""
SERVING: list[Any] = [
    Client.deploy,
    Client.deployments,
    Client.served,
    Client.canary,
    Client.promote,
    Client.rollback,
    Client.publish,
    Client.withdraw,
    Client.undeploy,
]
"""Run by tests/examples/test_serving_door.py, which has a deployment up."""


def test_every_public_method_has_an_example_in_one_group() -> None:
    listed = [*PLAIN[1:], *TRAINING, *UNDER_FAULTS, *ON_A_CLUSTER, *SERVING]
    assert len(listed) == len(set(listed))
    found = [
        method
        for kind in (Client, Clusters)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    ]
    assert set(listed) == set(found)
    assert all(example_of(method, {}).examples for method in listed)


@pytest.fixture(scope="module")
def plain_names(checkout: Path) -> Iterator[dict[str, Any]]:
    """What the plain examples may use: an endpoint that echoes, a store of keys, a small model."""
    model = write_tiny_model(checkout / "model", layers=2)
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (checkout / "in.jsonl").write_text(json.dumps(line) + "\n")
    deployment = {"name": "chat", "model": {"directory": str(model)}, "device": "cpu"}
    engine = {"max_model_len": 256, "kv_cache_gib": 0.1}
    with echo_endpoint() as url:
        yield {
            "Client": Client,
            "ClusterSpec": ClusterSpec,
            "JobSpec": JobSpec,
            "KeySpec": KeySpec,
            "Limits": Limits,
            "TrackingSpec": TrackingSpec,
            "UsageQuery": UsageQuery,
            "client": Client(store=f"sqlite:///{checkout}/serving.db"),
            "deployment": ServeSpec.parse({**deployment, "engine": engine}),
            "url": url,
        }


@pytest.mark.parametrize("method", PLAIN, ids=lambda method: method.__qualname__)
def test_a_plain_example_runs(method: Any, plain_names: dict[str, Any]) -> None:
    # Client's own makes another one; the others go on with the one that has the store.
    run_example(method, dict(plain_names) if method is Client else plain_names)


def ends_after_step_5(report: StepReport) -> None:
    """An observer with which a job ends, after a checkpoint at step 4."""
    if report.step == 5:
        raise RuntimeError("enough")


@pytest.fixture(scope="module")
def training_names(checkout: Path) -> Iterator[dict[str, Any]]:
    """What the examples of training may use: a small job, one that has ended early, a search."""
    tracking = TrackingSpec(uri=f"sqlite:///{checkout}/mlflow.db")
    client = Client(tracking=tracking)
    job = JobSpec.load("jobs/specs/quickstart.yaml").changed(
        {
            "steps": 6,
            "plan.data": 1,
            "data.sequence_tokens": 32,
            "optim.warmup_steps": 1,
            "checkpoint.every_steps": 4,
            "tracking.uri": tracking.uri,
        }
    )
    short = {**job.model_dump(mode="json"), "name": "best", "steps": 3}
    search = {"name": "small", "trials": 1, "space": {"optim.lr": {"choices": [1e-3]}}}
    aside = {"name": "aside", "export.register_as": None}
    # Its steps are slow enough for the driver to end it before the next checkpoint.
    slow = {"steps": 20, "data.sequence_tokens": 128, "batch.sequences": 64}
    ended_job = job.changed({**aside, **slow})
    with pytest.raises(RuntimeError, match="enough"):
        client.train(ended_job, observers=[ends_after_step_5])
    yield {
        "JobSpec": JobSpec,
        "TuneSpec": TuneSpec,
        "client": client,
        "job": job,
        "search": TuneSpec.parse({**search, "search": "random", "job": short}),
        "ended": client.runs(limit=1)[0],
        "ended_job": ended_job,
    }
    client.close()


@pytest.mark.ray
@pytest.mark.parametrize("method", TRAINING, ids=lambda method: method.__qualname__)
def test_an_example_of_training_runs(method: Any, training_names: dict[str, Any]) -> None:
    run_example(method, training_names)
