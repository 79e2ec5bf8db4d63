"""rayline on one address until it is ended, with a key, a quota and the ledger on.

python rayline_serve.py SPEC.yaml KEY_FILE           # the key is written to KEY_FILE
"""

from __future__ import annotations

import signal
import sys

import ray
from ray import serve

from rayline.serving import deploy
from rayline.spec import ServeSpec

CPUS = 8
"""As ray.serve.llm beside it has."""


def main() -> None:
    """Serve until SIGTERM."""
    spec = ServeSpec.load(sys.argv[1])
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
