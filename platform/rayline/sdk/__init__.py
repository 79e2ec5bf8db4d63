"""Client: the whole line from a notebook.

The room needs only the thin core. Rooms are imported inside the methods, and where one of their
packages is not installed the error names the extra that brings it.

    from rayline import Client, JobSpec

    client = Client()
    job = JobSpec.load("jobs/specs/quickstart.yaml")
    client.plan(job).memory
    outcome = client.train(job)
    outcome.model            # registry:quickstart@latest
"""

from rayline.sdk.client import Client
from rayline.sdk.served_models import DEFAULT_URL

__all__ = ["DEFAULT_URL", "Client"]
