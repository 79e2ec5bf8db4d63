"""Damage on purpose: a checkpoint's worst case, made to see that it is noticed."""

from __future__ import annotations

from rayline.checkpoint.folder import candidates, load_manifest
from rayline.checkpoint.location import Location, overwrite, read_all
from rayline.errors import CheckpointError
from rayline.spec import CheckpointManifest


def damage_newest(root: Location) -> CheckpointManifest:
    """Flip one bit in the middle of the first shard of the newest checkpoint: what a disk does that
    loses a bit, and what no length and no header shows. Returns its manifest. Raises
    CheckpointError where there is no checkpoint."""
    newest = next(iter(candidates(root)), None)
    if newest is None:
        raise CheckpointError(str(root), "holds no checkpoint that could be damaged")
    manifest = load_manifest(newest)
    shard = newest / manifest.files[0].name
    content = bytearray(read_all(shard))
    content[len(content) // 2] ^= 1
    overwrite(shard, bytes(content))
    return manifest
