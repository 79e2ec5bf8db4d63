"""One socket between a gateway and a replica: frames, many requests at once.

A gateway calls (caller.py), a replica listens (listener.py), frames.py is what lies on the wire and
exchange.py what the two say to each other. All that is written within one turn of an event loop
leaves in one call, so one step of an engine costs one write here, however many streams it feeds.
"""

from rayline.serving.wire.caller import SILENCE_S, Call, Caller, LostReplicaError
from rayline.serving.wire.exchange import Ask, Engine, Item, Load, Piece, Usage, WholeAnswer
from rayline.serving.wire.listener import Listener

__all__ = [
    "SILENCE_S",
    "Ask",
    "Call",
    "Caller",
    "Engine",
    "Item",
    "Listener",
    "Load",
    "LostReplicaError",
    "Piece",
    "Usage",
    "WholeAnswer",
]
