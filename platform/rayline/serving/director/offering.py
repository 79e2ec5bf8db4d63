"""What gateways are told of a model by what the director knows of it itself."""

from __future__ import annotations

from rayline.serving.director import applications
from rayline.serving.director.fleet import Known
from rayline.serving.director.served_model import ServedModel


def known(served: ServedModel) -> Known:
    """All of it, whichever replicas are up. Called each time that a gateway asks."""
    release = served.release
    weights = served.weights
    offered = weights.stable is not None or weights.canary is not None
    return Known(
        weights=weights,
        served=tuple(
            applications.served_as(served.blueprints[version.number], version.number)
            for version in release.versions
            if offered and version.is_up
        ),
        hold_s=max(
            (
                served.blueprints[number].spec.scale.hold_s
                for number in (release.stable, release.canary)
                if number is not None
            ),
            default=0.0,
        ),
        leaving=frozenset() if offered else _leaving(served),
    )


def _leaving(served: ServedModel) -> frozenset[str]:
    """What a model that is being taken away answered to."""
    draining = [one.number for one in served.release.versions if one.state == "draining"]
    blueprints = [served.blueprints[number] for number in draining]
    adapters = {one.name for blueprint in blueprints for one in blueprint.spec.engine.adapters}
    return frozenset({served.release.model, *adapters} if draining else ())
