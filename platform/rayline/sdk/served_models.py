"""Models that a cluster serves, as their operator sees them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import needing
from rayline.sdk.asking import DEFAULT_URL
from rayline.sdk.joining import Joining
from rayline.spec import AdapterSpec, ServeSpec

if TYPE_CHECKING:
    from rayline.planner import DeploymentPlan
    from rayline.serving import Endpoint, ModelStatus
    from rayline.serving.batch import BatchSummary


class ServedModels(Joining):
    """Deploys models and says which version gets what."""

    def deploy(self, deployment: ServeSpec) -> Endpoint:
        """Serve a model, or its next version, and return once that has generated a token.

        Raises SpecError, PlacementError, ServingError.

        >>> endpoint = client.deploy(deployment)
        >>> endpoint.url, endpoint.version
        ('http://127.0.0.1:.../v1', 1)
        """
        with needing("serve"):
            from rayline.serving import deploy
            from rayline.tracking import resolve_model

        if deployment.rehearsal is None:
            resolve_model(deployment.model, deployment.tracking)
        self._join()
        return deploy(deployment)

    def undeploy(self, name: str) -> None:
        """Take a deployment away; its open streams may finish first. Raises ServingError where
        there is none.

        >>> client.undeploy("chat")
        """
        with needing("serve"):
            from rayline.serving import undeploy

        self._join()
        undeploy(name)

    def deployments(self) -> list[str]:
        """Names of the models that the cluster serves. Raises ServingError.

        >>> client.deployments()
        ['chat']
        """
        with needing("serve"):
            from rayline.serving import served_names

        self._join()
        return served_names()

    def served(self, name: str) -> ModelStatus:
        """How a served model is doing: its versions, who gets what, why it has as many replicas.
        Raises ServingError, as all below.

        >>> for version in client.served("chat").versions:
        ...     print(version.number, version.state, version.percent)
        1 serving 100.0
        """
        with needing("serve"):
            from rayline.serving import status

        self._join()
        return status(name)

    def canary(self, name: str, percent: float) -> None:
        """Give the version that takes over this share of the requests, 0 to 100, and keep it.

        >>> client.deploy(next_version).version
        2
        >>> client.canary("chat", 25)
        >>> client.served("chat").goal == 25
        True
        """
        with needing("serve"):
            from rayline.serving import canary

        self._join()
        canary(name, percent)

    def promote(self, name: str) -> None:
        """Give everything to the version that takes over.

        >>> client.promote("chat")
        """
        with needing("serve"):
            from rayline.serving import promote

        self._join()
        promote(name)

    def rollback(self, name: str, *, to: int | None = None) -> None:
        """Go back to the version before, or to any earlier one by its number.

        >>> client.rollback("chat", to=1)
        """
        with needing("serve"):
            from rayline.serving import roll_back

        self._join()
        roll_back(name, to=to)

    def publish(self, name: str, adapter: AdapterSpec) -> None:
        """Answer to an adapter's name too, while the model serves, and return once every replica
        does.

        >>> source = AdapterSource(directory="adapters/legal")
        >>> client.publish("chat", AdapterSpec(name="legal", source=source))
        """
        with needing("serve"):
            from rayline.serving import publish

        self._join()
        publish(name, adapter)

    def withdraw(self, name: str, adapter: str) -> None:
        """Answer no new request to an adapter's name.

        >>> client.withdraw("chat", "legal")
        """
        with needing("serve"):
            from rayline.serving import withdraw

        self._join()
        withdraw(name, adapter)

    def plan_deployment(self, deployment: ServeSpec) -> DeploymentPlan:
        """What `deployment` would take, without starting anything, on nodes with as much memory as
        this machine. Raises SpecError where it cannot work.

        Of the models only configs are read, and the sizes of weights that are on this machine.

        >>> client.plan_deployment(deployment).replica.fits
        True
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

        >>> client.batch("in.jsonl", "out.jsonl", url=url).answered
        1
        """
        from rayline.serving.batch import EndpointSettings, run_batch

        by: EndpointSettings | ServeSpec
        if deployment is None:
            by = EndpointSettings(url or DEFAULT_URL, key, concurrency)
        else:
            by = deployment
            self._join()
        paths = Path(requests), Path(answers)
        return run_batch(*paths, by, retry_failed=retry_failed, observe=observe)
