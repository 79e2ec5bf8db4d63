"""One save: every rank writes its own shard, rank 0 commits all of them or none.

Steps of the protocol, in this order on every rank:
1. rank 0 draws a token and makes the folder `step-N.writing-TOKEN`;
2. every rank writes and syncs its shard there, and reports its file and pieces, or its failure;
3. rank 0 checks that the pieces tile every tensor, writes the manifest, syncs, and renames the
   folder to `step-N`: the one act that makes it a checkpoint;
4. rank 0's verdict reaches every rank, so that all of them raise or none does;
5. rank 0 removes what is older than the `keep` newest, and what saves that never ended left.

Behind an address, where nothing can be renamed, the folder is called `step-N.TOKEN` from its
beginning, and the manifest, which appears there whole or not at all, is what makes it a checkpoint.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Sequence
from pathlib import Path

from rayline.checkpoint.exchange import Exchange
from rayline.checkpoint.finding import check_complete, check_sizes
from rayline.checkpoint.folder import (
    Damaged,
    candidates,
    discard,
    final_folder,
    leftovers,
    load_manifest,
    replaced_name,
    shard_name,
    step_name,
    step_of,
    write_manifest,
    writing_folder,
)
from rayline.checkpoint.header import CheckpointHeader
from rayline.checkpoint.layout import Rectangle
from rayline.checkpoint.location import (
    STORAGE_FAULTS,
    Location,
    make_folder,
    sync_folder,
)
from rayline.checkpoint.shard import storable, write_shard
from rayline.checkpoint.throttle import Throttle
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointManifest, ShardFile, TensorPiece

log = logging.getLogger(__name__)


def save(
    root: Location,
    header: CheckpointHeader,
    pieces: Sequence[Piece],
    ranks: Exchange,
    keep: int,
    bytes_per_s: float | None = None,
) -> Location:
    """Write a checkpoint below `root` and return its folder, once it is on storage.

    Collective: every rank calls it with the same header and its own pieces; only owned pieces are
    written, by each rank at `bytes_per_s` at most. `root` lies on storage that all ranks share and
    is made if missing. Afterwards the `keep` newest usable checkpoints stand, this one among them.
    Raises CheckpointError on every rank when any rank failed; nothing is committed then and older
    checkpoints stay.
    """
    writing = writing_folder(root, header.step, _begin(root, header.step, ranks))
    reports = ranks.gather(write_own(writing, pieces, ranks.rank, bytes_per_s))
    verdict = "" if reports is None else commit(root, writing, header, reports, keep)
    if verdict := ranks.broadcast(verdict):
        raise _failed(root, header.step, verdict)
    return final_folder(writing)


def commit(
    root: Location,
    writing: Location,
    header: CheckpointHeader,
    reports: Sequence[str],
    keep: int,
) -> str:
    """Make the folder `writing`, which every rank has written to, a checkpoint, and retire what
    is older than the `keep` newest. One process calls it, with the report of every rank's
    `write_own`. Returns why it could not be, empty where it is one; the folder is gone then."""
    try:
        write_manifest(writing, _manifest(header, writing, reports))
        if isinstance(writing, Path) and isinstance(root, Path):
            _rename(root, writing, header.step)
    except (*STORAGE_FAULTS, Damaged) as wrong:
        discard(writing)
        return _reason(wrong)
    try:
        _retire(root, final_folder(writing), keep)
    except STORAGE_FAULTS as wrong:
        log.warning("older checkpoints than step %d stay: %s", header.step, _reason(wrong))
    return ""


def _failed(root: Location, step: int, reason: str) -> CheckpointError:
    return CheckpointError(
        str(root / step_name(step)),
        f"not saved: {reason}",
        fix="make room or mend the storage, then resume: older checkpoints are as they were",
    )


def _reason(wrong: Exception) -> str:
    """In one line."""
    return f"{wrong.subject}: {wrong.problem}" if isinstance(wrong, CheckpointError) else str(wrong)


def _begin(root: Location, step: int, ranks: Exchange) -> str:
    """The token of this save, the same on every rank, its folder made by rank 0."""
    answer = ""
    if ranks.rank == 0:
        token = secrets.token_hex(4)
        try:
            make_folder(writing_folder(root, step, token))
            answer = f"ok {token}"
        except OSError as wrong:
            answer = f"failed {wrong}"
    word, _, content = ranks.broadcast(answer).partition(" ")
    if word == "failed":
        raise _failed(root, step, content)
    return content


def write_own(
    writing: Location, pieces: Sequence[Piece], rank: int, bytes_per_s: float | None = None
) -> str:
    """Write the pieces that a rank owns as its shard, at `bytes_per_s` at most; the report, as
    JSON, says what was written or what went wrong."""
    owned = [piece for piece in pieces if piece.owner and piece.data.numel()]
    records = [_record(piece, rank) for piece in owned]
    try:
        _check_storable(owned, records)
        file = None
        if owned:
            # Rank 0 made the folder. Where it is missing here, the storage is not shared, and
            # making it would hide that: the shard would lie on this node's own disk.
            keys = [record.key for record in records]
            tensors = [piece.data for piece in owned]
            file = write_shard(
                writing / shard_name(rank),
                list(zip(keys, tensors, strict=True)),
                Throttle(bytes_per_s),
            ).model_dump()
    except FileNotFoundError:
        return json.dumps(
            {
                "fault": f"rank {rank} does not see the folder {writing.name} that rank 0 made: "
                "output_dir, or checkpoint.directory, must lie on storage that all nodes share"
            }
        )
    except (*STORAGE_FAULTS, Damaged) as wrong:
        return json.dumps({"fault": f"rank {rank}: {_reason(wrong)}"})
    return json.dumps({"file": file, "pieces": [record.model_dump() for record in records]})


def _record(piece: Piece, rank: int) -> TensorPiece:
    rectangle = Rectangle(tuple(piece.offset), tuple(piece.data.shape))
    return TensorPiece(
        tensor=piece.tensor,
        shape=list(piece.shape),
        offset=list(rectangle.offset),
        extent=list(rectangle.extent),
        file=shard_name(rank),
        key=f"{piece.tensor}{rectangle}",
    )


def _check_storable(pieces: Sequence[Piece], records: Sequence[TensorPiece]) -> None:
    for piece in pieces:
        if not storable(piece.data.dtype):
            raise Damaged(f"{piece.tensor}: element type {piece.data.dtype} cannot be stored")
    if len({record.key for record in records}) != len(records):
        keys = [record.key for record in records]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Damaged(f"{twice}: this rank owns the same rectangle twice")


def _manifest(
    header: CheckpointHeader, writing: Location, reports: Sequence[str]
) -> CheckpointManifest:
    """Rank 0: all reports as one manifest, checked for completeness. Raises Damaged."""
    answers = [json.loads(report) for report in reports]
    if faults := [answer["fault"] for answer in answers if "fault" in answer]:
        raise Damaged("; ".join(faults))
    for name, number in header.scalars.items():
        if not math.isfinite(number):
            raise Damaged(f"scalar {name} is {number}")
    manifest = CheckpointManifest(
        step=header.step,
        samples_consumed=header.samples_consumed,
        plan=header.plan,
        engine=header.engine,
        spec_fingerprint=header.spec_fingerprint,
        model_fingerprint=header.model_fingerprint,
        files=[ShardFile(**answer["file"]) for answer in answers if answer["file"]],
        pieces=[TensorPiece(**piece) for answer in answers for piece in answer["pieces"]],
        scalars=header.scalars,
    )
    check_complete(manifest)
    check_sizes(writing, manifest)
    return manifest


def _rename(root: Path, writing: Path, step: int) -> None:
    """Rank 0: the folder's final name. An older folder of the same step gives way to it."""
    final = root / step_name(step)
    if final.exists():
        aside = root / replaced_name(step)
        if aside.exists():
            discard(aside)
        final.rename(aside)
    writing.rename(final)
    sync_folder(root)


def _retire(root: Location, saved: Location, keep: int) -> None:
    """Rank 0: remove leftovers, and every folder older than the `keep` newest usable checkpoints.

    Usable means an authentic manifest and files of the right lengths; hashing gigabytes at every
    save would cost more than it tells. The folder just saved was hashed as it was written and
    always stays, so at least one checkpoint whose bytes are known to be right does. Manifests go
    first: what is half removed is no checkpoint any more.
    """
    for folder in leftovers(root, step_of(saved)):
        discard(folder)
    kept = 1
    for folder in candidates(root):
        older = step_of(saved) - step_of(folder)
        if folder.name == saved.name:
            continue
        # Behind an address an earlier save of the same step stands beside this one.
        if older == 0 or (older > 0 and kept >= keep):
            discard(folder)
        elif _usable(folder):
            kept += 1


def _usable(folder: Location) -> bool:
    try:
        check_sizes(folder, load_manifest(folder))
    except Damaged:
        return False
    return True
