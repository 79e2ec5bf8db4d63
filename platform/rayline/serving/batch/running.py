"""One batch from its file of requests to its file of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rayline.errors import SpecError
from rayline.serving.batch.endpoint import EndpointSettings, run_on_endpoint
from rayline.serving.batch.lines import BatchFile, check_task
from rayline.serving.batch.output import BatchOutput, BatchSummary
from rayline.spec import RequestLimits, ServeSpec

Observer = Callable[[int, int], None]
"""Takes how many requests have their answer, and how many there are."""


def read_batch(requests: Path, deployment: ServeSpec | None = None) -> BatchFile:
    """The requests, looked through. Raises SpecError naming the first line that is wrong, or that
    `deployment` does not answer."""
    file = BatchFile.read(requests, RequestLimits())
    if deployment is not None:
        check_task(file, deployment.engine)
    return file


def run_batch(
    requests: Path,
    answers: Path,
    by: EndpointSettings | ServeSpec,
    *,
    retry_failed: bool = False,
    observe: Observer = lambda done, total: None,
) -> BatchSummary:
    """Answer a file of requests into a file of answers, by a server or by engines that are started
    for it; what `answers` holds already is not asked again.

    Called by the driver, which has joined Ray where engines are started. Raises SpecError for a
    file that is wrong, before anything is asked; ServingError where a server is out of reach, and
    what starting an engine raises. What was answered until then is kept.
    """
    if answers.exists() and answers.samefile(requests):
        raise SpecError("OUT.JSONL", "is the file of requests itself", value=str(answers))
    file = read_batch(requests, by if isinstance(by, ServeSpec) else None)
    total = len(file.lines)
    custom_ids = {line.custom_id for line in file.lines}
    with BatchOutput(answers, custom_ids, retry_failed=retry_failed) as output:
        observe(len(output.done), total)

        def answered() -> None:
            observe(len(output.done), total)

        if isinstance(by, ServeSpec):
            # Ray is imported where engines are started, and not where a server is asked.
            from rayline.serving.app import device_for, pin
            from rayline.serving.batch.engines import run_on_engines

            run_on_engines(file, output, pin(by), device_for(by), answered)
        else:
            run_on_endpoint(file, output, by, answered)
        return output.summary()
