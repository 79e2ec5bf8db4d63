"""What each node of a cluster is and how fast it is: measured on the nodes, printed as JSON.

This file is a script too, and needs Python, Ray and torch of the cluster, nothing of rayline: the
doctor sends it as a job of its own, so that a cluster can be looked at from wherever its dashboard
is reached, whatever is installed there. Every wait in it has an end; a node that does not answer in
time is told as such.

    python probes.py        # on a node of the cluster; the last line is the document
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MARK = "RAYLINE-PROBES "
"""How the line begins that holds the document."""
START_TIMEOUT_S = 60.0
MEASURE_TIMEOUT_S = 60.0
_DISTRIBUTIONS = ("ray", "torch", "transformers", "vllm", "deepspeed", "mlflow", "rayline")
_CPU_SIDE = 1024
_GPU_SIDE = 8192
_LINK_BYTES = 8 * 2**20
_ROUNDS = 5
_SHM = "/dev/shm"  # noqa: S108  it is only looked at


class Prober:
    """What runs on one node; an actor of this class lies there."""

    def facts(self) -> dict[str, Any]:
        """What the node is."""
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in _DISTRIBUTIONS},
            "cpus": len(os.sched_getaffinity(0)),
            "gpus": _gpus(),
            "nccl": _nccl(),
            "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
            "shm_free_bytes": shutil.disk_usage(_SHM).free if Path(_SHM).is_dir() else None,
            "load": os.getloadavg()[0],
        }

    def clock(self) -> float:
        """The node's Unix time."""
        return time.time()

    def matmul(self) -> list[dict[str, Any]]:
        """Floating point operations a second in matrix products: of each GPU that is lent to this
        actor in bf16, else of the CPU in fp32."""
        import torch

        if torch.cuda.is_available():
            return [_timed_matmul(torch, f"cuda:{n}") for n in range(torch.cuda.device_count())]
        return [_timed_matmul(torch, "cpu")]

    def address(self) -> tuple[str, int]:
        """An address of this node at which a group can meet."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return here, probe.getsockname()[1]

    def join(self, rank: int, count: int, host: str, port: int, backend: str) -> None:
        """Become a rank of one group over all nodes."""
        import datetime

        import torch.distributed as dist

        dist.init_process_group(
            backend,
            init_method=f"tcp://{host}:{port}",
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(seconds=MEASURE_TIMEOUT_S),
        )

    def all_reduce(self) -> float:
        """Bus bandwidth in bytes a second: 2 (n - 1) / n of the bytes, over the median time."""
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        block = torch.ones(_LINK_BYTES // 4, device=device)
        seconds = []
        for _ in range(_ROUNDS + 1):
            dist.barrier()
            began_s = time.perf_counter()
            dist.all_reduce(block)
            _settle(torch, device)
            seconds.append(time.perf_counter() - began_s)
        count = dist.get_world_size()
        return 2 * (count - 1) / count * _LINK_BYTES / statistics.median(seconds[1:])

    def links(self) -> float:
        """Bytes a second from this rank to the next: every rank sends in its turn."""
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        block = torch.ones(_LINK_BYTES // 4, device=device)
        rank, count = dist.get_rank(), dist.get_world_size()
        seconds: list[float] = []
        for sender in range(count):
            dist.barrier()
            for _ in range(_ROUNDS if rank in (sender, (sender + 1) % count) else 0):
                began_s = time.perf_counter()
                if rank == sender:
                    dist.send(block, (sender + 1) % count)
                    dist.recv(block[:1], (sender + 1) % count)
                    seconds.append(time.perf_counter() - began_s)
                else:
                    dist.recv(block, sender)
                    _settle(torch, device)
                    dist.send(block[:1], sender)
        return _LINK_BYTES / statistics.median(seconds[1:])


def measure_here() -> dict[str, Any]:
    """The document for this machine alone, without Ray."""
    prober = Prober()
    facts = {"node_id": "", "address": "this machine", **prober.facts()}
    try:
        facts["matmul"] = prober.matmul()
    except ImportError as missing:
        facts["problem"] = str(missing)
    return {"nodes": [facts], "group": None}


def measure_cluster() -> dict[str, Any]:
    """The document for the cluster that this process has joined."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    probers = [_prober(ray, node, free.get(node["NodeID"], {})) for node in nodes]
    found = [
        {
            "node_id": node["NodeID"],
            "address": node["NodeManagerAddress"],
            "ray_gpus": node["Resources"].get("GPU", 0.0),
        }
        for node in nodes
    ]
    for facts, told in zip(found, _told(ray, probers, "facts", START_TIMEOUT_S), strict=True):
        facts.update({"problem": told} if isinstance(told, str) else told)
    for facts, prober in zip(found, probers, strict=True):
        if "problem" not in facts:
            facts.update(_clock(ray, prober))
    for facts, told in zip(found, _told(ray, probers, "matmul", MEASURE_TIMEOUT_S), strict=True):
        facts.update({"problem": told} if isinstance(told, str) else {"matmul": told})
    well = [prober for prober, facts in zip(probers, found, strict=True) if "problem" not in facts]
    group = _group(ray, well, found) if len(well) > 1 else None
    for prober in probers:
        ray.kill(prober)
    return {"nodes": found, "group": group}


