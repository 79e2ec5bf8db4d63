"""A notebook that only asks has neither Ray nor vLLM."""

from __future__ import annotations

import subprocess
import sys


def test_the_client_needs_neither_ray_nor_torch():
    script = (
        "import sys, rayline.serving.client; "
        "print([name for name in ('ray', 'torch', 'vllm', 'mlflow') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
