"""What the records of runs tell, beyond one run: where a model came from, what two runs differ in,
and what still waits to be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import RaylineError, needing
from rayline.spec import GatewaySpec, TrackingSpec, UsageQuery

if TYPE_CHECKING:
    from rayline.tracking import FilledRun
    from rayline.tracking.comparing import RunDiff
    from rayline.tracking.lineage import Lineage, UsageFigures


class RunRecords:
    """Reads the store of `tracking`, and for usage the ledger of served models in `store`."""

    tracking: TrackingSpec
    store: str

    def lineage(self, of: str) -> Lineage:
        """Where a registered version or a run came from and what came of it: data, run, checkpoint,
        model, deployment, usage. `of` is name@alias, name/3 or a run's id. Raises SpecError.

        >>> found = client.lineage(client.runs(limit=1)[0].run_id)
        >>> {node.kind for node in found.nodes} >= {"data", "run"}
        True
        """
        with needing("train"):
            from rayline.tracking.lineage import lineage

        found = lineage(self.tracking, of)
        return found.with_usage(
            used
            for served in sorted({_served(node.address) for node in found.of_kind("deployment")})
            for used in self._used(served)
        )

    def diff(self, a: str, b: str) -> RunDiff:
        """What two runs differ in: spec, plan, environment and curves. Raises SpecError.

        >>> a, b = client.runs(limit=2)
        >>> client.diff(a.run_id, b.run_id).a.run_id == a.run_id
        True
        """
        with needing("train"):
            from rayline.tracking.comparing import diff_runs

        return diff_runs(self.tracking, a, b)

    def sync(
        self,
        *folders: str | Path,
        tracking: TrackingSpec | None = None,
        dry_run: bool = False,
    ) -> list[FilledRun]:
        """Send what jobs below these folders (here, without any) could not record while their
        tracking server was away; each to the store that it names, or to `tracking`. What a store
        does not take stays, with the reason.

        >>> client.sync("runs")
        []
        """
        with needing("train"):
            from rayline.tracking import fill_in, waiting_in

        return [
            filled
            for folder in folders or (Path(),)
            for place in waiting_in(Path(folder))
            for filled in fill_in(place, tracking=tracking, dry_run=dry_run)
        ]

    def _used(self, served: str) -> list[UsageFigures]:
        """Sums of each version of a served model; none where there is no ledger here."""
        from rayline.tracking.lineage import UsageFigures

        try:
            with needing("serve"):
                from rayline.serving.access.store import Store
                from rayline.serving.access.usage import SCHEMA, sum_usage
            store = Store(self.store or GatewaySpec().store)
            if not store.exists:
                return []
            store.ensure(SCHEMA)
            sums = sum_usage(store, UsageQuery(by="variant", model=served))
        except RaylineError:
            # A lineage without usage is whole otherwise: ledgers lie with whoever serves.
            return []
        return [
            UsageFigures(
                served, int(used.group), used.requests, used.prompt_tokens, used.completion_tokens
            )
            for used in sums
            if used.group.isdigit()
        ]


def _served(address: str) -> str:
    """The name that a deployment's record is kept under: its tag ends in NAME.v3."""
    from rayline.tracking.deployments import DEPLOYMENT_PREFIX

    return address.partition(DEPLOYMENT_PREFIX)[2].rpartition(".v")[0]
