"""Client: the whole line from a notebook; AsyncClient: the same from an event loop.

The room needs only the thin core. Rooms are imported inside the methods, and where one of their
packages is not installed the error names the extra that brings it. client.py holds training and the
record of it; each other module holds what one kind of user does, and Client is all of them.
async_client.py wraps every method once; notebook/ is how values look in a notebook.

    from rayline import Client, JobSpec

    client = Client()
    job = JobSpec.load("jobs/specs/quickstart.yaml")
    client.plan(job).memory
    outcome = client.train(job)
    outcome.model            # registry:quickstart@latest
"""

from rayline.sdk.asking import DEFAULT_URL
from rayline.sdk.async_client import AsyncClient
from rayline.sdk.client import Client

__all__ = ["DEFAULT_URL", "AsyncClient", "Client"]
