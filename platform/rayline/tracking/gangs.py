"""Who stood where: the ranks of a gang, each time that it began, as tags of its run.

The driver writes them beside the metrics, so that whoever can read the store can draw the gang: a
console, or somebody who looks for the log of one rank. A tag holds 8000 characters, so a large gang
is told in parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

GANG_PREFIX = "rayline.gang."
_SEATS_PER_TAG = 64
"""Of at most a hundred characters each."""
_NODE_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place."""

    rank: int
    coordinate: str
    """Along every axis, such as pp0-dp1-cp0-tp0."""
    node: str
    """The first characters of Ray's id of its node."""
    address: str
    pid: int
    """Of its process, on that node."""


@dataclass(frozen=True, slots=True)
class GangRecord:
    """A gang as it stood from one beginning to the next."""

    at: datetime
    epoch: int
    """Number of the beginning, counted from 1 at each start of the job."""
    seats: tuple[Seat, ...]
    """In the order of ranks."""


def gang_tags(gang: GangRecord) -> dict[str, str]:
    """The tags that tell it, to be set once."""
    began_ms = int(gang.at.timestamp() * 1000)
    return {
        f"{GANG_PREFIX}{began_ms:014d}.{part:04d}": json.dumps(
            {
                "at": gang.at.isoformat(),
                "epoch": gang.epoch,
                "seats": [
                    [seat.rank, seat.coordinate, seat.node, seat.address, seat.pid]
                    for seat in seats
                ],
            },
            separators=(",", ":"),
        )
        for part, seats in enumerate(_parts(gang.seats))
    }


def read_gangs(tags: Mapping[str, str]) -> list[GangRecord]:
    """The gangs that the tags of a run tell of, oldest first."""
    parts = [
        (key.removeprefix(GANG_PREFIX).partition(".")[0], json.loads(tags[key]))
        for key in sorted(tags)
        if key.startswith(GANG_PREFIX)
    ]
    gangs = []
    for _, group in groupby(parts, key=lambda part: part[0]):
        trees = [tree for _, tree in group]
        seats = tuple(Seat(*seat) for tree in trees for seat in tree["seats"])
        at = datetime.fromisoformat(trees[0]["at"])
        gangs.append(GangRecord(at, int(trees[0]["epoch"]), seats))
    return gangs


def gang_record(epoch: int, seats: Sequence[Seat]) -> GangRecord:
    """A gang that has begun just now."""
    short = [
        Seat(seat.rank, seat.coordinate, seat.node[:_NODE_CHARACTERS], seat.address, seat.pid)
        for seat in seats
    ]
    return GangRecord(datetime.now(UTC), epoch, tuple(short))


def _parts(seats: Sequence[Seat]) -> list[Sequence[Seat]]:
    return [seats[start : start + _SEATS_PER_TAG] for start in range(0, len(seats), _SEATS_PER_TAG)]
