"""What was started is known, waited for, and ended."""

import socket
import subprocess
import sys

from rayline.cli.processes import descendants, free_port, wait_until_gone


def test_a_free_port_is_taken_as_wanted_and_a_taken_one_is_not() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        found = free_port(taken)
        assert found != taken
    assert free_port(taken) == taken
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", found))


def test_grandchildren_are_found_and_the_stubborn_are_ended() -> None:
    ends_itself = "import time; time.sleep(1)"
    stays = "import time; time.sleep(60)"
    parent = f"""
import subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", code]) for code in ({ends_itself!r}, {stays!r})]
print("started", flush=True)
time.sleep(0.5)
"""
    running = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "started\n"
    started = descendants()
    running.stdout.close()
    assert len(started) == 3
    (killed,) = wait_until_gone(started, timeout_s=3)
    assert killed != started[0]
    assert wait_until_gone(started, timeout_s=3) == []
