"""Machines to run on, from a cluster spec: what they cost, their files, up and down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.spec import ClusterSpec

if TYPE_CHECKING:
    from rayline.launch.clusters.check import Flaw
    from rayline.launch.clusters.lifecycle import Reached
    from rayline.launch.clusters.made_up_cluster import MadeUpStatus
    from rayline.launch.clusters.pricing import ClusterPlan


def _silent(line: str) -> None:
    """Nobody listens to what a launcher says."""


class Clusters:
    """Plans clusters, brings them up and ends them; `client.cluster` is one. What launchers say on
    the way goes line by line to `say`."""

    def plan(self, spec: ClusterSpec) -> ClusterPlan:
        """Nodes, GPUs and the price an hour; nothing is rented.

        >>> planned = client.cluster.plan(ClusterSpec.load("cluster/specs/aws.yaml"))
        >>> planned.gpus
        (0, 16)
        """
        from rayline.launch.clusters.pricing import plan_cluster

        return plan_cluster(spec)

    def render(self, spec: ClusterSpec, file: str | Path, source: str | Path) -> str:
        """What `ray up` or kubectl reads; `file` is where it is to lie and `source` the spec's
        file, both of which its comments name.

        >>> spec = ClusterSpec.load("cluster/specs/aws.yaml")
        >>> "available_node_types:" in client.cluster.render(spec, "aws.yaml", "spec.yaml")
        True
        """
        from rayline.launch.clusters import render

        return render(spec, str(file), str(source))

    def check(self, file: str | Path, root: str | Path = ".") -> list[Flaw]:
        """What is wrong in a file for `ray up`, a KubeRay manifest or a cluster spec; paths that it
        mounts are looked for below `root`. Raises SpecError where it cannot be read.

        >>> client.cluster.check("cluster/specs/fake.yaml")
        []
        """
        from rayline.launch.clusters.check import check_file
        from rayline.launch.clusters.lifecycle import flaws_of
        from rayline.spec.document import read_yaml

        path, home = Path(file), Path(root).absolute()
        if isinstance(read_yaml(path).get("provider"), str):
            return flaws_of(ClusterSpec.load(path), home)
        return check_file(path, home)

    def up(self, spec: ClusterSpec, *, say: Callable[[str], None] = _silent) -> Reached:
        """Bring a cluster up, or one that is up to what the spec says now. Raises SpecError where
        it cannot work, PlacementError where the launcher fails.

        >>> spec = ClusterSpec.load("cluster/specs/fake.yaml", ["token=false"])
        >>> reached = client.cluster.up(spec)
        >>> reached.dashboard
        'http://127.0.0.1:...'
        """
        from rayline.launch.clusters.lifecycle import refuse_flaws, up
        from rayline.launch.clusters.state import folder_of

        refuse_flaws(spec, Path.cwd())
        return up(spec, folder_of(spec.name), say)

    def status(
        self, spec: ClusterSpec, *, say: Callable[[str], None] = _silent
    ) -> MadeUpStatus | None:
        """How a cluster is doing: a value where it runs here, else what its provider's program
        says. Raises PlacementError where it is not up.

        >>> client.cluster.status(spec).running
        True
        """
        from rayline.launch.clusters.lifecycle import status
        from rayline.launch.clusters.state import folder_of

        return status(spec, folder_of(spec.name), say)

    def down(self, spec: ClusterSpec, *, say: Callable[[str], None] = _silent) -> int | None:
        """End a cluster: how many processes of this machine ended; None where others' machines were
        given back.

        >>> client.cluster.down(spec) > 0
        True
        """
        from rayline.launch.clusters.lifecycle import down
        from rayline.launch.clusters.state import folder_of

        return down(spec, folder_of(spec.name), say)

    def known(self) -> dict[str, Path]:
        """The clusters that were brought up from this folder, and the file of each.

        >>> client.cluster.known()
        {}
        """
        from rayline.launch.clusters.state import remembered

        return {folder.path.name: folder.file for folder in remembered()}
