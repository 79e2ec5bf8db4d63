"""A small search, and a Ray of its own for the tests that need one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from rayline.spec import TuneSpec

MakeSearch = Callable[..., TuneSpec]


@pytest.fixture
def make_search(tmp_path: Path) -> MakeSearch:
    """make_search(trials=4, **{"job.steps": 6}) is a search over lr and warm-up in its folder."""

    def make(**changes: Any) -> TuneSpec:
        base = TuneSpec.parse(
            {
                "name": "small",
                "trials": 3,
                "space": {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
                "output_dir": str(tmp_path / "search"),
                "job": {
                    "name": "best",
                    "model": {"directory": str(tmp_path / "model")},
                    "steps": 9,
                    "data": {
                        "kind": "text",
                        "files": [str(tmp_path / "text.jsonl")],
                        "sequence_tokens": 16,
                    },
                    "batch": {"sequences": 4},
                    "optim": {"lr": 1e-3},
                    "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
                    "resources": {"device": "cpu", "cpus_per_worker": 0.5},
                    "output_dir": str(tmp_path / "runs"),
                },
            }
        )
        return base.changed(changes)

    return make
