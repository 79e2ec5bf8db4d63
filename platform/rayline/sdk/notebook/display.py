"""IPython told how to draw the values of other rooms, which know nothing of notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rayline.sdk.notebook import cards

_SHOWN: dict[tuple[str, str], Callable[[Any], str]] = {
    ("rayline.actors.driver", "JobOutcome"): cards.job_outcome,
    ("rayline.launch.job_status", "JobStatus"): cards.job_status,
    ("rayline.launch.submission", "Submission"): cards.submission,
    ("rayline.planner.choice", "Choice"): cards.choice,
    ("rayline.planner.deployment", "DeploymentPlan"): cards.deployment_plan,
    ("rayline.planner.job", "JobPlan"): cards.job_plan,
    ("rayline.sdk.specs", "Draft"): cards.draft,
    ("rayline.serving.access.keys", "IssuedKey"): cards.issued_key,
    ("rayline.serving.batch.output", "BatchSummary"): cards.batch_summary,
    ("rayline.serving.deployment", "Endpoint"): cards.endpoint,
    ("rayline.serving.director.status", "ModelStatus"): cards.model_status,
    ("rayline.spec.document", "Document"): cards.document,
    ("rayline.tracking.history", "RunRecord"): cards.run_record,
    ("rayline.tuning.outcome", "SearchOutcome"): cards.search_outcome,
}
"""Module and name of a class to its HTML. IPython looks classes up when it has to draw one, so none
of the rooms is imported for this."""


def register() -> None:
    """Tell the notebook or the IPython that this process runs in; elsewhere do nothing. Called by
    every new client: telling it twice changes nothing."""
    shell = _shell()
    if shell is None or shell.display_formatter is None:
        return
    html = shell.display_formatter.formatters["text/html"]
    for (module, name), show in _SHOWN.items():
        html.for_type_by_name(module, name, show)


def shell_with_kernel() -> Any:
    """The IPython of a notebook, whose outputs can be changed later; None in a terminal."""
    shell = _shell()
    return shell if getattr(shell, "kernel", None) is not None else None


def _shell() -> Any:
    """The IPython that this process runs in; None where it runs in none."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
