"""Serving's tests: no token file in the user's home, no dashboard."""

from __future__ import annotations

import os

os.environ["RAY_AUTH_MODE"] = "disabled"
