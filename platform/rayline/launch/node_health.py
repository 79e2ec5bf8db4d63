"""What the figures of the probes mean: nodes compared with one another, with this machine and with
what their GPUs can do at most. Pure functions of the document that `probes` prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rayline.launch.finding import Finding, Level
from rayline.planner.hardware import device_peak_flops_per_s

_SLOW_SHARE = 0.8
"""A node below this share of the median of its like is slow: a gang goes at its pace."""
_WEAK_SHARE = 0.5
"""A GPU in a large matrix product below this share of its peak is throttled, shared or ill."""
_SLOW_LINK_SHARE = 0.5
_CLOCK_WARNING_S = 0.5
_CLOCK_ERROR_S = 30.0
"""Tokens and certificates are refused, and times of logs mean nothing."""
_DISK_WANTED_BYTES = 10 * 2**30
_SHM_WANTED_BYTES = 2**30
_ALIKE = ("ray", "torch", "transformers", "rayline")
"""What has to be the same on all nodes: a gang's ranks and the driver exchange their objects."""

Facts = Mapping[str, Any]


def node_findings(document: Facts, here: Mapping[str, str | None]) -> Iterator[Finding]:
    """What the probes found, node by node; `here` is this machine's versions, `python` among
    them."""
    nodes: Sequence[Facts] = document["nodes"]
    yield from _silent(nodes)
    well = [node for node in nodes if "python" in node]
    yield from _versions(well, here)
    yield from _clocks(well)
    yield from _space(well)
    yield from _gpus(well)
    yield from _speeds(well)
    yield from _network(document.get("group"), nodes)


def _name(node: Facts) -> str:
    return f"node {node['node_id'][:8]} ({node['address']})" if node["node_id"] else "this machine"


def _silent(nodes: Sequence[Facts]) -> Iterator[Finding]:
    for node in nodes:
        if "problem" in node:
            text = f"{_name(node)}: {node['problem']}"
            fix = "read its raylet.out and the log of the probes' job; restart the node if it stays"
            yield Finding("node", "error", text, fix)


def _versions(nodes: Sequence[Facts], here: Mapping[str, str | None]) -> Iterator[Finding]:
    for what in ("python", *_ALIKE):
        by_version: dict[str, list[Facts]] = {}
        for node in nodes:
            version = node["python"] if what == "python" else node["versions"].get(what)
            by_version.setdefault(version or "none", []).append(node)
        if len(by_version) > 1:
            each = "; ".join(
                f"{version} on {', '.join(map(_name, which))}"
                for version, which in sorted(by_version.items(), key=lambda item: len(item[1]))
            )
            fix = "install the locked requirements on every node (cluster/requirements)"
            yield Finding(f"{what} on the nodes", "error", each, fix)
            continue
        found = next(iter(by_version), None)
        mine = here.get(what)
        if found is None or found == "none" or mine is None:
            continue
        if found == mine:
            yield Finding(f"{what} on the nodes", "ok", f"{found}, as here")
        else:
            # Jobs run on the cluster: what differs here matters to a client's checks only.
            fix = f"use {what} {found} here, or make the cluster from this lock"
            text = f"{found} on every node, here {mine}"
            yield Finding(f"{what} on the nodes", "warning", text, fix)


def _clocks(nodes: Sequence[Facts]) -> Iterator[Finding]:
    told = [node for node in nodes if "clock_ahead_s" in node]
    for node in told:
        ahead_s, error_s = node["clock_ahead_s"], node["clock_error_s"]
        if abs(ahead_s) - error_s > _CLOCK_WARNING_S:
            level: Level = "error" if abs(ahead_s) > _CLOCK_ERROR_S else "warning"
            where = "ahead of" if ahead_s > 0 else "behind"
            text = f"{_name(node)} is {abs(ahead_s):.1f} s {where} the head"
            yield Finding("clock", level, text, "run chrony or ntpd on every node")
    if told and all(abs(n["clock_ahead_s"]) - n["clock_error_s"] <= _CLOCK_WARNING_S for n in told):
        most_s = max(abs(node["clock_ahead_s"]) for node in told)
        yield Finding("clock", "ok", f"{len(told)} nodes within {most_s:.3f} s")


def _space(nodes: Sequence[Facts]) -> Iterator[Finding]:
    wanted = {
        "disk": ("disk_free_bytes", _DISK_WANTED_BYTES, "make room, or mount a larger disk"),
        "shm": ("shm_free_bytes", _SHM_WANTED_BYTES, "docker run --shm-size=8g, or mount more"),
    }
    for name, (key, least_bytes, fix) in wanted.items():
        for node in nodes:
            free = node.get(key)
            if free is not None and free < least_bytes:
                text = f"{_name(node)} has {free / 2**30:.1f} GiB free"
                yield Finding(name, "warning", f"{text}, {least_bytes / 2**30:.0f} GiB wanted", fix)


