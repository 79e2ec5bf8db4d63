"""For all that the console shows and does, the line of `rayline` that shows and does the same.

Pure: settings and ids in, text for a shell out. What is the command line's own default is left out,
so that a line is as short as a person would type it; a database's password is left out, too, and
has to be put back. A test parses every one of them with the command line itself.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from rayline.console.settings import ConsoleSettings
from rayline.sdk import DEFAULT_URL
from rayline.spec import TrackingSpec
from rayline.tracking.store import without_password

_DEFAULT = TrackingSpec()


@dataclass(frozen=True, slots=True)
class CommandLines:
    """The lines of one console."""

    settings: ConsoleSettings

    def runs(self, limit: int) -> str:
        """The list of runs."""
        return _line("runs", "--limit", limit, *self._experiment(), *self._tracking())

    def run(self, run_id: str) -> str:
        """One run."""
        return _line("runs", run_id, *self._experiment(), *self._tracking())

    def attach(self, run_id: str) -> str:
        """Following one run."""
        return _line("attach", run_id, *self._tracking())

    def resume(self, run_id: str) -> str:
        """Going on with a run that failed or was stopped."""
        # Of itself this verb starts Ray where it stands.
        joined = [] if self.settings.address is None else ["--address", self.settings.address]
        return _line("resume", run_id, *self._tracking(), *joined)

    def models(self) -> str:
        """The registered models."""
        return _line("models", *self._tracking())

    def lineage(self, name: str, version: int) -> str:
        """Where a version came from and what came of it."""
        told = (*self._experiment(), *self._tracking(), *self._store())
        return _line("lineage", f"{name}/{version}", *told)

    def served(self, name: str) -> str:
        """A served model with its versions."""
        return _line("status", name, *self._address())

    def canary(self, name: str, percent: float) -> str:
        """The share of the version that takes over."""
        return _line("canary", name, f"{percent:g}%", *self._address())

    def promote(self, name: str) -> str:
        """Everything for the version that takes over."""
        return _line("promote", name, *self._address())

    def roll_back(self, name: str, to: int | None = None) -> str:
        """Back to the version before, or to one by its number."""
        whither = [] if to is None else ["--to", to]
        return _line("rollback", name, *whither, *self._address())

    def jobs(self) -> str:
        """The jobs that were submitted."""
        return _line("list", *self._jobs())

    def stop(self, job_id: str) -> str:
        """The end of a submitted job."""
        return _line("stop", job_id, *self._jobs())

    def logs(self, job_id: str) -> str:
        """What a submitted job prints."""
        return _line("logs", job_id, "--follow", *self._jobs())

    def keys(self) -> str:
        """The API keys."""
        return _line("keys", "list", *self._store())

    def usage(self, by: str) -> str:
        """What was used, added up."""
        return _line("usage", "--by", by, *self._store())

    def chat(
        self,
        question: str,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> str:
        """One question to a served model."""
        words: list[object] = ["chat", question]
        if self.settings.url != DEFAULT_URL:
            words += ["--url", self.settings.url]
        for option, value in (
            ("--model", model),
            ("--max-tokens", max_tokens),
            ("--temperature", None if temperature is None else f"{temperature:g}"),
        ):
            if value is not None:
                words += [option, value]
        # A question may begin like an option.
        if question.startswith("-"):
            words = ["chat", *words[2:], "--", question]
        return _line(*words)

    def _tracking(self) -> list[object]:
        uri = self.settings.tracking.uri
        return [] if uri == _DEFAULT.uri else ["--tracking-uri", without_password(uri)]

    def _experiment(self) -> list[object]:
        name = self.settings.tracking.experiment
        return [] if name == _DEFAULT.experiment else ["--experiment", name]

    def _address(self) -> list[object]:
        address = self.settings.address
        return [] if address in (None, "auto") else ["--address", address]

    def _jobs(self) -> list[object]:
        url = self.settings.jobs_url
        return [] if url is None else ["--address", url]

    def _store(self) -> list[object]:
        store = self.settings.store
        return [] if store is None else ["--store", without_password(store)]


def _line(*words: object) -> str:
    return shlex.join(["rayline", *map(str, words)])
