"""Adapters: which may be published under which name, and a checked folder for each.

A deployment answers with LoRA adapters under names of their own, published and withdrawn while it
serves. Before an engine sees one, its two files are copied under the hash of their content: what
vLLM reads later, when a place in memory is needed again, is what was checked, and blocks of the
prefix cache, which vLLM tells apart by an adapter's path, are never those of another content.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayline.errors import SpecError
from rayline.serving.adapter_folder import (
    AdapterFacts,
    check_adapter,
    matrix_sizes,
    wrong_adapter,
)
from rayline.spec import AdapterSource, AdapterSpec, EngineSpec, ModelShape, ServeSpec, TrackingSpec
from rayline.tracking.adapters import CONFIG_FILE, WEIGHTS_FILE, fetch_adapter

_FP32_BYTES = 4
_HEADER_BYTES = 2**20
_HASH_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was found to be one of this model, on this machine."""

    name: str
    folder: Path
    """Holds its two files and nothing else; its name is the hash of their content."""
    sha256: str
    """Of its weights' file."""
    facts: AdapterFacts


@dataclass(frozen=True, slots=True)
class AdapterChanges:
    """What makes one list of adapters of another. One that changed its source is in both."""

    withdrawn: tuple[str, ...]
    published: tuple[AdapterSpec, ...]


def adapter_changes(now: Sequence[AdapterSpec], wanted: Sequence[AdapterSpec]) -> AdapterChanges:
    """What has to be withdrawn and published so that `wanted` is served instead of `now`."""
    return AdapterChanges(
        withdrawn=tuple(adapter.name for adapter in now if adapter not in wanted),
        published=tuple(adapter for adapter in wanted if adapter not in now),
    )


def without_adapters(spec: ServeSpec) -> ServeSpec:
    """What an engine is started for. Specs for which this is equal differ at most in their lists of
    adapters, which need no new start, and have as many places for them."""
    engine = spec.engine
    bare = engine.model_copy(update={"adapters": (), "max_adapters": engine.adapter_places})
    return spec.model_copy(update={"engine": bare})


def with_adapters(spec: ServeSpec, adapters: tuple[AdapterSpec, ...]) -> ServeSpec:
    """`spec` with another list of adapters and as many places as before."""
    places = {"adapters": adapters, "max_adapters": spec.engine.adapter_places}
    return spec.model_copy(update={"engine": spec.engine.model_copy(update=places)})


def published(now: Sequence[AdapterSpec], adapter: AdapterSpec) -> tuple[AdapterSpec, ...]:
    """`now` with `adapter`, in place of one of its name."""
    return (*(one for one in now if one.name != adapter.name), adapter)


def withdrawn(now: Sequence[AdapterSpec], name: str) -> tuple[AdapterSpec, ...]:
    """`now` without the adapter of that name. Raises SpecError where there is none."""
    names = sorted(one.name for one in now)
    if name not in names:
        raise SpecError(
            "adapter.name",
            "no adapter of that name is published",
            value=name,
            allowed=", ".join(names) or "none is",
        )
    return tuple(one for one in now if one.name != name)


def check_names_free(spec: ServeSpec, others: Iterable[ServeSpec]) -> None:
    """Refuse a name that another deployment, or an adapter of one, answers to: a gateway could not
    tell them apart. Raises SpecError."""
    names = _names(spec)
    for other in others:
        for name in sorted(names & _names(other)):
            raise SpecError(
                "name" if name == spec.name else "adapter.name",
                f"{other.name} answers to it already",
                value=name,
                fix="call it otherwise",
            )


def check_publishable(
    adapter: AdapterSpec, deployment: str, engine: EngineSpec, published: Collection[str]
) -> None:
    """Refuse a name that is the deployment's, and one adapter more than there are places; what is
    published under the name already is replaced. Raises SpecError."""
    if adapter.name == deployment:
        raise SpecError(
            "adapter.name", "is the deployment's own", value=adapter.name, fix="call it otherwise"
        )
    if adapter.name not in published and len(published) >= engine.adapter_places:
        raise SpecError(
            "adapter.name",
            f"every place is taken: {', '.join(sorted(published)) or 'the engine has none'}",
            value=adapter.name,
            allowed=f"{engine.adapter_places} adapters at once",
            fix="withdraw one, or deploy with a larger engine.max_adapters",
        )


def resolve_adapter(
    adapter: AdapterSpec,
    shape: ModelShape,
    engine: EngineSpec,
    tracking: TrackingSpec,
    store: Path | None = None,
) -> Adapter:
    """Fetch an adapter, check it against the model's shape, and keep it in `store` (by default in
    the user's cache). Called by each replica before its engine is told, and by the driver to check.

    Raises SpecError naming the adapter and what is wrong with it.
    """
    store = store or Path.home() / ".cache" / "rayline" / "adapters"
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching.", dir=store) as scratch:
        copy = Path(scratch) / "adapter"
        copy.mkdir()
        fetch_adapter(adapter.source, tracking, copy, _most_bytes(shape, engine.max_lora_rank))
        weights, config = (_sha256(copy / name) for name in (WEIGHTS_FILE, CONFIG_FILE))
        if adapter.sha256 not in (None, weights):
            raise wrong_adapter(
                adapter.name,
                f"{WEIGHTS_FILE} has the SHA-256 {weights}",
                f"{adapter.sha256}, as the spec says",
                "restore the file, or write its own hash in the spec",
            )
        facts = check_adapter(adapter.name, copy, shape, engine.max_lora_rank)
        digest = hashlib.sha256(f"{weights} {config}".encode()).hexdigest()[:32]
        return Adapter(adapter.name, _kept(copy, store / digest), weights, facts)


def pinned(
    adapter: AdapterSpec, shape: ModelShape, engine: EngineSpec, tracking: TrackingSpec
) -> AdapterSpec:
    """`adapter`, found to be one of this model, with the hash of what was checked: replicas that
    fetch it later get that or nothing. Called by the driver. Raises SpecError."""
    found = resolve_adapter(adapter, shape, engine, tracking)
    source = adapter.source
    if source.directory is not None:
        source = AdapterSource(directory=str(Path(source.directory).absolute()))
    return adapter.model_copy(update={"source": source, "sha256": found.sha256})


def _kept(copy: Path, folder: Path) -> Path:
    """Give a checked copy its final name: a whole folder or none."""
    if not folder.is_dir():
        try:
            copy.rename(folder)
        except OSError:
            # Another replica of this node was faster.
            if not folder.is_dir():
                raise
    return folder


def _most_bytes(shape: ModelShape, rank: int) -> int:
    """The size of an adapter of this rank in every matrix of the model, embedding and head too."""
    sizes = sum(inputs + outputs for inputs, outputs in matrix_sizes(shape).values())
    values = shape.layers * max(1, shape.experts) * sizes + 2 * (shape.vocab + shape.hidden)
    return _HEADER_BYTES * max(1, shape.experts) + _FP32_BYTES * rank * values


def _names(spec: ServeSpec) -> set[str]:
    return {spec.name, *(adapter.name for adapter in spec.engine.adapters)}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
