"""What a replica hands back, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

from rayline.serving.requests.refusal import Refusal


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer that does not stream: the JSON text of its body."""

    json_text: str


Reply = Refusal | WholeAnswer | str
"""What a replica hands back, piece by piece: one Refusal, or one WholeAnswer, or the events of a
stream as text (`data: {...}` and a blank line), the last of them `data: [DONE]`."""
