"""A lineage from MLflow: upwards to data, base models and searches, downwards to deployments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rayline.errors import SpecError
from rayline.spec import ModelRef, TrackingSpec
from rayline.tracking.delivery import PARENT_TAG
from rayline.tracking.deployments import DeploymentRecord, deployments_of
from rayline.tracking.history import model_versions, registered_models
from rayline.tracking.lineage.graph import Edge, Lineage, Node, deployment_id
from rayline.tracking.provenance import BASE_MODEL_TAG, CHECKPOINT_TAG
from rayline.tracking.registry import find_version
from rayline.tracking.store import connect, existing_run, holds_runs, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

_MOST_ANCESTORS = 10
"""Models that a model was fine-tuned from, one from another, before it is left at that."""
_ID_CHARACTERS = 8


def lineage(tracking: TrackingSpec, of: str) -> Lineage:
    """The lineage of a registered version (name@alias, name@3 or name/3) or of a run (its id, or
    run:ID). Raises SpecError where the store has none such."""
    text = of.removeprefix("registry:").removeprefix("models:/")
    if "@" in text or "/" in text:
        name, _, wanted = text.replace("/", "@").rpartition("@")
        client, version = find_version(ModelRef(registry=f"{name}@{wanted}"), tracking)
        with store_errors(tracking):
            return _Reading(client, tracking).around_version(version)
    run_id = text.removeprefix("runs:/").removeprefix("run:")
    if not holds_runs(tracking):
        raise SpecError("run", f"{tracking.uri} does not exist, so it holds no run", value=of)
    client = connect(tracking)
    with store_errors(tracking):
        return _Reading(client, tracking).around_run(existing_run(client, tracking, run_id))


class _Reading:
    """One look at a store; nodes are added once, however many ways lead to them."""

    def __init__(self, client: MlflowClient, tracking: TrackingSpec) -> None:
        self._client = client
        self._tracking = tracking
        self._nodes: dict[str, Node] = {}
        self._edges: dict[Edge, None] = {}
        self._versions = model_versions(client)
        self._aliases: dict[tuple[str, str], list[str]] = {}
        for model in registered_models(client):
            for alias, version in sorted(model.aliases.items()):
                self._aliases.setdefault((model.name, str(version)), []).append(alias)

    def around_version(self, version: ModelVersion) -> Lineage:
        """Upwards and downwards of a registered version."""
        node = self._upwards(version, _MOST_ANCESTORS)
        self._deployments(version, node)
        return self._result(node)

    def around_run(self, run: Run) -> Lineage:
        """Upwards of a run, and every version that came from it with what it led to."""
        node, last = self._run(run, _MOST_ANCESTORS)
        for version in self._versions:
            if version.run_id == run.info.run_id:
                model = self._model(version)
                self._edge(last, model, "exported as")
                self._deployments(version, model)
        return self._result(node)

    def _result(self, asked: Node) -> Lineage:
        return Lineage(asked.id, tuple(self._nodes.values()), tuple(self._edges))

    def _upwards(self, version: ModelVersion, ancestors: int) -> Node:
        model = self._model(version)
        if version.run_id:
            run = self._client.get_run(version.run_id)
            _, last = self._run(run, ancestors)
            self._edge(last, model, "exported as")
        return model

    def _run(self, run: Run, ancestors: int) -> tuple[Node, Node]:
        """The run's node, and its checkpoint's where it has one."""
        tags, metrics = run.data.tags, run.data.metrics
        facts = {"status": run.info.status.lower()}
        facts |= {"steps": f"{metrics['step']:.0f}"} if "step" in metrics else {}
        facts |= {"loss": f"{metrics['loss']:.4g}"} if "loss" in metrics else {}
        for name, tag in (("plan", "rayline.plan"), ("fingerprint", "rayline.fingerprint")):
            facts |= {name: tags[tag]} if tag in tags else {}
        commit = tags.get("rayline.project.commit", "")
        facts |= {"commit": commit[:12]} if commit else {}
        address = f"runs:/{run.info.run_id}"
        name = f"{run.info.run_name} {run.info.run_id[:_ID_CHARACTERS]}"
        node = self._add(Node("run", f"run:{run.info.run_id}", name, address, facts))
        self._inputs(run, node)
        self._search(tags.get(PARENT_TAG), node)
        self._base_model(tags.get(BASE_MODEL_TAG, ""), node, ancestors)
        if CHECKPOINT_TAG not in tags:
            return node, node
        checkpoint = self._checkpoint(run, json.loads(tags[CHECKPOINT_TAG]))
        self._edge(node, checkpoint, "saved")
        return node, checkpoint

    def _checkpoint(self, run: Run, told: dict[str, object]) -> Node:
        return self._add(
            Node(
                "checkpoint",
                f"checkpoint:{run.info.run_id}/{told['step']}",
                f"step {told['step']}",
                f"runs:/{run.info.run_id}#tag={CHECKPOINT_TAG}",
                {"folder": str(told["directory"]), "plan": str(told["plan"])},
            )
        )

    def _inputs(self, run: Run, node: Node) -> None:
        for read in run.inputs.dataset_inputs if run.inputs is not None else ():
            data = read.dataset
            context = next((tag.value for tag in read.tags if tag.key.endswith("context")), "")
            profile = json.loads(data.profile or "{}")
            facts = {"digest": data.digest}
            facts |= {"files": str(profile["files"])} if "files" in profile else {}
            facts |= {"bytes": str(profile["bytes"])} if "bytes" in profile else {}
            address = f"runs:/{run.info.run_id}#dataset={data.digest}"
            found = self._add(Node("data", f"data:{data.digest}", data.name, address, facts))
            self._edge(found, node, f"{context or 'read'} data of")

    def _search(self, parent: str | None, node: Node) -> None:
        if parent is None:
            return
        run = self._client.get_run(parent)
        name = f"{run.info.run_name} {parent[:_ID_CHARACTERS]}"
        facts = {"status": run.info.status.lower()}
        found = self._add(Node("search", f"search:{parent}", name, f"runs:/{parent}", facts))
        self._edge(found, node, "tried")

    def _base_model(self, told: str, node: Node, ancestors: int) -> None:
        kind, _, name = told.partition(":")
        if not name:
            return
        if kind == "registry" and ancestors:
            registered, _, number = name.rpartition("@")
            for version in self._versions:
                if version.name == registered and str(version.version) == number:
                    self._edge(self._upwards(version, ancestors - 1), node, "began")
                    return
        found = self._add(Node("data", f"base:{told}", told, told, {}))
        self._edge(found, node, "base model of")

    def _model(self, version: ModelVersion) -> Node:
        aliases = self._aliases.get((version.name, str(version.version)), [])
        facts = {"aliases": ", ".join(aliases)} if aliases else {}
        for name, tag in (("logits differ by", "logit_difference"), ("step", "step")):
            value = version.tags.get(f"rayline.{tag}")
            facts |= {name: value} if value is not None else {}
        return self._add(
            Node(
                "model",
                f"model:{version.name}/{version.version}",
                f"{version.name} version {version.version}",
                f"models:/{version.name}/{version.version}",
                facts,
            )
        )

    def _deployments(self, version: ModelVersion, model: Node) -> None:
        for record in deployments_of(version.tags):
            self._edge(model, self._deployment(record, model), "served as")

    def _deployment(self, record: DeploymentRecord, model: Node) -> Node:
        facts = {"since": record.since, "revision": record.revision}
        facts |= {"stable since": record.stable_since} if record.stable_since else {}
        facts |= {"until": record.until} if record.until else {}
        return self._add(
            Node(
                "deployment",
                deployment_id(record.served, record.number),
                f"{record.served} version {record.number}",
                f"{model.address}#tag={record.tag}",
                facts,
            )
        )

    def _add(self, node: Node) -> Node:
        return self._nodes.setdefault(node.id, node)

    def _edge(self, source: Node, target: Node, relation: str) -> None:
        self._edges[Edge(source.id, target.id, relation)] = None
