"""The specs that come with rayline, and the small model and data that they train on.

An installed package holds them under shipped/ (see the wheel's `sources` in pyproject.toml); in a
checkout they are the files of jobs/, serve/, tune/ and cluster/specs/.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rayline.errors import SpecError, meant
from rayline.spec.kinds import FOLDERS, Kind

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "shipped"
_CHECKOUT = _PACKAGE.parents[1]
_GLOBS = ("jobs/specs/*.yaml", "serve/*.yaml", "tune/*.yaml", "cluster/specs/*.yaml")
_READ_FILES = re.compile(r"\bexamples/[\w./-]*\w")
"""What a spec reads of what comes with rayline."""


@dataclass(frozen=True, slots=True)
class ShippedSpec:
    """One spec that can be copied."""

    name: str
    """Such as jobs/quickstart; the part after the slash will do where it is the only one."""
    kind: Kind
    about: str
    """Its second comment line: what it is for, and on what."""
    path: Path


def shipped_root() -> Path:
    """The folder in which jobs/, serve/, tune/, cluster/ and examples/ lie."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def shipped_specs() -> list[ShippedSpec]:
    """All of them, jobs first, by name."""
    root = shipped_root()
    files = [file for pattern in _GLOBS for file in sorted(root.glob(pattern))]
    return [_described(file, file.relative_to(root).parts[0]) for file in files]


def find_shipped(name: str) -> ShippedSpec:
    """The spec of this name: `jobs/quickstart`, or `chat` where no other is called so. Raises
    SpecError."""
    plain = name.removesuffix(".yaml").replace("/specs/", "/")
    known = shipped_specs()
    found = [spec for spec in known if plain in (spec.name, spec.name.partition("/")[2])]
    if len(found) == 1:
        return found[0]
    names = [spec.name for spec in found or known]
    if found:
        told, fix = "several have this name", f"give the whole name, such as {names[0]}"
    else:
        short = {spec.name.partition("/")[2] for spec in known}
        fix = meant(plain, {*names, *short}, otherwise="rayline specs list says what each is for")
        told = "no such spec comes with rayline"
    raise SpecError("NAME", told, value=name, allowed=", ".join(names), fix=fix)


def copy_shipped(spec: ShippedSpec, to: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a copy of `spec` to the file `to`, and beside the current folder's own files what it
    reads of rayline's; the files and folders that were written. Raises SpecError where `to` exists.
    """
    refuse_existing(to, overwrite=overwrite)
    text = spec.path.read_text(encoding="utf-8")
    write_file(to, text)
    return [to, *bring_along(text, Path.cwd())]


def bring_along(text: str, folder: Path) -> list[Path]:
    """Copy into `folder` what a spec's text reads of what comes with rayline and is not there:
    examples/models/tiny and the like; what was written."""
    written = []
    for name in sorted({found.group() for found in _READ_FILES.finditer(text)}):
        source, target = shipped_root() / name, folder / name
        if not source.exists() or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        written.append(target)
    return written


def bring_job_script(folder: Path) -> list[Path]:
    """Copy jobs/train.py, which runs a spec on a cluster, into `folder` where it is not there."""
    target = folder / "jobs" / "train.py"
    if target.exists():
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shipped_root() / "jobs" / "train.py", target)
    return [target]


def refuse_existing(file: Path, *, overwrite: bool) -> None:
    """Raise SpecError where `file` is there and may not be replaced."""
    if file.exists() and not overwrite:
        raise SpecError(
            str(file), "exists already", fix="give another name, or --force to replace it"
        )


def write_file(file: Path, text: str) -> None:
    """Write a text file and the folder it lies in. Raises SpecError where that may not be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as wrong:
        raise SpecError(
            str(file), f"cannot be written: {wrong.strerror}", fix="give a place that you may write"
        ) from None


def _described(file: Path, folder: str) -> ShippedSpec:
    head = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# ").strip())
    about: list[str] = []
    # The first line is the command; what it is for ends at an empty line or a full stop.
    for line in head[1:]:
        if not line or (about and about[-1].endswith((".", ";"))):
            break
        about.append(line)
    return ShippedSpec(
        name=f"{folder}/{file.stem}", kind=FOLDERS[folder], about=" ".join(about), path=file
    )
