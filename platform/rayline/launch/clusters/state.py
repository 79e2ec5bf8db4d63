"""What this machine remembers of a cluster that it brought up, so that `down` and `status` find it.

One folder a cluster: the rendered file, and for clusters of processes here the record of the head.
A process is known by its id and the moment it was made: ids are used again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rayline.errors import PlacementError

_RECORD = "head.json"
_FILE = "cluster.yaml"


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """A head that runs as a process of this machine."""

    pid: int
    created_s: float
    """When the process was made, in seconds since 1970."""
    mark: str
    """What every process of the cluster has in its environment."""
    address: str
    """Ray's address, host:port."""
    dashboard: str
    """Its dashboard, where jobs are submitted."""
    session_dir: str
    """Ray's files; removed with the cluster."""
    fingerprint: str
    """The spec's."""


@dataclass(frozen=True, slots=True)
class ClusterFolder:
    """The folder of one cluster."""

    path: Path

    @property
    def file(self) -> Path:
        """The rendered file."""
        return self.path / _FILE

    @property
    def log(self) -> Path:
        """What the head printed."""
        return self.path / "head.log"

    def write_file(self, text: str) -> Path:
        """Keep the rendered file."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.file.write_text(text, encoding="utf-8")
        return self.file

    def write(self, record: HeadRecord) -> None:
        """Keep a head's record; whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        fresh = self.path / f"{_RECORD}.new"
        fresh.write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")
        fresh.replace(self.path / _RECORD)

    def read(self) -> HeadRecord | None:
        """The head's record; None where there is none. Raises PlacementError where it is torn."""
        file = self.path / _RECORD
        try:
            return HeadRecord(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as wrong:
            raise PlacementError(
                str(file),
                f"not readable: {wrong}",
                fix="end the cluster's processes by hand, then remove the file",
            ) from None

    def forget(self) -> None:
        """Remove the record and the rendered file; the log stays."""
        for name in (_RECORD, _FILE):
            (self.path / name).unlink(missing_ok=True)


def folder_of(name: str, home: Path | None = None) -> ClusterFolder:
    """Where a cluster is remembered: below `home`, by default ~/.rayline/clusters."""
    return ClusterFolder((home or _home()) / name)


def remembered(home: Path | None = None) -> list[ClusterFolder]:
    """The clusters that were brought up from this machine and not ended from it."""
    folders = [ClusterFolder(path) for path in sorted((home or _home()).glob("*"))]
    return [folder for folder in folders if folder.file.exists()]


def _home() -> Path:
    return Path.home() / ".rayline" / "clusters"
