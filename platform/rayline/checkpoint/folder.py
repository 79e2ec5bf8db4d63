"""Names inside a checkpoint's root, and the manifest file itself.

Every name that is read back is matched against a pattern before it becomes a path, so nothing that
a manifest says can point out of its folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re

from rayline.checkpoint.location import (
    Location,
    entries,
    is_folder,
    read_all,
    remove_folder,
    size_bytes,
    sync_folder,
    to_write,
)
from rayline.checkpoint.remote import Remote
from rayline.errors import CheckpointError, SpecError
from rayline.spec import FORMAT_VERSION, CheckpointManifest

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
MANIFEST_LIMIT_BYTES = 1 << 30
"""A manifest of a thousand ranks has some hundred MiB; a larger one is refused unread."""

_STEP = re.compile(r"step-(\d{8,12})(\.replaced|\.[0-9a-f]{8})?")
_TEMPORARY = re.compile(r"step-(\d{8,12})\.(writing-[0-9a-f]{8}|replaced)")
_SHARD = re.compile(r"rank-\d{5,7}\.safetensors")


class Damaged(Exception):
    """A checkpoint cannot be used; the text names the file and the reason."""


def step_name(step: int) -> str:
    """Folder of a step's checkpoint."""
    return f"step-{step:08d}"


def writing_folder(root: Location, step: int, token: str) -> Location:
    """What a save fills. The token is new for every save, so that a worker left over from a gang
    given up cannot write into the folder of the next. Behind an address, where nothing can be
    renamed, the folder keeps this name."""
    mark = token if isinstance(root, Remote) else f"writing-{token}"
    return root / f"{step_name(step)}.{mark}"


def final_folder(writing: Location) -> Location:
    """What the folder that a save of `writing_folder` fills is called once it is a checkpoint."""
    if isinstance(writing, Remote):
        return writing
    return writing.with_name(writing.name.partition(".")[0])


def replaced_name(step: int) -> str:
    """Where an older checkpoint of the same step stands while a new one takes its name. It counts
    as a checkpoint until then: a kill between the two renames loses nothing."""
    return f"{step_name(step)}.replaced"


def shard_name(rank: int) -> str:
    """File of a rank's tensors."""
    return f"rank-{rank:05d}.safetensors"


def candidates(root: Location) -> list[Location]:
    """Folders that claim to be checkpoints, newest step first. Missing root: none. Raises
    CheckpointError where the root cannot be read."""
    found = [(match, entry) for entry in _entries(root) if (match := _STEP.fullmatch(entry.name))]
    found.sort(key=lambda pair: (-int(pair[0][1]), pair[1].name))
    return [entry for _, entry in found if _claims_to_be_whole(entry)]


def _entries(root: Location) -> list[Location]:
    try:
        return entries(root)
    except OSError as wrong:
        raise CheckpointError(str(root), f"not readable: {wrong.strerror}") from None


def _claims_to_be_whole(folder: Location) -> bool:
    """A local folder has its name since it was whole; any other is whole once its manifest is
    there."""
    if not isinstance(folder, Remote):
        return True
    try:
        return bool(size_bytes(folder / MANIFEST))
    except OSError:
        return False


def list_steps(root: Location) -> list[int]:
    """Steps of which a folder stands below `root`, damaged ones included, ascending. Raises as
    `candidates`."""
    return sorted({step_of(folder) for folder in candidates(root)})


def step_of(folder: Location) -> int:
    """The step that a candidate's name says."""
    match = _STEP.fullmatch(folder.name)
    if match is None:
        raise Damaged(f"{folder.name}: not the name of a checkpoint's folder")
    return int(match[1])


def leftovers(root: Location, step: int) -> list[Location]:
    """Folders that saves of `step` and of steps before it, which never ended, left behind; a later
    one may be under way."""
    left = []
    for entry in _entries(root):
        temporary = _TEMPORARY.fullmatch(entry.name)
        named = temporary or _STEP.fullmatch(entry.name)
        if named and int(named[1]) <= step and (temporary or not _claims_to_be_whole(entry)):
            left.append(entry)
    return left


