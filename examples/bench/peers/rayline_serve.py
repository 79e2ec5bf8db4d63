"""rayline on one address until it is ended: a key is asked for, its quota counted, the ledger kept.

    python rayline_serve.py SPEC.yaml KEY_FILE           # the key is written to KEY_FILE

The quota is one that this load does not reach; it is counted all the same, for the key and for its
team.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import ray
from ray import serve

from rayline.sdk import Client
from rayline.serving import deploy
from rayline.spec import KeySpec, Limits, ServeSpec

CPUS = 8
"""As ray.serve.llm beside it has."""
LIMITS = Limits(requests_per_min=10**6, tokens_per_min=10**9, budget_tokens=10**12)


def main() -> None:
    """Serve until SIGTERM."""
    spec, key_file = ServeSpec.load(sys.argv[1]), Path(sys.argv[2])
    access = Client(store=spec.gateway.store)
    access.limit_team("bench", LIMITS)
    issued = access.create_key(KeySpec(name="bench", team="bench", limits=LIMITS))
    key_file.write_text(issued.secret)
    ray.init(address="local", num_cpus=CPUS, log_to_driver=False)
    # Ray has put a handler of its own there, which ends the process as it stands.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        deploy(spec)
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
