"""Batches: a file of requests in OpenAI's batch format, answered into a file of answers.

running.py is the whole of it; lines.py what stands in the two files, output.py the file of answers,
which a batch that was interrupted goes on with; endpoint.py asks a server over HTTP, engines.py
starts engines of its own over Ray Data, rows.py is what each of those does.

All but engines.py and rows.py need httpx alone.
"""

from rayline.serving.batch.endpoint import EndpointSettings
from rayline.serving.batch.lines import BatchAnswer, BatchFile, BatchLine
from rayline.serving.batch.output import BatchOutput, BatchSummary
from rayline.serving.batch.running import read_batch, run_batch

__all__ = [
    "BatchAnswer",
    "BatchFile",
    "BatchLine",
    "BatchOutput",
    "BatchSummary",
    "EndpointSettings",
    "read_batch",
    "run_batch",
]
