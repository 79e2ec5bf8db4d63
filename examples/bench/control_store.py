"""Ray's control store killed and restarted while a gang trains: which steps are lost?

    python examples/bench/control_store.py                # gone for 30 s

The store keeps its tables on disk (RAY_gcs_storage=rocksdb) and comes back at the same address, as
on a head that restarts it. Workers go on meanwhile: their collectives, snapshots and checkpoints do
not ask it. The driver hears of the steps once it is back. A store that is away for longer than
RAY_gcs_rpc_server_reconnect_timeout_s (60 s) ends every process of the cluster; that is Ray's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quick import quick_job
from ranks import leave_result

from rayline.spec import StepReport

FIRST_STEP = 20
AFTER_S = 20.0


def measure(away_s: float, folder: Path) -> dict[str, Any]:
    """One run over a store that goes away at FIRST_STEP and is watched for AFTER_S once it is
    back."""
    import ray
    from ray.cluster_utils import Cluster

    from rayline.actors.driver import train

    job = quick_job(
        folder,
        {
            "steps": 100_000,
            "checkpoint.every_steps": 50,
            "recovery.snapshot_every_steps": 1,
            "recovery.max_restarts": 3,
        },
    )
    cluster = Cluster()
    head = cluster.add_node(num_cpus=2, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False)
    heard: list[tuple[int, float, float]] = []
    moments: dict[str, float] = {}
    stop, over = threading.Event(), threading.Event()

    def restart() -> None:
        while len(heard) < FIRST_STEP:
            time.sleep(0.2)
        moments["away"] = time.time()
        head.kill_gcs_server()
        time.sleep(away_s)
        head.start_gcs_server()
        moments["back"] = time.time()
        time.sleep(AFTER_S)
        stop.set()
        # The kernel ends the store with the thread that started it.
        over.wait()

    threading.Thread(target=restart, daemon=True).start()
    try:
        outcome = train(
            job,
            observers=[lambda report: heard.append(_heard(report))],
            stop=stop,
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
        over.set()
    return _figures(heard, moments, len(outcome.recoveries))


def _heard(report: StepReport) -> tuple[int, float, float]:
    return report.step, report.at_s, time.time()


def _figures(
    heard: list[tuple[int, float, float]], moments: dict[str, float], recoveries: int
) -> dict[str, Any]:
    """Of steps, each with when it was done and when the driver heard of it (Unix time)."""
    done = [step for step, at_s, _ in heard if moments["away"] < at_s < moments["back"]]
    first_s = min(told_s for _, _, told_s in heard if told_s > moments["back"])
    return {
        "steps": len(heard),
        "each_step_once": [step for step, _, _ in heard] == list(range(1, len(heard) + 1)),
        "steps_done_while_it_was_away": len(done),
        "recoveries": recoveries,
        "seconds_from_its_return_to_the_next_step_heard_of": first_s - moments["back"],
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--away-s", type=float, default=30.0)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as store, tempfile.TemporaryDirectory() as folder:
        os.environ.update({"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": store})
        found = measure(options.away_s, Path(folder))
    leave_result(
        __file__,
        __doc__,
        f"--away-s {options.away_s:g}",
        versions={name: version(name) for name in ("ray", "torch")},
        model="Llama, 0.7 M parameters; 16 x 128 tokens a step, data 2 on gloo",
        **found,
    )


if __name__ == "__main__":
    main()
