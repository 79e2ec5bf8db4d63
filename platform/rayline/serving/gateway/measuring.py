"""What a gateway measures of each version: times, errors, and what is still owed a first token."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from rayline.serving.director.fleet import Felt
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.sketch import Sketch

if TYPE_CHECKING:
    from rayline.serving.gateway.journey import Journey


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    errors: int = 0
    ttft_ms: Sketch = field(default_factory=Sketch)
    tpot_ms: Sketch = field(default_factory=Sketch)


class Meter:
    """Used within the gateway's event loop. `begin` and `end` surround every journey."""

    def __init__(self) -> None:
        self._open: set[Journey] = set()
        self._sums: dict[tuple[str, int], _Sum] = {}

    def begin(self, journey: Journey) -> None:
        """A request sets out."""
        self._open.add(journey)

    def end(self, journey: Journey) -> None:
        """It has arrived, or failed. What the client broke off says nothing of the version, nor
        what was refused for the client's own fault."""
        self._open.discard(journey)
        if journey.version is None or journey.left or journey.refused:
            return
        found = self._sums.setdefault((journey.model, journey.version), _Sum())
        found.requests += 1
        if journey.failed or journey.first_s is None or journey.last_s is None:
            found.errors += 1
            return
        if journey.tokens:
            found.ttft_ms.add(1000 * journey.first_s)
            if journey.tokens > 1:
                between_s = journey.last_s - journey.first_s
                found.tpot_ms.add(1000 * between_s / (journey.tokens - 1))
        elif journey.usage.completion_tokens:
            # It came whole: there was no first token to see.
            found.tpot_ms.add(journey.usage.computed_ms / journey.usage.completion_tokens)

    def take(self) -> tuple[Felt, ...]:
        """What was measured since the last call, and how long requests have waited now."""
        now_s = perf_counter()
        ages: dict[tuple[str, int], list[float]] = {}
        for journey in self._open:
            if journey.version is not None and journey.first_s is None and not journey.left:
                key = (journey.model, journey.version)
                ages.setdefault(key, []).append(1000 * (now_s - journey.begun_s))
        sums, self._sums = self._sums, {}
        return tuple(
            Felt(model, version, _measured(sums.get((model, version), _Sum())), tuple(waited))
            for model, version in sums.keys() | ages.keys()
            for waited in [ages.get((model, version), ())]
        )

    def put_back(self, felt: tuple[Felt, ...]) -> None:
        """What was taken could not be told: it is told with what comes next."""
        for one in felt:
            found = self._sums.setdefault((one.model, one.version), _Sum())
            both = _measured(found) + one.measured
            self._sums[one.model, one.version] = _Sum(
                both.requests, both.errors, both.ttft_ms, both.tpot_ms
            )


def _measured(one: _Sum) -> Measured:
    return Measured(one.requests, one.errors, one.ttft_ms, one.tpot_ms)
