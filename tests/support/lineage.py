"""Whether an address of a lineage leads to something in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def resolves(client: MlflowClient, address: str) -> bool:
    """True for what is there and for models that lie elsewhere; MLflow raises for what is not."""
    place, _, part = address.partition("#")
    kind, _, name = place.partition(":/")
    key, _, wanted = part.partition("=")
    if kind == "runs":
        run = client.get_run(name)
        if key == "dataset":
            return wanted in [read.dataset.digest for read in run.inputs.dataset_inputs]
        return not key or wanted in run.data.tags
    if kind == "models":
        registered, _, version = name.rpartition("/")
        return not key or wanted in client.get_model_version(registered, version).tags
    return address.startswith(("hub:", "directory:"))
