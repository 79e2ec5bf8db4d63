"""From an AdapterSource to two files on this machine: adapter_config.json and
adapter_model.safetensors, and nothing else of what lies beside them.

PEFT's other form of weights, adapter_model.bin, is a pickle, which runs code when it is read; it is
not even fetched.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from rayline.errors import SpecError
from rayline.spec import AdapterSource, TrackingSpec
from rayline.tracking.store import connect, existing_run, first_line, holds_runs, store_errors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FOLDER = "adapter"
"""Artifact folder of a run that holds its adapter, unless the source names another."""
_MOST_CONFIG_BYTES = 2**20
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_CHUNK_BYTES = 8 * 2**20
_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")


def fetch_adapter(
    source: AdapterSource, tracking: TrackingSpec, folder: Path, most_bytes: int
) -> None:
    """Copy the two files of the adapter into `folder`, which exists and is empty.

    Called by each replica, and by the driver to check. Raises SpecError where there is no such
    adapter, its weights are a pickle, or a file is larger than `most_bytes` (the config: 1 MiB).
    """
    if source.directory is not None:
        _from_folder(Path(source.directory).expanduser().absolute(), source, folder, most_bytes)
    elif source.run is not None:
        _from_run(source.run, source, tracking, folder, most_bytes)
    else:
        _from_bucket(str(source.bucket), source, folder, most_bytes)


def _from_folder(there: Path, source: AdapterSource, folder: Path, most_bytes: int) -> None:
    if not there.is_dir():
        raise SpecError("adapter.source.directory", "no such folder", value=source.directory)
    sizes = {file.name: file.stat().st_size for file in there.iterdir() if file.is_file()}
    for name in _wanted(sizes, source, most_bytes):
        with (there / name).open("rb") as stream:
            _copy(stream, folder / name, sizes[name])


def _from_run(
    text: str, source: AdapterSource, tracking: TrackingSpec, folder: Path, most_bytes: int
) -> None:
    run_id, _, path = text.partition("/")
    if not holds_runs(tracking):
        raise SpecError("adapter.source.run", f"{tracking.uri} does not exist", value=text)
    client = connect(tracking)
    with store_errors(tracking), tempfile.TemporaryDirectory() as scratch:
        run_id = existing_run(client, tracking, run_id).info.run_id
        kept = client.list_artifacts(run_id, path or ADAPTER_FOLDER)
        files = {entry.path.rpartition("/")[2]: entry for entry in kept if not entry.is_dir}
        sizes = {name: int(entry.file_size or 0) for name, entry in files.items()}
        for name in _wanted(sizes, source, most_bytes):
            fetched = Path(client.download_artifacts(run_id, files[name].path, scratch))
            with fetched.open("rb") as stream:
                _copy(stream, folder / name, sizes[name])


def _from_bucket(address: str, source: AdapterSource, folder: Path, most_bytes: int) -> None:
    with _bucket_errors(address):
        system, path = _file_system(address)
        found = system.ls(path, detail=True)
        sizes = {
            str(entry["name"]).rstrip("/").rpartition("/")[2]: int(entry["size"] or 0)
            for entry in found
            if entry["type"] == "file"
        }
        for name in _wanted(sizes, source, most_bytes):
            with system.open(f"{path.rstrip('/')}/{name}", "rb") as stream:
                _copy(cast(BinaryIO, stream), folder / name, sizes[name])


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec

    scheme = address.partition("://")[0]
    if scheme not in _SCHEMES:
        raise SpecError(
            "adapter.source.bucket",
            "not an object store's address",
            value=address,
            allowed=", ".join(f"{name}://" for name in _SCHEMES),
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        # fsspec's own package for this store is not installed; obstore speaks to all of them.
        return _by_obstore(scheme), address.partition("://")[2]
    system, path = fsspec.core.url_to_fs(address)
    return system, str(path)


def _by_obstore(scheme: str) -> Any:
    """Made for this one use: what is registered with fsspec is everybody's."""
    import fsspec
    from obstore.fsspec import FsspecStore

    # fsspec's configuration goes by the protocol that stands in the class.
    kind = type("AdapterStore", (FsspecStore,), {"protocol": scheme})
    endpoint = fsspec.config.conf.get(scheme, {}).get("endpoint_url")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    # Whoever writes http means it; obstore asks for it to be said twice.
    return kind(client_options={"allow_http": endpoint.startswith("http://")})


@contextmanager
def _bucket_errors(address: str) -> Iterator[None]:
    try:
        yield
    except SpecError:
        raise
    # Each store's client raises errors of its own.
    except Exception as wrong:  # noqa: BLE001
        raise SpecError(
            "adapter.source.bucket",
            f"it cannot be read: {first_line(wrong)}",
            value=address,
            fix="check the address and the store's credentials in the environment",
        ) from None


def _wanted(sizes: Mapping[str, int], source: AdapterSource, most_bytes: int) -> tuple[str, str]:
    """The names of the two files, once it is known that they are there and not too large."""
    for name, most in ((CONFIG_FILE, _MOST_CONFIG_BYTES), (WEIGHTS_FILE, most_bytes)):
        if name not in sizes:
            raise _missing(name, sizes, source)
        if sizes[name] > most:
            raise SpecError(
                "adapter.source",
                f"its {name} has {sizes[name]} bytes, more than any adapter of this model",
                value=str(source),
                allowed=f"{most} bytes",
                fix="raise engine.max_lora_rank, or use an adapter of this model",
            )
    return CONFIG_FILE, WEIGHTS_FILE


def _missing(name: str, sizes: Mapping[str, int], source: AdapterSource) -> SpecError:
    pickles = [other for other in _PICKLES if other in sizes]
    if name == WEIGHTS_FILE and pickles:
        return SpecError(
            "adapter.source",
            f"its weights are {pickles[0]}, a pickle, which runs code when it is read",
            value=str(source),
            allowed=WEIGHTS_FILE,
            fix="save it again: model.save_pretrained(folder, safe_serialization=True)",
        )
    return SpecError(
        "adapter.source",
        f"holds no {name}, so it is no adapter",
        value=str(source),
        allowed=f"a folder in PEFT's layout: {CONFIG_FILE}, {WEIGHTS_FILE}",
    )


def _copy(stream: BinaryIO, to: Path, size_bytes: int) -> None:
    """Copy what was promised to be `size_bytes`, and no more."""
    with to.open("wb") as file:
        left = size_bytes
        while left and (chunk := stream.read(min(_CHUNK_BYTES, left))):
            file.write(chunk)
            left -= len(chunk)