def _gpus(nodes: Sequence[Facts]) -> Iterator[Finding]:
    for node in nodes:
        count, known = len(node["gpus"]), node.get("ray_gpus", len(node["gpus"]))
        if count and known != count:
            text = f"{_name(node)} has {count} GPUs and Ray knows {known:g}"
            fix = "start Ray there with --num-gpus, or leave it out"
            yield Finding("gpu", "warning", text, fix)
    drivers = {line.rpartition(",")[2].strip() for node in nodes for line in node["gpus"]}
    if len(drivers) > 1:
        text = f"drivers {', '.join(sorted(drivers))} on one cluster"
        yield Finding("driver", "warning", text, "install the same NVIDIA driver on every node")
    libraries = {node["nccl"] for node in nodes if node["gpus"]}
    if None in libraries:
        text = "a node with GPUs has no NCCL: its ranks would meet over gloo"
        yield Finding("nccl", "error", text, "install the CUDA build of torch there")
    elif len(libraries) > 1:
        text = f"NCCL {', '.join(sorted(libraries))} on one cluster"
        yield Finding("nccl", "error", text, "install the same build of torch on every node")


def _speeds(nodes: Sequence[Facts]) -> Iterator[Finding]:
    """Each device against its like, and against the most that its kind can do."""
    for node in nodes:
        if node["gpus"] and any(each["device"] == "cpu" for each in node.get("matmul", [])):
            text = f"{_name(node)}: its GPUs are held by others and were not measured"
            yield Finding("matmul", "warning", text, "repeat it when they are free")
    measured = [(node, each) for node in nodes for each in node.get("matmul", [])]
    kinds: dict[tuple[str, str], list[tuple[Facts, Facts]]] = {}
    for node, each in measured:
        kinds.setdefault((each["name"], each["precision"]), []).append((node, each))
    for (kind, precision), found in kinds.items():
        middle = statistics.median(each["flops_per_s"] for _, each in found)
        peak = device_peak_flops_per_s(kind, "fp32" if precision == "fp32" else "bf16")
        slow = False
        for node, each in found:
            where = f"{_name(node)} {each['device']}"
            speed = each["flops_per_s"]
            told = f"{_tflops(speed)} in {precision}"
            if len(found) > 1 and speed < _SLOW_SHARE * middle:
                text = f"{where}: {told}, {speed / middle:.0%} of its like's median"
                yield Finding("slow node", "warning", text, _busy(node))
                slow = True
            elif peak is not None and speed < _WEAK_SHARE * peak:
                text = f"{where}: {told}, {speed / peak:.0%} of the {_tflops(peak)} of a {kind}"
                yield Finding("slow gpu", "warning", text, _busy(node))
                slow = True
        if not slow:
            share = "" if peak is None else f", {middle / peak:.0%} of its peak"
            text = f"{len(found)} x {kind}: {_tflops(middle)} in {precision}{share}"
            yield Finding("matmul", "ok", text)


def _busy(node: Facts) -> str:
    load = node.get("load", 0.0)
    return (
        f"something else computes there (load {load:.0f} on {node['cpus']} cores): end it, or keep "
        "gangs off the node"
        if load > node.get("cpus", 1)
        else "look for throttling (nvidia-smi -q -d PERFORMANCE), a power limit or another tenant; "
        "keep gangs off the node meanwhile"
    )


def _network(group: Facts | None, nodes: Sequence[Facts]) -> Iterator[Finding]:
    if group is None:
        return
    backend = group["backend"]
    if "problem" in group:
        fix = (
            "let all ports between the nodes through, and name the interface in NCCL_SOCKET_IFNAME "
            "or GLOO_SOCKET_IFNAME"
        )
        yield Finding("all-reduce", "error", f"over {backend}: {group['problem']}", fix)
        return
    text = f"{_gb(group['bytes_per_s'])} over {backend}, {len(group['links'])} nodes"
    yield Finding("all-reduce", "ok", text)
    yield from _slow_links(group["links"], {node["node_id"]: _name(node) for node in nodes}.get)


def _slow_links(links: Sequence[Facts], name: Callable[[str], str | None]) -> Iterator[Finding]:
    """A node both of whose links are slow is the slow one; else the link itself is."""
    # One slow node slows two links: with three nodes that is most of them.
    middle = sorted(link["bytes_per_s"] for link in links)[-max(1, len(links) // 2)]
    slow = [link for link in links if link["bytes_per_s"] < _SLOW_LINK_SHARE * middle]
    ends = [node for link in slow for node in (link["from"], link["to"])]
    guilty = {node for node in ends if ends.count(node) > 1}
    fix = "look at its network card, cable and switch port; keep gangs off it meanwhile"
    for node in sorted(guilty):
        worst = min(link["bytes_per_s"] for link in slow if node in (link["from"], link["to"]))
        text = f"{name(node)}: {_gb(worst)} both ways, {_gb(middle)} usual"
        yield Finding("slow node", "warning", text, fix)
    for link in slow:
        if not guilty & {link["from"], link["to"]}:
            text = f"{name(link['from'])} to {name(link['to'])}: {_gb(link['bytes_per_s'])}"
            yield Finding("slow link", "warning", f"{text}, {_gb(middle)} usual", fix)


def _tflops(flops_per_s: float) -> str:
    return f"{flops_per_s / 1e12:.3g} TFLOP/s"


def _gb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.3g} GB/s"
