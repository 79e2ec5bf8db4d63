"""Folders in which examples find what a checkout has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

REPOSITORY = Path(__file__).resolve().parents[2]


@contextmanager
def entered(folder: Path) -> Iterator[Path]:
    """Be in `folder`, which gets links to the checkout's own folders."""
    for name in ("jobs", "serve", "tune", "cluster", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder with links to the checkout's own, entered."""
    with entered(tmp_path_factory.mktemp("checkout")) as folder:
        yield folder
