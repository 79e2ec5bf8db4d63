"""What head and loss take in memory: gathered logits, vocabulary-parallel ones, and in chunks.

    python examples/bench/loss_memory.py            # 49152 words, 4096 tokens, 1 and 2 ranks

Each way is a fresh process a rank (forked, one thread, gloo) that holds the hidden states of one
microbatch and its part of the head, in float32. Measured is how far the peak of its resident memory
rises over forward and backward pass. What is compared, by its rise on the rank that rises most:

    gathered              the ranks' logits joined, torch's cross-entropy on them
    vocabulary-parallel   each rank's own logits, three numbers a token joined
    chunked               the same, with 512 tokens' logits at a time (objective.chunk_tokens)

On one rank the first two have the whole vocabulary. Losses and gradients of all ways are compared
with the first one's. The result file says on what, with which versions and how often.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import leave_result, on_ranks

from rayline.parallel.chunked import summed_in_chunks
from rayline.parallel.collectives import copy_to, gather
from rayline.parallel.cut import even_cut
from rayline.parallel.vocabulary import VocabularySlice
from rayline.train.objective import summed_cross_entropy

CHUNK_TOKENS = 512
MIB = 2**20
Told = tuple[int, float, list[float]]
Loss = Callable[[torch.Tensor, torch.nn.Parameter, torch.Tensor, VocabularySlice], torch.Tensor]


def gathered(
    hidden: torch.Tensor, head: torch.nn.Parameter, labels: torch.Tensor, held: VocabularySlice
) -> torch.Tensor:
    """Every rank has all logits."""
    logits = shared(hidden, held) @ head.T
    if held.group is not None:
        logits = gather(logits, -1, held.group)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def vocabulary_parallel(
    hidden: torch.Tensor, head: torch.nn.Parameter, labels: torch.Tensor, held: VocabularySlice
) -> torch.Tensor:
    """Every rank has its own words' logits."""
    return summed_cross_entropy(shared(hidden, held) @ head.T, labels, held)


def chunked(
    hidden: torch.Tensor, head: torch.nn.Parameter, labels: torch.Tensor, held: VocabularySlice
) -> torch.Tensor:
    """Of these only some tokens' at a time."""

    def loss(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return vocabulary_parallel(rows, head, targets, held)

    return summed_in_chunks(hidden, labels, loss, [head], chunk_tokens=CHUNK_TOKENS)


def shared(hidden: torch.Tensor, held: VocabularySlice) -> torch.Tensor:
    """The hidden states, which every rank multiplies with its own part of the head."""
    return hidden if held.group is None else copy_to(hidden, held.group)


WAYS: dict[str, Loss] = {
    "gathered": gathered,
    "vocabulary-parallel": vocabulary_parallel,
    "chunked": chunked,
}


def peak_bytes() -> int:
    """The most that this process ever held resident (proc(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def live(rank: int, way: str, ranks: int, sizes: tuple[int, int, int]) -> Told:
    """One rank: rise of the peak, seconds, loss, and what tells its gradients apart."""
    tokens, vocab, width = sizes
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, tokens // 4, width, generator=draw).requires_grad_()
    labels = torch.randint(0, vocab, (4, tokens // 4), generator=draw)
    ((first, end),) = even_cut(0, vocab, ranks).spans[rank]
    held = VocabularySlice(first, end - first, vocab, dist.group.WORLD if ranks > 1 else None)
    own = torch.Generator().manual_seed(2 + rank)
    head = torch.nn.Parameter(torch.randn(end - first, width, generator=own) * width**-0.5)
    before, began_s = peak_bytes(), time.perf_counter()
    loss = WAYS[way](hidden, head, labels, held)
    loss.backward()
    taken_s, rise = time.perf_counter() - began_s, peak_bytes() - before
    norms = [float(one.grad.norm()) for one in (hidden, head) if one.grad is not None]
    return rise, taken_s, [float(loss.detach()), *norms]


def compare(ranks: int, rounds: int, sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Every way in turn, `rounds` times."""
    found: dict[str, Any] = {}
    expected: list[float] = []
    for way in WAYS:
        runs = [on_ranks(ranks, live, way, ranks, sizes) for _ in range(rounds)]
        numbers = runs[0][0][2]
        expected = expected or numbers
        apart = [abs(a / b - 1) for a, b in zip(numbers, expected, strict=True)]
        found[way] = {
            "peak_rise_mib": [round(max(told[0] for told in run) / MIB, 1) for run in runs],
            "seconds": [round(max(told[1] for told in run), 2) for run in runs],
            "relative_difference_of_loss_and_gradient_norms": max(apart),
        }
        print(f"{ranks} ranks, {way}: {found[way]}", flush=True)
    rises = {way: statistics.median(one["peak_rise_mib"]) for way, one in found.items()}
    for other in ("gathered", "vocabulary-parallel"):
        found[f"chunked over {other}"] = round(rises["chunked"] / rises[other], 3)
    return found


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="of a microbatch, in 4 sequences")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576, help="of the hidden states")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="in place of the dated file in results/")
    options = parser.parse_args()
    tokens, vocab, width = sizes = (options.tokens, options.vocab, options.width)
    leave_result(
        __file__,
        __doc__,
        f"--tokens {tokens} --vocab {vocab} --width {width} --rounds {options.rounds}",
        options.out,
        case=f"float32, {CHUNK_TOKENS} tokens a chunk; the head has "
        f"{vocab * width * 4 / MIB:.0f} MiB, all logits {tokens * vocab * 4 / MIB:.0f} MiB",
        ranks={str(ranks): compare(ranks, options.rounds, sizes) for ranks in options.ranks},
    )


if __name__ == "__main__":
    main()
