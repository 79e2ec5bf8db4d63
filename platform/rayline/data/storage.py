"""Files by path or by address: what fsspec knows (s3://, gs://, memory://, ...), and local paths
without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from rayline.errors import SpecError


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file or folder, wherever it lies."""

    address: str
    """As the job gives it."""
    path: str
    """Within its file system."""
    system: Any = None
    """The fsspec file system that holds it; None for a local path."""

    @classmethod
    def at(cls, address: str, subject: str) -> Self:
        """The file of this address; it need not exist. `subject`: the field that gives it. Raises
        SpecError where the address can't be understood."""
        if "://" not in address:
            return cls(address, address)
        try:
            import fsspec

            system, path = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as wrong:
            raise SpecError(
                subject,
                f"this kind of address can't be read here: {wrong}",
                value=address,
                fix="install the fsspec package for it (s3fs for s3://, gcsfs for gs://) on the "
                "driver and on every worker",
            ) from None
        return cls(address, path, system)

    def exists(self) -> bool:
        """Whether anything is there. Raises OSError where its storage can't be asked."""
        return Path(self.path).exists() if self.system is None else self.system.exists(self.path)

    @property
    def is_folder(self) -> bool:
        """Whether it is no file. Raises OSError."""
        return not (
            Path(self.path).is_file() if self.system is None else self.system.isfile(self.path)
        )

    def holds(self, name: str) -> bool:
        """Whether a file of that name lies in this folder."""
        inner = f"{self.path.rstrip('/')}/{name}"
        return Path(inner).is_file() if self.system is None else self.system.isfile(inner)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes. Raises OSError."""
        if self.system is None:
            with Path(self.path).open("rb") as stream:
                yield stream
        else:
            with self.system.open(self.path, "rb") as remote:
                yield cast(BinaryIO, remote)

    def files_below(self) -> list[StoredFile]:
        """The file itself, or all files of the folder, by name. Raises OSError."""
        if not self.is_folder:
            return [self]
        if self.system is None:
            found = [str(path) for path in Path(self.path).rglob("*") if path.is_file()]
        else:
            found = self.system.find(self.path)
        return [StoredFile(path, path, self.system) for path in sorted(found)]

    def size_bytes(self) -> int:
        """Of a file. Raises OSError."""
        if self.system is None:
            return Path(self.path).stat().st_size
        return int(self.system.size(self.path))

    def version(self) -> str:
        """Changes when the file's content does, as far as its storage tells without reading it:
        size and time of writing, or the storage's own tag. Raises OSError."""
        if self.system is None:
            told = Path(self.path).stat()
            return f"{told.st_ino}-{told.st_size}-{told.st_mtime_ns}"
        return str(self.system.ukey(self.path))
