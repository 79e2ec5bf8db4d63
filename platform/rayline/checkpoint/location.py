"""Where checkpoints lie: in a folder that all nodes see, or behind an address that fsspec knows.

Everything that differs between the two stands here and in `remote`; what is written when, and what
counts as a checkpoint, stands in `folder` and `writing`, once for both.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

from rayline.checkpoint.remote import Remote
from rayline.errors import CheckpointError

Location = Path | Remote

STORAGE_FAULTS = (OSError, CheckpointError)
"""What the functions here raise where storage does not do what it is asked."""


def located(directory: str) -> Location:
    """The folder that a spec names by path or by address."""
    if directory.startswith("file://"):
        return Path(directory.removeprefix("file://"))
    return Remote(directory.rstrip("/")) if "://" in directory else Path(directory)


def entries(folder: Location) -> list[Location]:
    """What lies directly in a folder; nothing where there is none."""
    if isinstance(folder, Remote):
        return [*folder.entries()]
    return [*folder.iterdir()] if folder.is_dir() else []


def is_folder(folder: Location) -> bool:
    """Whether a folder is there; a link to one is none."""
    if isinstance(folder, Remote):
        return bool(folder.entries())
    return folder.is_dir() and not folder.is_symlink()


def size_bytes(file: Location) -> int:
    """Length of a regular file; a link, a device or nothing at all raises OSError."""
    if isinstance(file, Remote):
        return file.size_bytes()
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return status.st_size


def read_all(file: Location) -> bytes:
    """A whole small file."""
    return file.read_all() if isinstance(file, Remote) else file.read_bytes()


def read_range(file: Location, begin: int, end: int) -> memoryview:
    """The bytes begin <= i < end of a file; of a local one, only pages that are looked at are
    read. Writing to them leaves the file as it is. Raises OSError where the file is shorter."""
    if isinstance(file, Remote):
        content = memoryview(bytearray(file.read(begin, end)))
    else:
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        content = memoryview(mapped)[begin:end]
    if len(content) != end - begin:
        raise OSError(errno.EIO, f"ends before byte {end}", str(file))
    return content


def to_read(file: Location) -> AbstractContextManager[BufferedIOBase]:
    """A file, to be read from its beginning."""
    return file.opened() if isinstance(file, Remote) else file.open("rb")


@contextmanager
def to_write(file: Location) -> Iterator[BufferedIOBase]:
    """A new file, on storage once this is left without an error."""
    if isinstance(file, Remote):
        with file.created() as remote:
            yield remote
    else:
        with file.open("xb") as local:
            yield local
            local.flush()
            os.fsync(local.fileno())


def overwrite(file: Location, content: bytes) -> None:
    """Put a small file in the place of what was there, at once."""
    fresh = file
    if not isinstance(file, Remote):
        fresh = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    with to_write(fresh) as opened:
        opened.write(content)
    if isinstance(fresh, Path):
        fresh.rename(str(file))


def make_folder(folder: Location) -> None:
    """Make a folder and those above it. Behind an address there is nothing to make: a file's name
    is all that its folder needs."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Location) -> None:
    """Make the folder's entries (new files, renames) outlive a power cut. Behind an address they do
    as soon as they can be seen."""
    if isinstance(folder, Path):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_file(file: Location) -> None:
    """Remove a file, where there is one."""
    if isinstance(file, Remote):
        file.remove_file()
    else:
        file.unlink(missing_ok=True)


def remove_folder(folder: Location, first: str) -> None:
    """Remove a folder, the file `first` before all others. Never raises: what is left is taken for
    what it is, and removed another time."""
    with suppress(*STORAGE_FAULTS):
        remove_file(folder / first)
        if isinstance(folder, Remote):
            folder.remove_folder()
        else:
            shutil.rmtree(folder, ignore_errors=True)
