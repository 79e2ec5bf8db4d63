"""A ClusterSpec to the one file that brings it up: what stands in it, and the lines above.

Pure: the same spec gives the same text on every machine. `make render` writes the files of cluster/
from cluster/specs/, and a test keeps them equal.
"""

from __future__ import annotations

from rayline.launch.clusters.catalogue import group_machine, head_machine
from rayline.launch.clusters.kuberay import kuberay_sections
from rayline.launch.clusters.launcher import launcher_sections, shares
from rayline.launch.clusters.made_up import made_up_sections
from rayline.launch.clusters.pods import pod_size
from rayline.launch.clusters.writing import Section, Tree, document, merged, paragraph
from rayline.spec import ClusterSpec

_TOKEN = "ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token && "  # noqa: S105
_SUBMIT = (
    "Then: `ray dashboard {file}` in one terminal, and in another `RAY_AUTH_MODE=token ray job "
    "submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py --spec "
    "jobs/specs/quickstart.yaml`. End: `ray down {file}`, or `rayline cluster down {source}`."
)
_NEEDS = {
    "aws": "AWS credentials (`aws sts get-caller-identity` answers) and quota for the worker types "
    "in the region.",
    "gcp": "your project's id in cloud.project_id of the spec, `gcloud auth application-default "
    "login`, and quota for the worker types in the zone.",
    "azure": "your subscription's id in cloud.subscription_id of the spec, `az login`, and quota "
    "for the worker types in the location.",
    "on-premises": "your addresses in machines of the spec, and an ssh key that logs in on every "
    "machine without a password. RAY_UP_enable_autoscaler_v2=0 is part of the command: with the "
    "newer autoscaler this provider starts one worker too few.",
}
_EFA = (
    "Nodes with EFA need a private subnet with a NAT gateway, the head's public one beside it, a "
    "security group that lets through everything to and from itself (and ssh), and a cluster "
    "placement group: set all four under cloud in the spec."
)


def sections_of(spec: ClusterSpec) -> list[Section]:
    """What stands in the file. Raises SpecError where the spec names what is not to be had."""
    if spec.provider == "kuberay":
        return kuberay_sections(spec)
    if spec.provider == "fake":
        return made_up_sections(spec)
    return launcher_sections(spec)


def tree_of(spec: ClusterSpec) -> Tree:
    """What a reader of the file gets."""
    return merged(sections_of(spec))


def render(spec: ClusterSpec, file: str, source: str) -> str:
    """The file's text; `file` is where it will lie and `source` the spec's, both for its header."""
    return document(_header(spec, file, source), sections_of(spec))


def _header(spec: ClusterSpec, file: str, source: str) -> list[str]:
    lines = [_command(spec, file, source), _hardware(spec), ""]
    lines += paragraph(f"Rendered from {source} by `make render`: change that file, not this one.")
    told = _needs(spec, file, source)
    return [*lines, *paragraph(told)] if told else lines


def _command(spec: ClusterSpec, file: str, source: str) -> str:
    if spec.provider == "fake":
        return f"rayline cluster up {source}"
    if spec.kubernetes is None:
        older = "RAY_UP_enable_autoscaler_v2=0 " if spec.autoscaler == "v1" else ""
        return f"{_TOKEN}{older}ray up {file}"
    apply = f"kubectl apply -f {file}"
    if spec.kubernetes.run is not None:
        wanted = "--for=jsonpath='{.status.jobDeploymentStatus}'=Complete"
        return f"{apply} && kubectl wait {wanted} rayjob/{spec.name} --timeout=20m"
    if spec.kubernetes.serve is not None:
        return f"{apply} && kubectl wait --for=condition=Ready rayservice/{spec.name} --timeout=20m"
    return apply


def _hardware(spec: ClusterSpec) -> str:
    if spec.machines is not None:
        count = len(spec.machines.workers)
        return (
            f"One head and {count} workers that you own: Ubuntu 24.04 on x86_64, any NVIDIA GPUs "
            "with driver 580 or newer, or none"
        )
    head = head_machine(spec)
    shown = head.words if head is not None else f"{spec.head.cpus} CPU, no GPU"
    return f"Head {shown}; workers " + ", ".join(
        _group_words(spec, index) for index in range(len(spec.groups))
    )


