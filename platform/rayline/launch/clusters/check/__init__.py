"""What is wrong in a cluster file, and how to mend it: in what `ray up` reads and in what KubeRay
reads, rendered or written by hand.

Ray's own validator looks at the form of a file and lets through what costs money or never starts:
counts that disagree, images that move, keys that nothing reads, a nightly build by default. These
checks look at the meaning. They are pure but for asking whether a mounted path exists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from rayline.errors import SpecError
from rayline.launch.clusters.check.commands import (
    image_flaws,
    mount_flaws,
    setup_flaws,
    start_flaws,
)
from rayline.launch.clusters.check.flaw import Flaw, Tree, mapping
from rayline.launch.clusters.check.launcher import (
    local_flaws,
    provider_flaws,
    size_flaws,
    top_flaws,
)
from rayline.launch.clusters.check.manifest import (
    INNER,
    cluster_flaws,
    kind_flaws,
    queue_flaws,
    service_flaws,
)
from rayline.launch.clusters.check.nodes import node_type_flaws
from rayline.launch.clusters.check.pods import pod_flaws
from rayline.spec.document import read_yaml

__all__ = ["Flaw", "check", "check_file"]


def check_file(path: Path, root: Path) -> list[Flaw]:
    """The flaws of a `ray up` file or a KubeRay manifest, in the file's order; what it mounts is
    looked for below `root`. Raises SpecError where the file cannot be read, or is neither."""
    _refuse_several(path)
    tree = read_yaml(path)
    if "apiVersion" not in tree and not {"provider", "cluster_name"} & set(tree):
        raise SpecError(
            str(path),
            "neither a file for `ray up` nor a KubeRay manifest",
            allowed="keys cluster_name and provider, or apiVersion and kind",
            fix="give such a file",
        )
    return check(tree, lambda local: (root / Path(local).expanduser()).exists())


def check(tree: Tree, exists: Callable[[str], bool] = lambda _: True) -> list[Flaw]:
    """The flaws of what such a file holds."""
    if "apiVersion" in tree:
        return _manifest(tree)
    return [
        *top_flaws(tree),
        *provider_flaws(tree),
        *size_flaws(tree),
        *local_flaws(tree),
        *node_type_flaws(tree),
        *image_flaws(tree),
        *setup_flaws(tree),
        *start_flaws(tree),
        *mount_flaws(tree, exists),
    ]


def _manifest(tree: Tree) -> list[Flaw]:
    spec = mapping(tree.get("spec"))
    kind = str(tree.get("kind"))
    inner = INNER.get(kind, "")
    cluster = mapping(spec.get(inner)) if inner else spec
    field = f"spec.{inner}" if inner else "spec"
    found = list(kind_flaws(tree))
    if cluster and kind in INNER:
        found += cluster_flaws(field, cluster)
        found += pod_flaws(field, cluster)
    return [*found, *queue_flaws(tree, cluster), *service_flaws(tree, cluster)]


def _refuse_several(path: Path) -> None:
    """One file, one thing: a second document would be passed over without a word."""
    try:
        documents = list(yaml.compose_all(path.read_text(encoding="utf-8"), yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # read_yaml says what is wrong
    if len([each for each in documents if each is not None]) > 1:
        raise SpecError(
            str(path),
            "holds several documents",
            value=len(documents),
            allowed="one",
            fix="split it at its lines of ---",
        )
