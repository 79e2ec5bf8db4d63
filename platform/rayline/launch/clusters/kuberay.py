"""A ClusterSpec as a manifest of KubeRay 1.7: RayCluster, or RayJob or RayService around one.

Traps that are avoided here: a group without minReplicas and maxReplicas cannot be made; Kueue
admits a cluster of one size only, and a RayJob only where it ends with its cluster; Volcano's gang
is the smallest size; the gateway answers HTTP itself, so Serve's proxy stays off.
"""

from __future__ import annotations

import math

from rayline.errors import SpecError
from rayline.launch.clusters.launcher import shares
from rayline.launch.clusters.pins import RAY_VERSION
from rayline.launch.clusters.pods import group_template, head_template
from rayline.launch.clusters.writing import Section, Tree, body
from rayline.spec import ClusterSpec, KubernetesSpec, ServeSpec

_FRONT = {"name": "rayline", "route_prefix": None, "import_path": "rayline.serving.app:build_front"}


def kuberay_sections(spec: ClusterSpec) -> list[Section]:
    """The manifest's sections. Raises SpecError."""
    kubernetes = spec.kubernetes
    assert kubernetes is not None  # noqa: S101  the spec's own check
    _refuse_scaling_in_queue(spec, kubernetes)
    kind, inner = "RayCluster", _cluster(spec, kubernetes)
    if kubernetes.run is not None:
        kind, inner = "RayJob", _job(kubernetes, inner)
    elif kubernetes.serve is not None:
        kind, inner = "RayService", _service(kubernetes.serve, inner)
    labels = _labels(kubernetes)
    metadata: Tree = {"name": spec.name}
    if kubernetes.namespace is not None:
        metadata["namespace"] = kubernetes.namespace
    if labels:
        metadata["labels"] = labels
    return [
        Section(
            {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": inner},
        )
    ]


def scales(spec: ClusterSpec) -> bool:
    """Whether the number of nodes may change."""
    return any(group.min_nodes < group.max_nodes for group in spec.groups)


def _refuse_scaling_in_queue(spec: ClusterSpec, kubernetes: KubernetesSpec) -> None:
    for index, group in enumerate(spec.groups):
        if kubernetes.queue is not None and group.min_nodes < group.max_nodes:
            raise SpecError(
                f"groups.{index}.min_nodes",
                "Kueue admits a cluster of one size only",
                value=group.min_nodes,
                allowed=str(group.max_nodes),
                fix=f"set min_nodes: {group.max_nodes}, or remove kubernetes.queue",
            )


def _labels(kubernetes: KubernetesSpec) -> dict[str, str]:
    if kubernetes.queue is not None:
        return {"kueue.x-k8s.io/queue-name": kubernetes.queue}
    if kubernetes.gang_scheduler is None:
        return {}
    labels = {"ray.io/scheduler-name": "volcano", "ray.io/gang-scheduling-enabled": "true"}
    if kubernetes.gang_queue is not None:
        labels["volcano.sh/queue-name"] = kubernetes.gang_queue
    return labels


def _cluster(spec: ClusterSpec, kubernetes: KubernetesSpec) -> Tree:
    auth: Tree = {"mode": "token"}
    if kubernetes.auth_secret is not None:
        auth["secretName"] = kubernetes.auth_secret
    tree: Tree = {"rayVersion": RAY_VERSION, "authOptions": auth}
    if scales(spec):
        tree["enableInTreeAutoscaling"] = True
        tree["autoscalerOptions"] = {
            "version": spec.autoscaler,
            "idleTimeoutSeconds": math.ceil(spec.idle_timeout_minutes * 60),
            "resources": {
                "requests": {"cpu": "500m", "memory": "512Mi"},
                "limits": {"cpu": "500m", "memory": "1Gi"},
            },
        }
    if spec.head_recovery is not None:
        tree["gcsFaultToleranceOptions"] = _recovery(spec)
    tree["headGroupSpec"] = {
        # No task runs on the head: the control store must never wait for memory or a core.
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
        "template": head_template(spec),
    }
    tree["workerGroupSpecs"] = [
        {
            "groupName": f"{group.name}{suffix}",
            "replicas": least,
            "minReplicas": least,
            "maxReplicas": most,
            "rayStartParams": {},
            **({"labels": dict(group.labels)} if group.labels else {}),
            "template": group_template(spec, index, spot=spot),
        }
        for index, group in enumerate(spec.groups)
        for suffix, spot, least, most in shares(group)
    ]
    return tree


def _recovery(spec: ClusterSpec) -> Tree:
    recovery = spec.head_recovery
    assert recovery is not None  # noqa: S101  asked before
    if recovery.store == "rocksdb":
        storage = {"size": f"{recovery.size_gb}Gi", "accessModes": ["ReadWriteOnce"]}
        return {"backend": "rocksdb", "storage": storage}
    options: Tree = {"backend": "redis", "redisAddress": recovery.redis_address}
    if recovery.redis_secret is not None:
        key = {"secretKeyRef": {"name": recovery.redis_secret, "key": "password"}}
        options["redisPassword"] = {"valueFrom": key}
    return options


def _job(kubernetes: KubernetesSpec, cluster: Tree) -> Tree:
    run = kubernetes.run
    assert run is not None  # noqa: S101  asked before
    return {
        "entrypoint": run.entrypoint,
        "submissionMode": "K8sJobMode",
        # The platform itself retries what can be retried; a second run of a failed job hides why.
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": run.keep_s,
        "preRunningDeadlineSeconds": run.start_timeout_s,
        "rayClusterSpec": cluster,
    }


def _service(serve: ServeSpec, cluster: Tree) -> Tree:
    written = serve.model_dump(mode="json", exclude_unset=True)
    config = {
        "proxy_location": "Disabled",
        "applications": [
            {**_FRONT, "args": written.get("gateway", {})},
            {
                "name": serve.name,
                "route_prefix": None,
                "import_path": "rayline.serving.app:build",
                "args": written,
            },
        ],
    }
    # KubeRay compares this text to see a change, so its keys keep their order.
    return {
        "serveConfigV2": body(config),
        # A new spec starts a second cluster and traffic moves when it answers; the old one drains.
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": cluster,
    }
