"""The access log: one line of JSON a request, with nothing that a client wrote but the model."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import fields as fields_of
from logging.handlers import RotatingFileHandler
from pathlib import Path

from rayline.serving.gateway.answered import Answered

_logger = logging.getLogger("rayline.access")
_FILE_BYTES = 64 * 2**20
_FILES_KEPT = 5
_OUTPUT = "/proc/self/fd/1"
_FIELDS = tuple(field.name for field in fields_of(Answered))


def open_access_log() -> None:
    """Write it to rayline-access-PID.log among Ray's logs, where `ray logs` finds it; without Ray
    to this process's output. Ray sends each line of an actor's output through its control store to
    every driver, which is dear at a line a request."""
    if _logger.handlers:
        return
    lines: logging.Handler = logging.StreamHandler(sys.stdout)
    output = Path(os.path.realpath(_OUTPUT))
    if output.name.startswith("worker-") and output.suffix == ".out":
        file = output.with_name(f"rayline-access-{os.getpid()}.log")
        lines = RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT)
    lines.setFormatter(logging.Formatter("%(message)s"))
    _logger.addHandler(lines)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def log_access(one: Answered) -> None:
    """Write the line of a request that has ended."""
    if not _logger.isEnabledFor(logging.INFO):
        return
    given = ((name, getattr(one, name)) for name in _FIELDS)
    fields = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in given
        if value is not None
    }
    _logger.info(json.dumps(fields, separators=(",", ":")))