def _told(ray: Any, probers: list[Any], method: str, timeout_s: float) -> list[Any]:
    """What each prober answers within the time, all asked at once; its problem, as text, where it
    does not."""
    asked = [getattr(prober, method).remote() for prober in probers]
    ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
    found = []
    for each in asked:
        try:
            found.append(ray.get(each, timeout=0))
        except ray.exceptions.GetTimeoutError:
            found.append(f"does not answer within {timeout_s:g} s")
        # Whatever a node's software does wrong is what was asked for.
        except Exception as wrong:  # noqa: BLE001
            found.append(_last_line(wrong))
    return found


def _clock(ray: Any, prober: Any) -> dict[str, float]:
    """How far the node's clock is ahead of this one, and how sure that is: the best of a few."""
    best = (float("inf"), 0.0)
    for _ in range(_ROUNDS):
        began_s = time.time()
        there_s = ray.get(prober.clock.remote(), timeout=START_TIMEOUT_S)
        ended_s = time.time()
        best = min(best, ((ended_s - began_s) / 2, there_s - (began_s + ended_s) / 2))
    return {"clock_error_s": best[0], "clock_ahead_s": best[1]}


def _last_line(wrong: Exception) -> str:
    return (str(wrong).strip() or type(wrong).__name__).splitlines()[-1]


def _prober(ray: Any, node: dict[str, Any], free: dict[str, float]) -> Any:
    """An actor on the node; it is lent the GPUs, where nobody else holds one of them."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    total = node["Resources"].get("GPU", 0.0)
    lent = total if free.get("GPU", 0.0) >= total else 0.0
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    remote = ray.remote(num_cpus=0, num_gpus=lent)(Prober)
    return remote.options(scheduling_strategy=where).remote()


def _group(ray: Any, probers: list[Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """All-reduce over all nodes, and the link from each to the next."""
    well = [facts for facts in found if "problem" not in facts]
    on_gpu = all(each["matmul"][0]["device"] != "cpu" for each in well)
    backend = "nccl" if on_gpu else "gloo"
    told: dict[str, Any] = {"backend": backend}
    try:
        host, port = ray.get(probers[0].address.remote(), timeout=START_TIMEOUT_S)
        ray.get(
            [
                each.join.remote(rank, len(probers), host, port, backend)
                for rank, each in enumerate(probers)
            ],
            timeout=MEASURE_TIMEOUT_S,
        )
        both = [each.all_reduce.remote() for each in probers]
        told["bytes_per_s"] = min(ray.get(both, timeout=MEASURE_TIMEOUT_S))
        links = ray.get([each.links.remote() for each in probers], timeout=MEASURE_TIMEOUT_S)
        told["links"] = [
            {
                "from": each["node_id"],
                "to": well[(number + 1) % len(well)]["node_id"],
                "bytes_per_s": one,
            }
            for number, (each, one) in enumerate(zip(well, links, strict=True))
        ]
    # Whatever the network or torch does wrong is what was asked for.
    except Exception as wrong:  # noqa: BLE001
        told["problem"] = _last_line(wrong)
    return told


def _timed_matmul(torch: Any, device: str) -> dict[str, Any]:
    on_gpu = device != "cpu"
    side = _GPU_SIDE if on_gpu else _CPU_SIDE
    dtype = torch.bfloat16 if on_gpu else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(_ROUNDS + 1):
        began_s = time.perf_counter()
        left @ right
        _settle(torch, device)
        seconds.append(time.perf_counter() - began_s)
    name = torch.cuda.get_device_name(device) if on_gpu else _cpu_name()
    return {
        "device": device,
        "name": name,
        "precision": "bf16" if on_gpu else "fp32",
        "flops_per_s": 2 * side**3 / statistics.median(seconds[1:]),
    }


def _cpu_name() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        named = next((line for line in file if line.startswith("model name")), "")
    return named.partition(":")[2].strip() or platform.machine()


def _settle(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _version(distribution: str) -> str | None:
    for name in (distribution, f"{distribution}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _nccl() -> str | None:
    """Version of the NCCL that torch brings, without importing it."""
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"] or ""
        if name.startswith("nvidia-nccl"):
            return package.version
    return None


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU, as nvidia-smi says it."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return [line.strip() for line in told.stdout.splitlines() if "," in line]


def main() -> None:
    """The script: measure the cluster that this process runs in, print the document."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    sys.stdout.write(MARK + json.dumps(measure_cluster()) + "\n")


if __name__ == "__main__":
    main()
