"""From a ServeSpec to an engine that has computed something; where it does not come up, why not."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import RaylineError, ServingError, SpecError
from rayline.serving.rehearsal import Rehearsal
from rayline.serving.settings import LOOPBACK, llm_config_fields, transfer_environment
from rayline.serving.weights import local_weights
from rayline.serving.wire import Engine
from rayline.spec import Device, Role, ServeSpec

if TYPE_CHECKING:
    from rayline.serving.replica.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

_CAUSE = re.compile(r"^\(\w+ pid=\d+\).*?\] ([A-Za-z_.]*(?:Error|Exception): .+)$", re.MULTILINE)
"""How vLLM logs the last line of a traceback in one of its processes."""
_LOG_TAIL_BYTES = 64 * 1024


async def start_engine(
    spec: ServeSpec, device: Device, role: Role | None = None, host: str = LOOPBACK
) -> Engine:
    """An engine that has computed something; its adapters come after (publishing.py). Called
    within the event loop that it is used in. `host` is where other replicas reach this one, which
    matters where engine.split gives it a `role`.

    Raises SpecError or CheckpointError for what it is to read, ServingError with vLLM's own last
    words where it does not come up.
    """
    if spec.rehearsal is not None:
        return await Rehearsal.start(spec.rehearsal, spec.name, spec.engine.max_model_len)
    weights = await asyncio.to_thread(local_weights, spec)
    if role is not None:
        _prepare_transfer(host)
    fields = llm_config_fields(
        spec,
        weights.folder,
        device,
        quantization=weights.quantization,
        draft=weights.draft,
        role=role,
    )
    try:
        engine = await _vllm().start(fields, spec.name)
    except RaylineError:
        raise
    # What vLLM raises says that a process below it died, not why: that stands in its log.
    except Exception as wrong:
        reason = _cause_in(_own_output()) or f"{type(wrong).__name__}: {wrong}"
        raise ServingError("engine", f"vLLM did not start: {reason}") from wrong
    try:
        await engine.probe()
    except BaseException:
        await asyncio.to_thread(engine.stop)
        raise
    return engine


def _vllm() -> type[VllmEngine]:
    """Imported here and not above: who names this module needs no vLLM.

    Where ray.serve.llm is imported it registers parts of its own with the cluster, unless they are;
    and fails where another replica does the same in the same moment. The second time they are."""
    try:
        from rayline.serving.replica.vllm_engine import VllmEngine
    except ValueError as wrong:
        logger.warning("imported again: %s", wrong)
        from rayline.serving.replica.vllm_engine import VllmEngine
    return VllmEngine


def _prepare_transfer(host: str) -> None:
    """Let this process and those below it send pages to other replicas, and fetch theirs."""
    if importlib.util.find_spec("nixl") is None:
        raise SpecError(
            "engine.split",
            "needs the package nixl, which carries pages from replica to replica",
            fix="pip install 'rayline[split]' on every node, or remove it",
        )
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = int(probe.getsockname()[1])
    os.environ.update(transfer_environment(host, port))


def _own_output() -> str:
    """The end of what this process and its children have written, where Ray keeps that in files."""
    return "\n".join(_tail(Path(f"/proc/self/fd/{stream}")) for stream in (1, 2))


def _tail(file: Path) -> str:
    try:
        with file.resolve().open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _cause_in(log: str) -> str:
    """The first error that a process of the engine died of; empty where the log names none."""
    found = _CAUSE.search(log)
    return "" if found is None else found.group(1)
