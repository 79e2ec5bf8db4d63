"""Checkpoints: hashed safetensors shards, committed by a manifest that is written last.

    <root>/step-00000006/rank-00003.safetensors   the rectangles that rank 3 owns
    <root>/step-00000006/manifest.json            rayline.spec.CheckpointManifest
    <root>/step-00000006/manifest.sha256          its hash, as `sha256sum -c` reads it

A save fills a folder under a temporary name and renames it once everything in it is on storage, so
a folder under a final name was complete when it appeared. Behind an address, where nothing can be
renamed, the folder is called step-00000006.TOKEN, and is a checkpoint once its manifest is there.
Finding verifies every hash, falls back
to the step before when a file is damaged and says why. Reading intersects rectangles, so a
checkpoint made under one plan loads under any other. Nothing here is ever unpickled.
"""

from rayline.checkpoint.damage import damage_newest
from rayline.checkpoint.exchange import Alone, Exchange, ProcessGroup, exchange
from rayline.checkpoint.fence import check_access, claim, holds
from rayline.checkpoint.finding import Found, newest_intact
from rayline.checkpoint.folder import discard, list_steps, read_manifest, writing_folder
from rayline.checkpoint.header import CheckpointHeader, model_fingerprint
from rayline.checkpoint.location import Location, located, make_folder
from rayline.checkpoint.reading import read_into
from rayline.checkpoint.snapshot import (
    OUTBOX,
    Snapshot,
    SnapshotArea,
    clear,
    generation_bytes,
    is_sent,
    mark_at,
    marks,
    newest,
    note_sent,
    put_generation,
    snapshot_at,
)
from rayline.checkpoint.writing import commit, save, write_own

__all__ = [
    "OUTBOX",
    "Alone",
    "CheckpointHeader",
    "Exchange",
    "Found",
    "Location",
    "ProcessGroup",
    "Snapshot",
    "SnapshotArea",
    "check_access",
    "claim",
    "clear",
    "commit",
    "damage_newest",
    "discard",
    "exchange",
    "generation_bytes",
    "holds",
    "is_sent",
    "list_steps",
    "located",
    "make_folder",
    "mark_at",
    "marks",
    "model_fingerprint",
    "newest",
    "newest_intact",
    "note_sent",
    "put_generation",
    "read_into",
    "read_manifest",
    "save",
    "snapshot_at",
    "write_own",
    "writing_folder",
]
