"""A gang as a map (who stands where, who is slow or lost), and what befell it on a line of time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rayline.tracking import GangRecord, RunEvent, RunSummary, Seat

SeatState = Literal["steps", "slow", "lost", "replaced"]
"""steps: as it should. slow: all others wait for it. lost: it is gone, and nobody has taken its
place yet. replaced: it does what another process did before."""
Tone = Literal["plain", "good", "warning", "bad"]

_RANK = re.compile(r"\brank (\d+)\b")
_COORDINATE = re.compile(r"pp(\d+)-dp(\d+)-cp(\d+)-tp(\d+)")
_TONES: dict[str, Tone] = {
    "restarted": "bad",
    "recovered": "good",
    "registered": "good",
    "straggler": "warning",
    "draining": "warning",
    "moved": "warning",
    "replanned": "warning",
    "checkpoint": "warning",
    "skipped": "warning",
}


@dataclass(frozen=True, slots=True)
class SeatView:
    """One rank."""

    rank: int
    pipeline: int
    data: int
    context: int
    tensor: int
    node: str
    address: str
    pid: int
    state: SeatState
    note: str
    """Why it is in that state; empty where it steps."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node of the gang."""

    node: str
    address: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GangView:
    """A gang as it stands, or stood last."""

    began_at: datetime
    epoch: int
    beginnings: int
    """How often it has begun in this run."""
    seats: tuple[SeatView, ...]
    nodes: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened."""

    at: datetime
    kind: str
    text: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Outage:
    """From a loss to the next finished step."""

    began_at: datetime
    ended_at: datetime | None
    """None where it goes on, or the run ended in it."""
    rank: int | None
    why: str
    took: str
    """What the recovery took, in the driver's words."""
    replaced: tuple[str, ...]
    """Each rank that another process took over, with both processes."""


@dataclass(frozen=True, slots=True)
class TimelineView:
    """A run from its start to its end, or until now."""

    began_at: datetime
    ended_at: datetime | None
    moments: tuple[Moment, ...]
    outages: tuple[Outage, ...]


def gang_view(
    gangs: Sequence[GangRecord], events: Sequence[RunEvent], ended_at: datetime | None
) -> GangView | None:
    """The newest of the gangs; None where none was recorded."""
    if not gangs:
        return None
    newest = gangs[-1]
    before = {seat.rank: seat for seat in gangs[-2].seats} if len(gangs) > 1 else {}
    since = [event for event in events if event.at >= newest.at]
    lost = _named(since, "restarted") if ended_at is None else {}
    slow = _named(since, "straggler")
    seats = tuple(_seat(seat, before.get(seat.rank), lost, slow) for seat in newest.seats)
    return GangView(newest.at, newest.epoch, len(gangs), seats, _nodes(newest.seats))


def _seat(seat: Seat, before: Seat | None, lost: dict[int, str], slow: dict[int, str]) -> SeatView:
    state: SeatState = "steps"
    note = ""
    if seat.rank in lost:
        state, note = "lost", lost[seat.rank]
    elif seat.rank in slow:
        state, note = "slow", slow[seat.rank]
    elif before is not None and _process(before) != _process(seat):
        state, note = "replaced", f"took over from {_process(before)}"
    found = _COORDINATE.fullmatch(seat.coordinate)
    axes = [int(one) for one in found.groups()] if found else [0, seat.rank, 0, 0]
    pipeline, data, context, tensor = axes
    place = (seat.node, seat.address, seat.pid)
    return SeatView(seat.rank, pipeline, data, context, tensor, *place, state, note)


def _named(events: Sequence[RunEvent], kind: str) -> dict[int, str]:
    """Ranks that events of a kind are about, with what they say."""
    named = {}
    for event in events:
        rank = rank_of(event.text) if event.kind == kind else None
        if rank is not None:
            named[rank] = event.text
    return named


def rank_of(text: str) -> int | None:
    """The rank that a message names first (see actors.failure.worker_name)."""
    found = _RANK.search(text)
    return int(found[1]) if found else None


def _process(seat: Seat) -> str:
    return f"process {seat.pid} on node {seat.node} ({seat.address})"


def _nodes(seats: Sequence[Seat]) -> tuple[NodeView, ...]:
    held: dict[tuple[str, str], list[int]] = {}
    for seat in seats:
        held.setdefault((seat.node, seat.address), []).append(seat.rank)
    return tuple(NodeView(node, address, tuple(ranks)) for (node, address), ranks in held.items())


def timeline_view(
    summary: RunSummary, gangs: Sequence[GangRecord], events: Sequence[RunEvent]
) -> TimelineView:
    """What happened, oldest first."""
    moments = [Moment(event.at, event.kind, event.text, _tone(event.kind)) for event in events]
    moments += [
        Moment(
            gang.at,
            "began",
            f"{len(gang.seats)} workers on {len(_nodes(gang.seats))} nodes, beginning {gang.epoch}",
            "plain",
        )
        for gang in gangs
    ]
    return TimelineView(
        summary.started_at,
        summary.ended_at,
        tuple(sorted(moments, key=lambda moment: moment.at)),
        tuple(_outages(gangs, events)),
    )


def _outages(gangs: Sequence[GangRecord], events: Sequence[RunEvent]) -> list[Outage]:
    outages = []
    for number, event in enumerate(events):
        if event.kind != "restarted":
            continue
        later = events[number + 1 :]
        again = next((one.at for one in later if one.kind == "restarted"), None)
        ended = next((one for one in later if one.kind == "recovered"), None)
        if ended is not None and again is not None and ended.at > again:
            ended = None
        outages.append(
            Outage(
                began_at=event.at,
                ended_at=None if ended is None else ended.at,
                rank=rank_of(event.text),
                why=event.text,
                took="" if ended is None else ended.text,
                replaced=_replaced(gangs, event.at),
            )
        )
    return outages


def _replaced(gangs: Sequence[GangRecord], lost_at: datetime) -> tuple[str, ...]:
    """What was otherwise at the first beginning after a loss."""
    before = [gang for gang in gangs if gang.at <= lost_at]
    after = [gang for gang in gangs if gang.at > lost_at]
    if not before or not after:
        return ()
    stood = {seat.rank: _process(seat) for seat in before[-1].seats}
    return tuple(
        f"rank {seat.rank}: {_process(seat)} in place of {stood[seat.rank]}"
        for seat in after[0].seats
        if seat.rank in stood and stood[seat.rank] != _process(seat)
    )


def _tone(kind: str) -> Tone:
    return _TONES.get(kind, "plain")
