"""Addresses from which keys are tried that do not exist."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence

from rayline.serving.access.window import SlidingWindow

MAX_ADDRESSES = 10_000
"""Most addresses that are remembered; the one that was wrong longest ago is forgotten first. Each
holds one small entry a bad key, so all of them a few MB."""


class BadKeys:
    """Counts wrong keys by address, a minute back, in bounded memory.

    Only wrong keys are refused for it: behind one address may stand a whole office, and one program
    with an old key must not lock the others out. A secret of 256 bits is not guessed for that.
    """

    def __init__(self, per_min: int) -> None:
        self._per_min = per_min
        self._windows: OrderedDict[str, SlidingWindow] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds until one more wrong key would be looked up; 0: now."""
        window = self._windows.get(network_of(address))
        return 0.0 if window is None else window.wait_s(1, self._per_min, now_s) or 0.0

    def count(self, address: str, now_s: float) -> float | None:
        """Count one wrong key: None, or the seconds to wait where it is one too many (it is not
        counted then: who goes on trying is let in once a minute has gone by since the first)."""
        network = network_of(address)
        window = self._windows.get(network)
        if window is None:
            window = self._windows[network] = SlidingWindow()
            if len(self._windows) > MAX_ADDRESSES:
                self._windows.popitem(last=False)
        self._windows.move_to_end(network)
        wait_s = window.wait_s(1, self._per_min, now_s)
        if wait_s == 0:
            window.take(1, now_s)
            return None
        return wait_s

    def __len__(self) -> int:
        return len(self._windows)


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or of IPv6 its /64, which one client has whole."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[str]) -> str:
    """Who asks: `peer`, the other end of the connection, or where that is a trusted proxy the
    address that it names.

    `forwarded_for` is the header X-Forwarded-For, to which every proxy appends whom it heard from:
    read from its end, the first address that is no trusted proxy. What stands before it anybody may
    have written.
    """
    address = peer
    for named in reversed((forwarded_for or "").split(",")):
        if address not in trusted or not named.strip():
            break
        address = named.strip()
    return address
