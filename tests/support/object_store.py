"""S3 on loopback, by moto: what checkpoints behind an address are tested against."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; within, fsspec finds it by the environment, here and in every process started
    from here. Yields the address of the endpoint."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "FSSPEC_S3_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        # As fsspec does when it is first imported.
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
        try:
            make_bucket(endpoint)
            yield endpoint
        finally:
            server.stop()


def make_bucket(endpoint: str) -> None:
    """An empty one."""
    import httpx

    httpx.put(f"{endpoint}/{BUCKET}").raise_for_status()


def fresh_address() -> str:
    """A folder of the bucket in which nothing lies yet."""
    return f"s3://{BUCKET}/runs/{uuid.uuid4().hex}"