def discard(folder: Location) -> None:
    """Remove a folder that a save filled, its manifest first, so that what is half removed is no
    checkpoint. Never raises: what is left goes another time."""
    remove_folder(folder, MANIFEST)


def write_manifest(folder: Location, manifest: CheckpointManifest) -> None:
    """Bring the manifest and its hash to storage: hash first, manifest last. Raises OSError, or
    CheckpointError behind an address."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False).encode()
    digest = hashlib.sha256(text).hexdigest()
    _write(folder / MANIFEST_HASH, f"{digest}  {MANIFEST}\n".encode())
    _write(folder / MANIFEST, text)
    sync_folder(folder)


def _write(file: Location, content: bytes) -> None:
    with to_write(file) as opened:
        opened.write(content)


def read_manifest(folder: Location) -> CheckpointManifest:
    """The manifest of one checkpoint, authentic but with its shards unverified: for ranks that were
    told by rank 0 which folder `newest_intact` found. Raises CheckpointError."""
    try:
        return load_manifest(folder)
    except Damaged as wrong:
        raise CheckpointError(
            str(folder), str(wrong), fix="resume again: the newest intact checkpoint is searched"
        ) from None


def load_manifest(folder: Location) -> CheckpointManifest:
    """As `read_manifest`; raises Damaged."""
    if not is_folder(folder):
        raise Damaged(f"{folder.name}: not a folder")
    for name in (MANIFEST, MANIFEST_HASH):
        length = regular_size_bytes(folder / name)
        if length > MANIFEST_LIMIT_BYTES:
            raise Damaged(f"{name}: {length} bytes, above the limit {MANIFEST_LIMIT_BYTES}")
    try:
        text = read_all(folder / MANIFEST)
        noted = read_all(folder / MANIFEST_HASH)
    except OSError as wrong:
        raise Damaged(f"{MANIFEST}: not readable: {wrong.strerror}") from None
    if noted != f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode():
        raise Damaged(f"{MANIFEST}: its SHA-256 is not the one in {MANIFEST_HASH}")
    manifest = _parse(text)
    if manifest.step != step_of(folder):
        raise Damaged(f"{MANIFEST}: of step {manifest.step}, in the folder of {step_of(folder)}")
    return manifest


def _parse(text: bytes) -> CheckpointManifest:
    try:
        tree = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as wrong:
        raise Damaged(f"{MANIFEST}: not JSON of finite numbers: {wrong}") from None
    if not isinstance(tree, dict):
        raise Damaged(f"{MANIFEST}: no JSON object")
    if tree.get("format_version") != FORMAT_VERSION:
        raise Damaged(
            f"{MANIFEST}: format_version {tree.get('format_version')!r}, only {FORMAT_VERSION} "
            "can be read"
        )
    try:
        manifest = CheckpointManifest.parse(tree, origin=MANIFEST)
    except SpecError as wrong:
        raise Damaged(f"{MANIFEST}: {wrong.subject}: {wrong.problem}") from None
    _check_names(manifest)
    return manifest


def _refuse_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number here")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal} is beyond a 64-bit float")
    return number


def _check_names(manifest: CheckpointManifest) -> None:
    names = [file.name for file in manifest.files]
    for name in names:
        if not _SHARD.fullmatch(name):
            raise Damaged(f"{MANIFEST}: {name!r} is not the name of a shard")
    if len(set(names)) != len(names):
        raise Damaged(f"{MANIFEST}: names a file twice")
    for piece in manifest.pieces:
        if piece.file not in names:
            raise Damaged(f"{MANIFEST}: {piece.tensor} lies in {piece.file!r}, which is not listed")


def regular_size_bytes(file: Location) -> int:
    """Length of a regular file; a symlink, a device or nothing at all raises Damaged."""
    try:
        return size_bytes(file)
    except OSError as wrong:
        raise Damaged(f"{file.name}: {wrong.strerror}") from None
