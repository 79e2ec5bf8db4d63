"""The adapters of one replica, kept in step with what its deployment publishes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rayline.errors import RaylineError
from rayline.planner import read_model_shape
from rayline.serving.adapters import adapter_changes, resolve_adapter
from rayline.serving.wire import Engine
from rayline.spec import AdapterSpec, ModelShape, ServeSpec
from rayline.tracking import resolve_model

logger = logging.getLogger(__name__)

_RETRY_S = 30.0
"""How long one that could not be loaded is left alone: its bucket may be back then."""


class Publishing:
    """Used within the engine's event loop; `names` and `failures` may be read by others."""

    def __init__(self, engine: Engine, spec: ServeSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._shape: ModelShape | None = None
        self._loaded: tuple[AdapterSpec, ...] = ()
        self._failed: dict[AdapterSpec, tuple[float, str]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What the engine answers to, beside its model's name."""
        return tuple(adapter.name for adapter in self._loaded)

    @property
    def failures(self) -> dict[str, str]:
        """By name: why an adapter that is wanted is not there."""
        return {adapter.name: reason for adapter, (_, reason) in self._failed.items()}

    async def follow(self, wanted: Sequence[AdapterSpec]) -> None:
        """Withdraw what is not wanted and load what is. One that cannot be loaded, which is tried
        again later, holds up neither the others nor the model."""
        now_s = time.monotonic()
        self._failed = {one: why for one, why in self._failed.items() if one in wanted}
        changes = adapter_changes(self._loaded, wanted)
        again = {adapter.name for adapter in changes.published}
        for name in changes.withdrawn:
            # One that comes again answers until the new one can.
            if name not in again:
                await self._engine.remove_adapter(name)
                self._forget(name)
        for adapter in changes.published:
            tried_s, _ = self._failed.get(adapter, (-_RETRY_S, ""))
            if now_s - tried_s >= _RETRY_S:
                await self._load(adapter)

    async def _load(self, adapter: AdapterSpec) -> None:
        try:
            await self._engine.add_adapter(adapter.name, await self._folder(adapter))
        except RaylineError as wrong:
            logger.warning("adapter %s is not answered with: %s", adapter.name, wrong)
            self._failed[adapter] = (time.monotonic(), str(wrong))
            return
        self._failed.pop(adapter, None)
        self._forget(adapter.name)
        self._loaded += (adapter,)

    def _forget(self, name: str) -> None:
        self._loaded = tuple(one for one in self._loaded if one.name != name)

    async def _folder(self, adapter: AdapterSpec) -> Path:
        spec = self._spec
        if spec.rehearsal is not None:
            # Named and not opened, as its model is.
            return Path()
        if self._shape is None:
            self._shape = await asyncio.to_thread(_shape, spec)
        found = await asyncio.to_thread(
            resolve_adapter, adapter, self._shape, spec.engine, spec.tracking
        )
        return found.folder


def _shape(spec: ServeSpec) -> ModelShape:
    return read_model_shape(resolve_model(spec.model, spec.tracking, need_weights=False))
