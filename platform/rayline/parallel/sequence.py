"""Which tokens of each sequence a rank of the context axis holds: whole numbers, no torch.

Ulysses (Jacobs et al. 2023): consecutive tokens. Ring: a sequence is cut into twice as many blocks
as ranks, and a rank holds a block and the one that lies as far from the end as the first from the
beginning (the zigzag of Llama 3, Grattafiori et al. 2024, section 3.3.2): a late token sees many
others and an early one few, so each rank has as much to do as the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayline.spec import ContextMethod


@dataclass(frozen=True, slots=True)
class SequencePart:
    """One rank's part of every sequence."""

    method: ContextMethod = "ulysses"
    ranks: int = 1
    """Ranks that hold the sequences together."""
    place: int = 0
    """This rank's place among them, counted from 0."""

    def blocks(self, place: int) -> tuple[int, ...]:
        """Numbers of the blocks that the rank at `place` holds, in its order; blocks are equally
        long."""
        if self.method == "ring" and self.ranks > 1:
            return (place, 2 * self.ranks - 1 - place)
        return (place,)

    def spans(self, tokens: int) -> list[tuple[int, int]]:
        """The half-open ranges of a sequence that this rank holds `tokens` of, in its order."""
        own = self.blocks(self.place)
        length = tokens // len(own)
        return [(block * length, (block + 1) * length) for block in own]

    def order(self) -> list[int]:
        """For each block of a whole sequence, first to last: where it lies among all ranks' blocks,
        rank by rank."""
        held = [block for place in range(self.ranks) for block in self.blocks(place)]
        return [held.index(block) for block in range(len(held))]
