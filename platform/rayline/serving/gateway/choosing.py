"""Which replica answers: a pure function of how busy each is and which one knows the prompt.

A replica whose cache has the beginning of a prompt computes only the rest, so requests that begin
alike, or belong to one session, go to one replica: the one that rendezvous hashing gives them
(Thaler and Ravishankar 1998), which moves few of them when a replica comes or goes. One that is
clearly busier than the idlest is passed over, as in llm-d's and SGLang's cache-aware routers: a
cache hit saves a prompt's computation, a queue costs somebody else's whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

IMBALANCE = 4
"""How many more requests than the idlest a replica may have and still be taken for its cache."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that may be asked."""

    replica: str
    ongoing: int
    """Requests that it has, of this gateway at least."""
    capacity: int
    """Requests that this gateway may give it at once."""


def choose(candidates: Sequence[Candidate], affinity: str | None) -> Candidate | None:
    """The replica for a request; None where all are full. `affinity` is equal for requests that a
    common cache helps."""
    free = [one for one in candidates if one.ongoing < one.capacity]
    if not free:
        return None
    idlest = min(free, key=lambda one: (one.ongoing, one.replica))
    if affinity is None:
        return idlest
    home = max(free, key=lambda one: blake2b(f"{one.replica}/{affinity}".encode()).digest())
    return home if home.ongoing - idlest.ongoing <= IMBALANCE else idlest
