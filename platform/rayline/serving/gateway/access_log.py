"""The access log: one line of JSON a request, with nothing that a client wrote but the model."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields as fields_of

from rayline.serving.gateway.answered import Answered

_logger = logging.getLogger("rayline.access")
_FIELDS = tuple(field.name for field in fields_of(Answered))


def open_access_log() -> None:
    """Write it to this process's output, which Ray keeps in a file of its own."""
    if not _logger.handlers:
        lines = logging.StreamHandler(sys.stdout)
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
