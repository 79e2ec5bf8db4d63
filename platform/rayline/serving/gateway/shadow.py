"""Shadow traffic: copies of requests, put to a version that is to take over. Nobody waits for their
answers; what is measured of them says whether it can."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid

from rayline.serving.gateway.fleet import Connections
from rayline.serving.gateway.journey import Journey
from rayline.serving.requests import RefusedError
from rayline.serving.wire import Ask


class Shadow:
    """Used within the gateway's event loop."""

    def __init__(self, fleet: Connections) -> None:
        self._fleet = fleet
        self._copies: set[asyncio.Task[None]] = set()

    def copy(self, ask: Ask, model: str) -> None:
        """Put a copy of `ask` to the version that gets copies, where there is one, this one is
        drawn and a replica is free. Returns at once."""
        wanted = self._fleet.shadow(model)
        if wanted is None:
            return
        copied = dataclasses.replace(ask, request_id=uuid.uuid4().hex)
        task = asyncio.create_task(self._answer(Journey(copied, wanted, self._fleet)))
        # The loop itself keeps no task alive.
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _answer(self, journey: Journey) -> None:
        self._fleet.meter.begin(journey)
        try:
            async for _ in journey.items():
                pass
        except RefusedError:
            journey.failed = True
        finally:
            self._fleet.meter.end(journey)
