"""Files behind an address that fsspec knows: a store of objects (s3://, gs://, az://), HDFS, ...

Such a store promises less than a disk: no rename, no exclusive creation, no folders but what their
files' names say. It promises that a file appears whole, once it was closed, to everyone at once.
Packages for fsspec raise errors of their own; here they become CheckpointErrors, but for a file
that is not there, which is FileNotFoundError as on a disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

from rayline.errors import CheckpointError, RaylineError

_BLOCK_BYTES = 32 << 20
"""Of one request. S3 takes 10,000 to a file: shards of up to 300 GiB."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One file or folder; nothing need be there. Named and joined like a path."""

    address: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.address}/{name}")

    def __str__(self) -> str:
        return self.address

    def entries(self) -> list[Remote]:
        """What lies directly in this folder, by name."""
        with suppress(FileNotFoundError), self._reached() as (system, path):
            found = system.ls(path, detail=False)
            return [self / name for name in sorted({_last_part(entry) for entry in found})]
        return []

    def size_bytes(self) -> int:
        """Length of this file. Raises FileNotFoundError where there is none."""
        with self._reached() as (system, path):
            told = system.info(path)
            if told["type"] != "file":
                raise FileNotFoundError
            return int(told["size"])

    def read(self, begin: int, end: int) -> bytes:
        """The bytes begin <= i < end of this file."""
        with self._reached() as (system, path):
            content: bytes = system.cat_file(path, start=begin, end=end)
            return content

    def read_all(self) -> bytes:
        """The whole file."""
        with self._reached() as (system, path):
            content: bytes = system.cat_file(path)
            return content

    @contextmanager
    def opened(self) -> Iterator[BufferedIOBase]:
        """The file, to be read from its beginning."""
        with self._reached() as (system, path), system.open(path, "rb", _BLOCK_BYTES) as file:
            yield file

    @contextmanager
    def created(self) -> Iterator[BufferedIOBase]:
        """The file, written anew; it takes the place of what was there once it is closed."""
        with self._reached() as (system, path), system.open(path, "wb", _BLOCK_BYTES) as file:
            yield file

    def remove_file(self) -> None:
        """Remove this file, where there is one."""
        with suppress(FileNotFoundError), self._reached() as (system, path):
            system.rm_file(path)

    def remove_folder(self) -> None:
        """Remove this folder with all that lies in it, where there is one."""
        with suppress(FileNotFoundError), self._reached() as (system, path):
            system.rm(system.find(path))
            system.invalidate_cache()
            if system.isdir(path):
                # Not a store of objects: folders stay when they are empty.
                system.rm(path, recursive=True)

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it, as they are now."""
        try:
            system, path = _file_system(self.address)
            # What was listed once may have changed by another process.
            system.invalidate_cache()
            yield system, path
        except FileNotFoundError:
            reason = os.strerror(errno.ENOENT)
            raise FileNotFoundError(errno.ENOENT, reason, self.address) from None
        except RaylineError:
            raise
        # Each package behind fsspec has errors of its own, of no common kind.
        except Exception as wrong:  # noqa: BLE001
            raise CheckpointError(
                self.address,
                f"its storage cannot be used: {type(wrong).__name__}: {_first_line(wrong)}",
                fix="see that checkpoint.directory is an address that every worker may read and "
                "write, and that its endpoint and credentials are in the workers' environment",
            ) from None


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec

    protocol = address.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        from rayline.checkpoint.object_store import PROTOCOLS, offer

        if protocol not in PROTOCOLS:
            raise
        offer(protocol)
    system, path = fsspec.core.url_to_fs(address)
    return system, path


def _last_part(entry: str) -> str:
    return entry.rstrip("/").rpartition("/")[2]


def _first_line(wrong: Exception) -> str:
    lines = str(wrong).strip().splitlines()
    return lines[0][:300] if lines else "no message"