def _group_words(spec: ClusterSpec, index: int) -> str:
    group, machine = spec.groups[index], group_machine(spec, index)
    counts = [
        (f"{most}" if least == most else f"{least} to {most}") + (" spot" if spot else "")
        for _, spot, least, most in shares(group)
    ]
    if spec.kubernetes is not None or machine is None:
        cpus, memory_gib = pod_size(group, machine)
        gpus = f", {group.gpus_per_node} x {group.gpu}" if group.gpu else ""
        if spec.provider == "fake":
            each = f"{cpus} CPU{gpus} (made up)"
        else:
            each = f"{cpus} CPU and {memory_gib} GiB{gpus}"
        return f"{' and '.join(counts)} of {each}"
    return f"{' and '.join(counts)} {machine.words}"


def _needs(spec: ClusterSpec, file: str, source: str) -> str:
    if spec.provider == "fake":
        return (
            "Several nodes on this machine under a real autoscaler, to try scaling; their GPUs are "
            f"numbers. `rayline cluster status {source}`, `rayline cluster down {source}`."
        )
    if spec.kubernetes is not None:
        return _kubernetes_needs(spec)
    fast = any(group.fast_network for group in spec.groups)
    parts = [f"Needs: {_NEEDS[spec.provider]}", *([_EFA] if fast else [])]
    parts.append(_SUBMIT.format(file=file, source=source))
    return " ".join(parts)


def _kubernetes_needs(spec: ClusterSpec) -> str:
    kubernetes = spec.kubernetes
    assert kubernetes is not None  # noqa: S101  asked before
    gpus = any(group.gpu is not None for group in spec.groups)
    device = ", the NVIDIA device plugin" if gpus else ""
    queue = ", Kueue with that LocalQueue" if kubernetes.queue else ""
    gang = ", Volcano as the operator's batch scheduler" if kubernetes.gang_scheduler else ""
    needs = (
        f"Needs: the KubeRay operator 1.7{device}{queue}{gang}, and the image of "
        "cluster/Dockerfile under a name that the nodes can pull (set it as image in the spec)."
    )
    if any(group.fast_network for group in spec.groups):
        needs += " " + _FAST_NEEDS[kubernetes.flavor]
    return f"{needs} {_kubernetes_use(spec)}"


_FAST_NEEDS = {
    "eks": "EFA: AWS's device plugin, nodes in one cluster placement group, and the libraries of "
    "AWS's EFA installer (aws-ofi-nccl) in the image.",
    "gke": "GPUDirect RDMA: a node pool with the networks rdma-0 to rdma-7 and Google's NCCL "
    "installer (gIB) on its nodes.",
    "aks": "InfiniBand: the network operator's device plugin that offers rdma/ib.",
    "plain": "",
}


def _kubernetes_use(spec: ClusterSpec) -> str:
    kubernetes = spec.kubernetes
    assert kubernetes is not None  # noqa: S101  asked before
    if kubernetes.run is not None:
        return (
            "The cluster is made for the job and goes with it. Logs: "
            f"`kubectl logs -f -l job-name={spec.name}`."
        )
    if kubernetes.serve is not None:
        return (
            f"Then `kubectl port-forward service/{spec.name}-serve-svc 8000` and talk to "
            "http://127.0.0.1:8000/v1 with any OpenAI client."
        )
    secret = kubernetes.auth_secret or spec.name
    return (
        "Token authentication is on"
        + ("" if kubernetes.auth_secret else ": KubeRay makes the token and keeps it in a secret")
        + f". Then `kubectl port-forward service/{spec.name}-head-svc 8265` in one terminal, and "
        f"in another `export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(kubectl get secret {secret} -o "
        "jsonpath='{.data.auth_token}' | base64 -d)` and `ray job submit --address "
        "http://127.0.0.1:8265 -- python jobs/train.py --spec jobs/specs/quickstart.yaml`"
    )


def target_name(spec: ClusterSpec, stem: str) -> str:
    """Where the rendered file lies below cluster/: manifests have a folder of their own."""
    folder = "kuberay/" if spec.provider == "kuberay" else ""
    return f"{folder}{stem}.yaml"
