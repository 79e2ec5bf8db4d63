"""Why an engine died, out of what its processes wrote."""

from __future__ import annotations

import pytest

from rayline.serving.replica.starting import _cause_in

HEAD = "(Worker pid=22324) ERROR 11-21 03:27:14 [multiproc_executor.py:1063] "


DIED = [
    f"{HEAD}Traceback (most recent call last):",
    f"{HEAD}    raise ValueError(",
    f"{HEAD}ValueError: less memory than requested",
    "(EngineCore pid=9) ERROR 11-21 03:27:14 [core.py:1510] RuntimeError: Worker failed",
]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([], ""),
        (["INFO all is well", "Error: not of the engine"], ""),
        (DIED, "ValueError: less memory than requested"),
        ([f"{HEAD}torch.OutOfMemoryError: CUDA"], "torch.OutOfMemoryError: CUDA"),
    ],
)
def test_the_first_error_of_the_engines_own_processes_is_the_cause(lines, cause):
    assert _cause_in("\n".join(lines)) == cause
