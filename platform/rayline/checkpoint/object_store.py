"""S3, Google's and Azure's stores by obstore, where fsspec's own package for them is not installed.

obstore is one wheel with the stores' protocols in Rust and without dependencies; s3fs, gcsfs and
adlfs each bring a client of their own. Options are fsspec's: FSSPEC_S3_ENDPOINT_URL and the like;
what is not given so, such as credentials, obstore finds in the environment, as the stores' own
tools do (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import fsspec
from obstore.fsspec import BufferedFile, FsspecStore

_OBSTORE_NAMES = {"key": "access_key_id", "secret": "secret_access_key"}
"""What s3fs's options are called by obstore, where the names differ."""
_RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
"""A wrong address is told within seconds; obstore itself would try for three minutes."""


class ObjectStore(FsspecStore):
    """fsspec's interface to one kind of store; `offer` makes a class for each protocol."""

    def __init__(self, **options: Any) -> None:
        named = {_OBSTORE_NAMES.get(name, name): value for name, value in options.items()}
        if str(named.get("endpoint_url", "")).startswith("http://"):
            # Whoever writes http means it; obstore asks for it to be said twice.
            named["client_options"] = {"allow_http": True, **named.get("client_options", {})}
        super().__init__(**{"retry_config": _RETRIES, **named})

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, *_: Any, **__: Any
    ) -> BufferedFile:
        # The size of a request, which obstore's own method does not take from fsspec's callers.
        opened: Any = BufferedFile
        file: BufferedFile = opened(self, path, mode, buffer_size=block_size)
        return file


def offer(protocol: str) -> None:
    """Have fsspec use obstore for addresses of this protocol."""
    kind = type(f"ObjectStore_{protocol}", (ObjectStore,), {"protocol": protocol})
    fsspec.register_implementation(protocol, kind, clobber=True)


PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""What `offer` takes."""
