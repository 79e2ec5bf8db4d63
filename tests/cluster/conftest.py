"""What the tests of the cluster folder share: the checkout, the lock, the data beside it."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def locked() -> dict[str, dict[str, str]]:
    """Version of each distribution in each lock: locked["cpu"]["ray"]."""
    return {
        name: dict(
            re.findall(
                r"^([a-z0-9.-]+)==(\S+)",
                (ROOT / "cluster" / "requirements" / f"{name}.txt").read_text(),
                flags=re.MULTILINE,
            )
        )
        for name in ("cpu", "gpu", "uv")
    }


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published data beside the checkout. Only CI must have it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = "no shared/data beside this checkout: the schemas cannot be read"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
