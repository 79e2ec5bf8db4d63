"""Adapters from a run's artifacts and from a bucket: the two files, and nothing beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.spec import AdapterSource, TrackingSpec
from rayline.tracking import open_run
from rayline.tracking.adapters import fetch_adapter
from support.object_store import BUCKET, s3_server

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)),
    "adapter_model.bin": b"pickle",
    "README.md": b"beside",
}
MOST_BYTES = 1024


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


def fetched(into: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in into.iterdir()}


WANTED = {name: FILES[name] for name in ("adapter_config.json", "adapter_model.safetensors")}


@pytest.mark.parametrize("kept_as", ["adapter", "adapters/legal"])
def test_a_run_gives_its_adapter(
    tracking: TrackingSpec, adapter: Path, into: Path, kept_as: str
) -> None:
    with open_run(tracking, name="job", params={}, tags={}) as run:
        run.log_artifact(adapter, kept_as)
    text = run.run_id if kept_as == "adapter" else f"{run.run_id}/{kept_as}"
    fetch_adapter(AdapterSource(run=text), tracking, into, MOST_BYTES)
    assert fetched(into) == WANTED


def test_a_run_without_an_adapter_is_refused(tracking: TrackingSpec, into: Path) -> None:
    with open_run(tracking, name="job", params={}, tags={}) as run:
        run.log_text("x", "other/file.txt")
    for text in (run.run_id, f"{run.run_id}/other"):
        with pytest.raises(SpecError, match=r"holds no adapter_config\.json"):
            fetch_adapter(AdapterSource(run=text), tracking, into, MOST_BYTES)
    with pytest.raises(SpecError, match="0a1b"):
        fetch_adapter(AdapterSource(run="0a1b"), tracking, into, MOST_BYTES)


def test_a_bucket_gives_its_adapter(endpoint: str, adapter: Path, into: Path) -> None:
    import httpx

    for file in adapter.iterdir():
        httpx.put(f"{endpoint}/{BUCKET}/adapters/legal/{file.name}", content=file.read_bytes())
    source = AdapterSource(bucket=f"s3://{BUCKET}/adapters/legal")
    fetch_adapter(source, TrackingSpec(), into, MOST_BYTES)
    assert fetched(into) == WANTED


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket/adapters/nowhere", "cannot be read|holds no"),
        ("file://etc/adapters", "not an object store's address"),
        ("http://127.0.0.1/x", "not an object store's address"),
    ],
)
def test_a_bucket_that_holds_none_or_is_none_is_refused(
    endpoint: str, into: Path, address: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        fetch_adapter(AdapterSource(bucket=address), TrackingSpec(), into, MOST_BYTES)
    assert fetched(into) == {}
