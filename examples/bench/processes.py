"""What a tree of processes costs: CPU seconds by name, memory; and what the rest of the machine
does meanwhile. Imported by the scripts beside it."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import psutil

ENDING_S = 60.0


class Tree:
    """A process and all below it, started here with its output in a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.root = psutil.Popen(
                list(command), env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def members(self) -> list[psutil.Process]:
        """The processes that there are now."""
        return members(self.root.pid)

    def pause(self) -> None:
        """Stop every process of it, those that watch first."""
        for process in self.members():
            process.suspend()

    def go_on(self) -> None:
        """Let every process of it run."""
        for process in self.members():
            process.resume()

    def check(self) -> None:
        """Raise RuntimeError, with its last lines, where it has ended."""
        if self.root.poll() is not None:
            raise RuntimeError(f"a contender ended:\n{self.log.read_text()[-4000:]}")

    def end(self) -> None:
        """Ask the root to end, then end whoever is left."""
        tree = self.members()
        self.go_on()
        if self.root.poll() is None:
            self.root.terminate()
        _, left = psutil.wait_procs(tree, timeout=ENDING_S)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=ENDING_S)


def members(root_pid: int) -> list[psutil.Process]:
    """A process and all below it; none where it has ended."""
    try:
        root = psutil.Process(root_pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


CpuSeconds = dict[int, tuple[str, float]]
"""Name and CPU seconds by process id. Names change: Ray's follow what an actor does."""


def cpu_seconds(root_pid: int) -> CpuSeconds:
    """What every process of a tree has used since it began."""
    found: CpuSeconds = {}
    for process in members(root_pid):
        try:
            with process.oneshot():
                times = process.cpu_times()
                found[process.pid] = called(process), times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return found


def used_between(before: CpuSeconds, after: CpuSeconds) -> dict[str, float]:
    """CPU seconds by name, most first, of processes that were there at the end."""
    used: Counter[str] = Counter()
    for pid, (name, seconds) in after.items():
        _, spent = before.get(pid, (name, 0.0))
        used[name] += seconds - spent
    return {name: round(seconds, 3) for name, seconds in used.most_common() if seconds >= 0.005}


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Memory that they hold; what they share is counted once for each."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def machine_cpu_seconds() -> tuple[float, float]:
    """Busy and stolen CPU seconds of the whole machine since it began."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return busy, times.steal


def called(process: psutil.Process) -> str:
    """A name that says what a process does, the same in every run."""
    line = process.cmdline()
    if not line:
        return str(process.name())
    # Ray and vLLM rename their processes; which method runs, or which of several, is left out.
    if line[0].startswith(("ray::", "VLLM::")):
        return re.split(r"[.#\s]", line[0])[0]
    if Path(line[0]).name.startswith("python"):
        for word, after in itertools.pairwise(line):
            if word == "-m":
                return after
        script = next((word for word in line[1:] if not word.startswith("-")), "-c")
        return "python -c" if script == "-c" or "\n" in script else Path(script).name
    return Path(line[0]).name
