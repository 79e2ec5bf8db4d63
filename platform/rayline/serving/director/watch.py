"""Watch: what was heard of one version lately, from its replicas and from gateways."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rayline.serving.rollout.measured import Measured
from rayline.serving.scaling.moment import Moment, moment
from rayline.serving.wire import Load

RECENT_S = 10.0
"""How far back the times go that scaling looks at."""
_SILENT_S = 5.0
"""What a gateway said last counts no longer once it has been silent for so long."""
_NINE_OF_TEN = 90.0


class Watch:
    """Kept by the director, one a version. Clocks are monotonic seconds."""

    def __init__(self) -> None:
        self.moments: deque[Moment] = deque()
        """One a second, oldest first."""
        self.measured = Measured()
        """Since the share of the canary last changed."""
        self._recent: deque[tuple[float, Measured]] = deque()
        self._unanswered: dict[str, tuple[float, Sequence[float]]] = {}

    def hear(
        self, gateway: str, measured: Measured, unanswered_ms: Sequence[float], clock_s: float
    ) -> None:
        """What a gateway has measured since it last said so, and how long requests wait there."""
        self._unanswered[gateway] = (clock_s, unanswered_ms)
        if measured.requests or measured.ttft_ms.count:
            self.measured += measured
            self._recent.append((clock_s, measured))

    def tick(self, clock_s: float, loads: Sequence[Load], held: int, history_s: float) -> Moment:
        """Note this second, and forget what is older than `history_s`."""
        while self._recent and self._recent[0][0] < clock_s - RECENT_S:
            self._recent.popleft()
        recent = sum((measured for _, measured in self._recent), Measured())
        now = moment(
            clock_s,
            loads,
            held=held,
            ttft_ms=recent.ttft_ms.percentile(_NINE_OF_TEN),
            tpot_ms=recent.tpot_ms.percentile(_NINE_OF_TEN),
        )
        self.moments.append(now)
        # One more than is looked at, to show that the history reaches that far.
        while len(self.moments) > 1 and self.moments[1].at_s <= clock_s - history_s:
            self.moments.popleft()
        return now

    def unanswered_ms(self, clock_s: float) -> list[float]:
        """How long each request waits for its first token, of all gateways together."""
        heard = self._unanswered.values()
        return [age for at_s, ages in heard if clock_s - at_s <= _SILENT_S for age in ages]

    def begin_anew(self) -> None:
        """The share has changed: what was measured before does not count."""
        self.measured = Measured()
