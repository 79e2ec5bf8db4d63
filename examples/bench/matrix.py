"""Which promises hold: `rayline chaos` on a cluster of simulated nodes, one fault of each kind.

    python examples/bench/matrix.py            # a table in Markdown, and the dated result

Four ranks (data 2 x tensor 2, gloo) stand on two of four nodes, of which two may be lost; the
driver stands on a head without CPUs. The losses and the weights at the end are compared with those
of an unbroken run, bit for bit. Node takes a node away, partition silences it for a minute: those
that are left take its place.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quick import quick_job
from ranks import leave_result

from rayline.spec import Fault, FaultKind, FaultPhase, JobSpec

SEED = 7
FAULTS: tuple[tuple[FaultKind, int, FaultPhase], ...] = (
    ("kill", 3, "forward"),
    ("kill", 1, "backward"),
    ("kill", 2, "collective"),
    ("kill", 0, "optimizer"),
    ("kill", 1, "snapshot"),
    ("kill", 0, "save"),
    ("raise", 1, "optimizer"),
    ("hang", 2, "forward"),
    ("stop", 3, "collective"),
    ("disk_full", 0, "data"),
    ("corrupt", 1, "backward"),
    ("node", 3, "backward"),
    ("partition", 2, "collective"),
)
EVERY_STEPS = 10
GAP_STEPS = 40


def faults() -> list[Fault]:
    """One after another, so far apart that a spare stands again; a save falls on a multiple of
    EVERY_STEPS."""
    return [
        Fault(kind=kind, rank=rank, step=(number + 1) * GAP_STEPS, phase=phase)
        for number, (kind, rank, phase) in enumerate(FAULTS)
    ]


def job_of(folder: Path) -> JobSpec:
    """The quickstart's model on four ranks of two nodes."""
    return quick_job(
        folder,
        {
            "steps": (len(FAULTS) + 1) * GAP_STEPS,
            "seed": SEED,
            "data.sequence_tokens": 64,
            "plan.tensor": 2,
            "checkpoint.every_steps": EVERY_STEPS,
            "recovery.snapshot_every_steps": 1,
            "recovery.spares": 1,
            "resources.cpus_per_worker": 1,
        },
    )


def measure() -> dict[str, Any]:
    """Both runs on a simulated cluster, and the table."""
    import ray
    from ray.cluster_utils import Cluster

    from rayline.actors.chaos import chaos
    from rayline.cli.chaos import chaos_document

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        for _ in range(4):
            cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        with tempfile.TemporaryDirectory() as folder:
            report = chaos(job_of(Path(folder)), faults())
    finally:
        ray.shutdown()
        cluster.shutdown()
    return chaos_document(report)


def markdown(found: dict[str, Any]) -> str:
    """The table as the README has it."""
    lines = ["| fault | promise | kept | seconds to the next step |", "| --- | --- | --- | --- |"]
    for one in found["faults"]:
        parts = ", ".join(f"{part} {took:.1f}" for part, took in one["parts_s"].items())
        kept = "yes" if one["kept"] else "no"
        seconds = f"{sum(one['parts_s'].values()):.1f} ({parts})"
        lines.append(f"| {one['fault']} | {one['promise']} | {kept} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the dated result file."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    found = measure()
    leave_result(
        __file__,
        __doc__,
        "",
        versions={name: version(name) for name in ("ray", "torch")},
        nodes="four simulated nodes of 2 CPUs and a head without, on one machine",
        model="Llama, 0.7 M parameters; 16 x 64 tokens a step, data 2 x tensor 2 on gloo",
        seed=SEED,
        **found,
    )
    print(markdown(found))


if __name__ == "__main__":
    main()
