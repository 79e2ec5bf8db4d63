"""Release: a served model with all its versions, and who of them gets which share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rayline.errors import ServingError
from rayline.serving.rollout.version import Version


@dataclass(frozen=True, slots=True)
class Release:
    """One served model. Kept by the director; changed by the functions of transitions.py alone."""

    model: str
    """The id that clients send."""
    versions: tuple[Version, ...] = ()
    """Oldest first."""
    stable: int | None = None
    """The version that gets what the canary does not; None before the first is up, and after the
    model was taken away."""
    canary: int | None = None
    """The version that is taking over, from its start until it is stable or gone."""
    percent: float = 0.0
    """Share of requests that the canary gets, 0 to 100."""
    goal: float | None = None
    """The share that a person asked for, 0 to 100: it is gone to as replicas come up, and kept,
    unless a gate is broken. None follows the steps of the RolloutSpec."""
    at_once: bool = False
    """A person promoted the canary, or went back to it: it takes over as soon as its replicas can
    carry everything, and no gate is asked."""
    changed_at_s: float = 0.0
    """When the share last changed, or the canary started or came up (seconds since 1970): what it
    is judged on began then."""
    replicas: int = 1
    """How many carry all requests: the stable version's when the canary came up."""
    earlier: tuple[int, ...] = ()
    """Versions that were stable before this one, oldest first: what a rollback goes back to."""

    def version(self, number: int | None) -> Version:
        """The version with this number. Raises ServingError where there is none."""
        for version in self.versions:
            if version.number == number:
                return version
        raise ServingError(
            self.model,
            "has no such version",
            value=number,
            allowed=", ".join(str(version.number) for version in self.versions) or "none yet",
            fix=f"`rayline status {self.model}` lists them",
        )

    def with_version(self, changed: Version) -> Release:
        """A copy in which this version stands instead of the one of its number, or as the
        newest."""
        if all(version.number != changed.number for version in self.versions):
            return replace(self, versions=(*self.versions, changed))
        kept = (changed if one.number == changed.number else one for one in self.versions)
        return replace(self, versions=tuple(kept))
