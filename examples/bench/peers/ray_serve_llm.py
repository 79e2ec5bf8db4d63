"""ray.serve.llm as it comes, on one address until it is ended.

    python ray_serve_llm.py '{"model": ..., "folder": ..., "port": ..., "engine": {...}, ...}'

Only what it can't do without on a CPU is set: that there is no GPU. Its engine gets the arguments
and the environment that the other contenders' engines have.
"""

from __future__ import annotations

import json
import signal
import sys

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

CPUS = 8
"""Room for what Ray wants to reserve; it computes on what there is."""


def main() -> None:
    """Serve until SIGTERM."""
    told = json.loads(sys.argv[1])
    ray.init(address="local", num_cpus=CPUS, log_to_driver=False)
    # Ray has put a handler of its own there, which ends the process as it stands.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": told["port"]})
        config = LLMConfig(
            model_loading_config={"model_id": told["model"], "model_source": told["folder"]},
            accelerator_config={"kind": "cpu"},
            engine_kwargs=told["engine"],
            runtime_env={"env_vars": told["environment"]},
        )
        serve.run(build_openai_app({"llm_configs": [config]}))
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
