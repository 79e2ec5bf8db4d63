"""Lines of a worker's log: stamped, whole, from whatever thread."""

import io
import threading

from rayline.actors.worker_log import StampedLines


def test_each_line_bears_time_and_mark() -> None:
    target = io.StringIO()
    lines = StampedLines(target, "rank 3 pp0-dp0-cp0-tp1")
    print("one", file=lines)
    lines.write("two ")
    lines.write("halves\nbegun")
    written = target.getvalue().splitlines()
    assert [line.partition(" | ")[2] for line in written] == ["one", "two halves"]
    assert all(" rank 3 pp0-dp0-cp0-tp1 | " in line for line in written)
    assert written[0][:4].isdigit()


def test_a_progress_bar_leaves_its_last_state() -> None:
    target = io.StringIO()
    StampedLines(target, "rank 0").write("\r 10%\r 50%\r100%\n")
    assert target.getvalue().endswith("| 100%\n")


def test_lines_of_two_threads_do_not_mix() -> None:
    target = io.StringIO()
    lines = StampedLines(target, "rank 0")

    def write(letter: str) -> None:
        for _ in range(200):
            lines.write(letter * 3)
            lines.write(letter * 3 + "\n")

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bodies = [line.partition(" | ")[2] for line in target.getvalue().splitlines()]
    assert sorted(set(bodies)) == ["aaaaaa", "bbbbbb"]
    assert len(bodies) == 400


def test_it_stands_in_for_stdout() -> None:
    lines = StampedLines(io.StringIO(), "rank 0")
    assert lines.writable()
    assert lines.encoding == "utf-8"
    assert not lines.isatty()


def test_rays_own_marks_are_left_out() -> None:
    target = io.StringIO()
    StampedLines(target, "rank 0").write(":actor_name:Worker\nkept\n")
    assert [line.partition(" | ")[2] for line in target.getvalue().splitlines()] == ["kept"]
