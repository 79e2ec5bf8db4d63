"""Where the process begins and ends: arguments in, exit code out.

Every failure ends here and nowhere else: an error of rayline's tree is printed as its text,
anything else as one line and the name of the file that holds its traceback. With `--json` the error
is the one JSON document on stdout. A traceback is shown only with `-v`.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import FrameType

import typer

from rayline.cli.app import app
from rayline.cli.usage import usage_error
from rayline.errors import InterruptedByUser, RaylineError


def main() -> None:
    """The console script `rayline`."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed, not raised."""
    words = list(args) or ["--help"]
    try:
        # A verb's Screen may have moved stdout: redirecting it to itself puts it back.
        with _terminated_like_interrupted(), redirect_stdout(sys.stdout):
            outcome = app(args=words, prog_name="rayline", standalone_mode=False)
    except RaylineError as error:
        failure = error
    except typer.TyperException as error:
        failure = usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        failure = _interrupted()
    except SystemExit as ended:
        # ray.init puts a SIGTERM handler of its own in place of ours: it exits with the number.
        if ended.code != signal.SIGTERM:
            raise
        failure = _interrupted()
    except Exception as error:  # noqa: BLE001 - the last door: nothing may end in a bare traceback
        failure = _unexpected(error)
    else:
        code = outcome if isinstance(outcome, int) else 0
        if code != InterruptedByUser.exit_code:
            return code
        failure = _interrupted()
    _print(failure, as_json="--json" in words, verbose=bool({"-v", "--verbose"} & set(words)))
    return failure.exit_code


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM (a supervisor's stop) takes the road of Ctrl-C: teardown first, then exit 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted() -> InterruptedByUser:
    return InterruptedByUser("interrupted", "stopped; what was started has been ended")


def _unexpected(error: Exception) -> RaylineError:
    with tempfile.NamedTemporaryFile(
        "w", prefix="rayline-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write("".join(traceback.format_exception(error)))
    wrapped = RaylineError(
        type(error).__name__,
        str(error).strip().partition("\n")[0] or "no message",
        fix=f"read the traceback in {log.name}, or repeat with -v",
    )
    wrapped.__cause__ = error
    return wrapped


def _print(failure: RaylineError, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(failure.as_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"{failure}\n")
    if verbose:
        sys.stderr.write("".join(traceback.format_exception(failure)))
        sys.stderr.write(getattr(failure, "remote_traceback", ""))
