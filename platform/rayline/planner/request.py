"""What somebody asks the planner for, from words: a model by name, a cluster by kind and count or
from a YAML file for `ray up`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayline.errors import SpecError, meant
from rayline.planner.accelerators import ACCELERATORS, find_accelerator
from rayline.planner.columns import Machines
from rayline.planner.hardware import KIND_RESOURCE
from rayline.planner.model_catalogue import SHAPES, find_shape
from rayline.planner.shape import CONFIG_FILE, read_model_shape
from rayline.spec import JobSpec, ModelRef, ModelShape
from rayline.spec.document import apply_overrides, read_yaml

_TOKENS_PER_STEP = 4 * 2**20
"""Of a job that only names a model: about what models of this size are trained with."""
_INSTANCES = {
    "p3.16xlarge": ("V100-16G", 8),
    "p3dn.24xlarge": ("V100-32G", 8),
    "p4d.24xlarge": ("A100-40G", 8),
    "p4de.24xlarge": ("A100-80G", 8),
    "p5.48xlarge": ("H100", 8),
    "p5en.48xlarge": ("H200", 8),
    "p6-b200.48xlarge": ("B200", 8),
    "g5.48xlarge": ("A10G", 8),
    "g6.12xlarge": ("L4", 4),
    "g6.48xlarge": ("L4", 8),
    "g6e.48xlarge": ("L40S", 8),
    "a2-highgpu-8g": ("A100-40G", 8),
    "a2-ultragpu-8g": ("A100-80G", 8),
    "a3-highgpu-8g": ("H100", 8),
    "a3-megagpu-8g": ("H100", 8),
    "a3-ultragpu-8g": ("H200", 8),
    "g2-standard-48": ("L4", 4),
    "Standard_ND96asr_v4": ("A100-40G", 8),
    "Standard_ND96amsr_A100_v4": ("A100-80G", 8),
    "Standard_ND96isr_H100_v5": ("H100", 8),
    "Standard_ND96isr_H200_v5": ("H200", 8),
}
"""Machine types of clouds that say which GPUs they have."""


def job_of(words: str, sets: list[str]) -> JobSpec:
    """The job that `words` means: a spec's file; or a model, by its name in the catalogue, its
    folder or its config.json, with a job made around it. Raises SpecError."""
    path = Path(words)
    if path.suffix in (".yaml", ".yml"):
        return JobSpec.load(path, sets)
    shape = find_shape(words)
    if shape is None and not path.exists():
        raise SpecError(
            "SPEC",
            "neither a spec's file nor a model",
            value=words,
            allowed=f"a YAML file, a model's folder or config.json, or {', '.join(SHAPES)}",
            fix=meant(words, SHAPES, otherwise="give one of the allowed, or a spec's file"),
        )
    folder = path.parent if path.name == CONFIG_FILE else path
    if shape is None:
        shape = read_model_shape(folder)
    tokens = min(8192, shape.max_positions or 8192)
    tree: dict[str, Any] = {
        "name": folder.name or "planned",
        "model": {"hub": words} if find_shape(words) else {"directory": str(folder)},
        "steps": 1,
        "precision": "bf16",
        "plan": "auto",
        "data": {"kind": "text", "files": ["data.txt"], "sequence_tokens": tokens},
        "batch": {"sequences": max(1, _TOKENS_PER_STEP // tokens)},
        "optim": {"lr": 1e-4},
    }
    return JobSpec.parse(apply_overrides(tree, sets), origin="the command line")


def known_shape(model: ModelRef) -> ModelShape | None:
    """The shape of a model where nothing has to be fetched for it; else None."""
    if model.hub is not None:
        return find_shape(model.hub)
    if model.directory is not None:
        return read_model_shape(Path(model.directory).expanduser())
    return None


def machines_of(gpus: int | None, gpu_type: str | None, cluster: Path | None) -> Machines:
    """The machines: by kind and count, or those of a cluster's YAML file; count and kind narrow
    what the file has. Raises SpecError."""
    if cluster is not None:
        return _of_cluster(cluster, gpus, gpu_type)
    if gpu_type is None:
        raise SpecError(
            "--gpu-type",
            "is needed to predict how long a step takes",
            allowed=", ".join(ACCELERATORS),
            fix="give --gpu-type with --gpus, or --cluster cluster/aws.yaml",
        )
    if gpus is None or gpus < 1:
        raise SpecError("--gpus", "how many there are is needed", value=gpus, allowed="1 or more")
    return Machines(find_accelerator(gpu_type), gpus)


def _of_cluster(file: Path, gpus: int | None, gpu_type: str | None) -> Machines:
    """The GPUs of the node type that can compute most."""
    types = read_yaml(file).get("available_node_types")
    if not isinstance(types, dict):
        raise SpecError(str(file), "is no YAML file of a cluster: it has no available_node_types")
    wanted = find_accelerator(gpu_type) if gpu_type else None
    found = []
    for node in types.values():
        kind, each = _node_gpus(node if isinstance(node, dict) else {})
        if kind is not None and wanted in (None, kind):
            found.append(Machines(kind, each * int(node.get("max_workers", 1) or 1), each))
    if not found:
        raise SpecError(
            str(file),
            "has no node type with GPUs that the catalogue knows",
            value=gpu_type,
            fix="give --gpus and --gpu-type",
        )
    most = max(found, key=lambda one: one.gpus * one.accelerator.bf16_tflops)
    return Machines(most.accelerator, gpus or most.gpus, most.gpus_per_node)


def _node_gpus(node: dict[str, Any]) -> tuple[Any, int]:
    """Kind and count of the GPUs of one node type; None where it has none that is known."""
    resources = node.get("resources") or {}
    config = node.get("node_config") or {}
    named = [str(config.get(key, "")) for key in ("InstanceType", "machineType", "vmSize")]
    parameters = config.get("azure_arm_parameters") or {}
    named.append(str(parameters.get("vmSize", "")))
    for name in named:
        if name in _INSTANCES:
            kind, each = _INSTANCES[name]
            return find_accelerator(kind), int(resources.get("GPU", each))
    for key in resources:
        if str(key).startswith(KIND_RESOURCE) and resources.get("GPU"):
            return find_accelerator(str(key).partition(":")[2]), int(resources["GPU"])
    return None, 0
