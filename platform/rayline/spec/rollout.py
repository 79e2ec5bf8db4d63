"""RolloutSpec: how one version of a model gives way to the next."""

from __future__ import annotations

from rayline.spec.document import Document


class RolloutSpec(Document):
    """How a new version takes over from the one that serves."""
