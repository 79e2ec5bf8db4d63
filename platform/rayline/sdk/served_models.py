"""Models that are served, or could be: what a deployment would take, and files of requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import needing
from rayline.spec import ServeSpec

if TYPE_CHECKING:
    from rayline.planner import DeploymentPlan
    from rayline.serving.batch import BatchSummary

DEFAULT_URL = "http://127.0.0.1:8000/v1"
"""Where `rayline deploy` serves unless the spec says otherwise."""


class ServedModels:
    """Plans deployments, and answers batches on the Ray cluster at `address` (None starts one in
    this process)."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def plan_deployment(self, deployment: ServeSpec) -> DeploymentPlan:
        """What `deployment` would take, without starting anything, on nodes with as much memory as
        this machine. Raises SpecError where it cannot work.

        Of the models only configs are read, and the sizes of weights that are on this machine.
        """
        from rayline.planner import plan_deployment, read_served_model

        with needing("serve"):
            from rayline.tracking import resolve_model
        refs = [deployment.model]
        if deployment.engine.speculation is not None and deployment.engine.speculation.model:
            refs.append(deployment.engine.speculation.model)
        model, *draft = [
            read_served_model(resolve_model(ref, deployment.tracking, need_weights=False))
            for ref in refs
        ]
        host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return plan_deployment(
            deployment, model, host_bytes=host_bytes, draft=draft[0] if draft else None
        )

    def batch(
        self,
        requests: str | Path,
        answers: str | Path,
        *,
        url: str | None = None,
        key: str | None = None,
        concurrency: int = 16,
        deployment: ServeSpec | None = None,
        retry_failed: bool = False,
        observe: Callable[[int, int], None] = lambda done, total: None,
    ) -> BatchSummary:
        """Answer a file of requests in OpenAI's batch format: by the endpoint `url`, or by engines
        that are started for it, as `deployment` says. Interrupted, the same call goes on.

        client.batch("in.jsonl", "out.jsonl", url="http://127.0.0.1:8000/v1")
        """
        from rayline.serving.batch import EndpointSettings, run_batch

        by: EndpointSettings | ServeSpec
        if deployment is None:
            by = EndpointSettings(url or DEFAULT_URL, key, concurrency)
        else:
            with needing("serve"):
                from rayline.actors import join_ray

            by = deployment
            join_ray(self.address)
        paths = Path(requests), Path(answers)
        return run_batch(*paths, by, retry_failed=retry_failed, observe=observe)
