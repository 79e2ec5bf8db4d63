"""Contenders that stand side by side and take turns by slices of some seconds.

While one runs, every process of the others is stopped. So a drift of the machine's speed, which is
larger than what is looked for, meets all alike. Compared are steps that lie whole within a slice;
starting up is not counted. Imported by the scripts beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from processes import Tree

SETTLING_STEPS = 5
"""Of each contender, before the slices begin."""

Slices = list[list[float]]
"""Seconds of the steps that lie whole in each slice of one contender."""


class Contender:
    """A tree of processes that steps until it is ended. Of each step it appends a line to `steps`:
    its begin and its end (Unix time), and whatever else it has to say."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], steps: Path) -> None:
        self._steps = steps
        self._tree = Tree(command, environment, steps.with_suffix(".log"))

    def steps(self) -> list[tuple[float, float]]:
        """Begin and end of every step so far."""
        return [(float(line[0]), float(line[1])) for line in self.lines()]

    def lines(self) -> list[list[str]]:
        """The words of every whole line so far."""
        if not self._steps.exists():
            return []
        return [line.split() for line in self._steps.read_text().split("\n")[:-1]]

    def settle(self) -> None:
        """Return once it steps; raises as `check` does."""
        while len(self.steps()) < SETTLING_STEPS:
            self.check()
            time.sleep(0.2)

    def check(self) -> None:
        """Raise RuntimeError, with its last lines, where it has ended."""
        self._tree.check()

    def pause(self) -> None:
        """Stop every process of the tree."""
        self._tree.pause()

    def go_on(self) -> None:
        """Let every process of the tree run."""
        self._tree.go_on()

    def end(self) -> None:
        """End the tree at once: nothing of it is wanted any more."""
        tree = self._tree.members()
        for process in tree:
            process.kill()
        psutil.wait_procs(tree, timeout=10)


def take_turns(
    contenders: Mapping[str, Contender], slices: int, slice_s: float
) -> dict[str, Slices]:
    """Let each of them, which are all paused, run for `slices` slices; who begins changes from one
    to the next. Raises RuntimeError where one has ended."""
    windows: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(slices):
        for name in order if number % 2 == 0 else reversed(order):
            contenders[name].go_on()
            began_s = time.time()
            time.sleep(slice_s)
            windows[name].append((began_s, time.time()))
            contenders[name].pause()
    for one in contenders.values():
        one.check()
    return {name: _within(one.steps(), windows[name]) for name, one in contenders.items()}


def _within(steps: list[tuple[float, float]], windows: list[tuple[float, float]]) -> Slices:
    return [
        [end_s - begin_s for begin_s, end_s in steps if first_s <= begin_s and end_s <= last_s]
        for first_s, last_s in windows
    ]


def measures(seconds: Slices) -> dict[str, Any]:
    """Count, mean and median of a contender's steps."""
    flat = [one for slice_ in seconds for one in slice_]
    return {
        "steps": len(flat),
        "mean_step_s": statistics.mean(flat),
        "median_step_s": statistics.median(flat),
    }


def ratios(ours: Slices, theirs: Slices) -> dict[str, Any]:
    """Our steps per second over theirs: by means and medians of all steps, and by pairs of slices
    that followed each other."""
    pairs = [
        statistics.mean(b) / statistics.mean(a)
        for a, b in zip(ours, theirs, strict=True)
        if a and b
    ]
    quarter = statistics.quantiles(pairs, n=4)
    mine, other = measures(ours), measures(theirs)
    return {
        "of_means": other["mean_step_s"] / mine["mean_step_s"],
        "of_medians": other["median_step_s"] / mine["median_step_s"],
        "of_pairs_median": statistics.median(pairs),
        "of_pairs_quartiles": [quarter[0], quarter[2]],
    }
