"""What is wrong in a KubeRay manifest, its pods apart: kind, groups, scaling, queue, service."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from rayline.errors import meant
from rayline.launch.clusters.check.flaw import NEAR, Flaw, Tree, mapping, sequence, unknown_key
from rayline.launch.clusters.check.flaw import whole as whole_number
from rayline.launch.clusters.pins import RAY_VERSION

INNER = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Where each kind keeps the Ray cluster below `spec`."""
_QUEUE = "kueue.x-k8s.io/queue-name"
_CLUSTER_KEYS = frozenset(
    {
        *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec"),
        *("gcsFaultToleranceOptions", "headServiceAnnotations", "historyServerOptions"),
        *("managedBy", "networkPolicy", "rayVersion", "suspend", "tlsOptions"),
        *("upgradeStrategy", "workerGroupSpecs"),
    }
)
_JOB_KEYS = frozenset(
    {
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy"),
        *("entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId"),
        *("managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec", "suspend"),
        *("runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
        *("submitterPodTemplate", "ttlSecondsAfterFinished"),
    }
)
_SERVICE_KEYS = frozenset(
    {
        *("deploymentUnhealthySecondThreshold", "excludeHeadPodFromServeSvc", "managedBy"),
        *("rayClusterConfig", "rayClusterDeletionDelaySeconds", "serveConfigV2", "serveService"),
        *("serviceUnhealthySecondThreshold", "suspend", "upgradeStrategy"),
    }
)
_GROUP_KEYS = frozenset(
    {
        *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
        *("priority", "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend"),
        "template",
    }
)


def kind_flaws(tree: Tree) -> Iterator[Flaw]:
    """The manifest's own keys."""
    kind = str(tree.get("kind", ""))
    if tree.get("apiVersion") != "ray.io/v1":
        yield Flaw(
            "api-version",
            "apiVersion",
            "KubeRay 1.7 serves another version only",
            "apiVersion: ray.io/v1",
            value=str(tree.get("apiVersion", "")),
            allowed="ray.io/v1",
        )
    if kind not in INNER:
        yield Flaw(
            "kind",
            "kind",
            "KubeRay makes no such thing",
            meant(kind, INNER, otherwise="take one of these", cutoff=NEAR),
            value=kind,
            allowed=", ".join(INNER),
        )
    if not mapping(tree.get("metadata")).get("name"):
        yield Flaw("missing-key", "metadata.name", "required, but not given", "give a name")
    spec = mapping(tree.get("spec"))
    if INNER.get(kind) and not mapping(spec.get(INNER[kind])) and "clusterSelector" not in spec:
        field = f"spec.{INNER[kind]}"
        yield Flaw("missing-key", field, "required, but not given", "describe the cluster")
    known = {"RayJob": _JOB_KEYS, "RayService": _SERVICE_KEYS}.get(kind)
    for key in spec if known else ():
        if known and key not in known:
            yield unknown_key("spec", str(key), known)


def cluster_flaws(field: str, cluster: Tree) -> Iterator[Flaw]:
    """The Ray cluster below the manifest's spec."""
    for key in cluster:
        if key not in _CLUSTER_KEYS:
            yield unknown_key(field, str(key), _CLUSTER_KEYS)
    version = cluster.get("rayVersion")
    if version != RAY_VERSION:
        yield Flaw(
            "ray-version",
            f"{field}.rayVersion",
            "not the version of the image and of this client"
            if version is not None
            else "not given: the operator would guess what its Ray can do",
            f'rayVersion: "{RAY_VERSION}"',
            value=str(version or ""),
            allowed=RAY_VERSION,
        )
    if mapping(cluster.get("authOptions")).get("mode") != "token":
        yield Flaw(
            "no-token",
            f"{field}.authOptions.mode",
            "without tokens whoever reaches the head's ports runs code",
            "authOptions: {mode: token}",
            value=str(mapping(cluster.get("authOptions")).get("mode", "")),
            allowed="token",
        )
    yield from _recovery_flaws(f"{field}.gcsFaultToleranceOptions", cluster)
    yield from _scaling_flaws(field, cluster)
    groups = [mapping(each) for each in sequence(cluster.get("workerGroupSpecs"))]
    names = [str(each.get("groupName", "")) for each in groups]
    for index, group in enumerate(groups):
        place = f"{field}.workerGroupSpecs[{index}]"
        yield from _group_flaws(place, group)
        if names.index(names[index]) < index:
            yield Flaw(
                "group-twice",
                f"{place}.groupName",
                "two groups bear this name",
                "rename one",
                value=names[index],
            )


def _group_flaws(field: str, group: Tree) -> Iterator[Flaw]:
    for key in group:
        if key not in _GROUP_KEYS:
            yield unknown_key(field, str(key), _GROUP_KEYS)
    counts = {key: whole_number(group.get(key)) for key in ("minReplicas", "maxReplicas")}
    for key, count in counts.items():
        if count is None:
            yield Flaw(
                "replicas-not-said",
                f"{field}.{key}",
                "not given, or no whole number: the API server refuses the group",
                f"write {key}",
                value=repr(group[key]) if key in group else "",
            )
    least, most = counts["minReplicas"], counts["maxReplicas"]
    replicas = whole_number(group.get("replicas", least))
    if least is None or most is None or replicas is None:
        return
    if least > most:
        yield Flaw(
            "min-above-max",
            f"{field}.minReplicas",
            f"above maxReplicas {most}",
            f"lower it to {most}, or raise maxReplicas to {least}",
            value=str(least),
            allowed=f"0 to {most}",
        )
    elif not least <= replicas <= most:
        yield Flaw(
            "replicas-out-of-range",
            f"{field}.replicas",
            "outside minReplicas and maxReplicas: the operator would change it at once",
            f"replicas: {min(max(replicas, least), most)}",
            value=str(replicas),
            allowed=f"{least} to {most}",
        )


def _scaling_flaws(field: str, cluster: Tree) -> Iterator[Flaw]:
    groups = [mapping(each) for each in sequence(cluster.get("workerGroupSpecs"))]
    open_ended = [
        str(each.get("groupName"))
        for each in groups
        if (whole_number(each.get("minReplicas")) or 0)
        < (whole_number(each.get("maxReplicas")) or 0)
    ]
    scaling = cluster.get("enableInTreeAutoscaling") is True
    if open_ended and not scaling:
        yield Flaw(
            "no-autoscaler",
            f"{field}.enableInTreeAutoscaling",
            f"nothing would ever scale {', '.join(open_ended)} up or down",
            "enableInTreeAutoscaling: true, or equal minReplicas and maxReplicas",
            value=str(cluster.get("enableInTreeAutoscaling", "")),
            allowed="true",
        )
    version = mapping(cluster.get("autoscalerOptions")).get("version")
    if scaling and version not in ("v1", "v2"):
        yield Flaw(
            "autoscaler-version",
            f"{field}.autoscalerOptions.version",
            "not given: which of the two autoscalers runs would depend on the operator",
            "version: v2, which says why a node is not to be had",
            value=str(version or ""),
            allowed="v2, v1",
        )


def _recovery_flaws(field: str, cluster: Tree) -> Iterator[Flaw]:
    if "gcsFaultToleranceOptions" not in cluster:
        return
    options = mapping(cluster["gcsFaultToleranceOptions"])
    backend = options.get("backend", "redis")
    if backend == "redis" and not options.get("redisAddress"):
        yield Flaw(
            "recovery-without-store",
            f"{field}.redisAddress",
            "a head that comes back would find nothing",
            "give redisAddress: host:port, or backend: rocksdb",
        )
    if backend == "rocksdb" and options.get("redisAddress"):
        yield Flaw(
            "recovery-two-stores",
            f"{field}.redisAddress",
            "nothing reads it with backend rocksdb",
            "remove it",
            value=str(options["redisAddress"]),
        )


def queue_flaws(tree: Tree, cluster: Tree) -> Iterator[Flaw]:
    """What Kueue and Volcano need of the manifest."""
    labels = mapping(mapping(tree.get("metadata")).get("labels"))
    spec = mapping(tree.get("spec"))
    if _QUEUE in labels:
        if cluster.get("enableInTreeAutoscaling"):
            yield Flaw(
                "queue-and-scaling",
                "spec.enableInTreeAutoscaling",
                "Kueue admits a cluster of one size: it would refuse this one",
                "enableInTreeAutoscaling: false and equal minReplicas and maxReplicas, or no queue",
                value="true",
                allowed="false",
            )
        if tree.get("kind") == "RayJob" and spec.get("shutdownAfterJobFinishes") is not True:
            yield Flaw(
                "queue-never-left",
                "spec.shutdownAfterJobFinishes",
                "Kueue takes a RayJob only where its cluster ends with it",
                "shutdownAfterJobFinishes: true",
                value=str(spec.get("shutdownAfterJobFinishes", "")),
                allowed="true",
            )
    if "volcano.sh/queue-name" in labels and "ray.io/gang-scheduling-enabled" not in labels:
        yield Flaw(
            "gang-not-asked",
            "metadata.labels",
            "a Volcano queue without a gang: pods start one by one",
            'ray.io/gang-scheduling-enabled: "true"',
        )
    ttl = whole_number(spec.get("ttlSecondsAfterFinished"))
    if tree.get("kind") == "RayJob" and ttl and spec.get("shutdownAfterJobFinishes") is not True:
        yield Flaw(
            "cluster-outlives-job",
            "spec.shutdownAfterJobFinishes",
            "ttlSecondsAfterFinished does nothing without it: the cluster stays and costs",
            "shutdownAfterJobFinishes: true",
            allowed="true",
        )
    if tree.get("kind") == "RayJob" and not spec.get("entrypoint"):
        yield Flaw("missing-key", "spec.entrypoint", "required, but not given", "give the command")


def service_flaws(tree: Tree, cluster: Tree) -> Iterator[Flaw]:
    """A RayService's Serve config: readable, ours, and with a GPU for every replica."""
    if tree.get("kind") != "RayService":
        return
    field = "spec.serveConfigV2"
    text = mapping(tree.get("spec")).get("serveConfigV2")
    try:
        config = mapping(yaml.safe_load(text)) if isinstance(text, str) else {}
    except yaml.YAMLError as wrong:
        problem = str(wrong).partition("\n")[0]
        yield Flaw("serve-config", field, f"not readable as YAML: {problem}", "mend its YAML")
        return
    applications = [mapping(each) for each in sequence(config.get("applications"))]
    if not applications:
        yield Flaw("serve-config", field, "holds no applications", "write `applications:`")
        return
    paths = [str(each.get("import_path", "")) for each in applications]
    ours = [path for path in paths if path.startswith("rayline.serving")]
    if ours and "rayline.serving.app:build_front" not in paths:
        yield Flaw(
            "no-front",
            field,
            "no gateway in front: nothing would answer on the port",
            "add the application rayline.serving.app:build_front",
        )
    if ours and config.get("proxy_location") != "Disabled":
        yield Flaw(
            "proxy-location",
            f"{field}.proxy_location",
            "the gateway answers HTTP itself, and Serve's proxy would take its port",
            "proxy_location: Disabled",
            value=str(config.get("proxy_location", "")),
            allowed="Disabled",
        )
    yield from _replica_flaws(applications, cluster)


def _replica_flaws(applications: list[Tree], cluster: Tree) -> Iterator[Flaw]:
    wanted = 0
    for each in applications:
        args = mapping(each.get("args"))
        if args.get("device") == "gpu":
            replicas = whole_number(mapping(args.get("scale")).get("max_replicas")) or 1
            engine = mapping(args.get("engine"))
            wanted += replicas * (whole_number(engine.get("tensor_parallel_size")) or 1)
    have = sum(
        (whole_number(group.get("maxReplicas")) or 0) * _gpus(group)
        for group in map(mapping, sequence(cluster.get("workerGroupSpecs")))
    )
    if wanted > have:
        yield Flaw(
            "too-few-gpus",
            "spec.serveConfigV2",
            f"its replicas need {wanted} GPUs and the groups have at most {have}",
            "raise maxReplicas of a group with GPUs, or lower scale.max_replicas",
            value=str(wanted),
            allowed=f"at most {have}",
        )


def _gpus(group: Tree) -> int:
    pod = mapping(mapping(group.get("template")).get("spec"))
    container = mapping(next(iter(sequence(pod.get("containers"))), None))
    limits = mapping(mapping(container.get("resources")).get("limits"))
    amount = str(limits.get("nvidia.com/gpu", "0"))
    return int(amount) if amount.isdigit() else 0
