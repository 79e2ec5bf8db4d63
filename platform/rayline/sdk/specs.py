"""Spec files: those that come with rayline, a first one for what there is, and what may stand in
one. Needs the thin core alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rayline.sdk.notebook import tables
from rayline.spec import Document, JobSpec, ModelRef

if TYPE_CHECKING:
    from rayline.launch.machines import Found
    from rayline.spec.shipped import ShippedSpec


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec that was written for what was found."""

    file: Path
    text: str
    found: Found
    brought: tuple[Path, ...]
    """What it reads of what comes with rayline, copied beside it."""
    command: str
    """The command that runs it."""


class SpecFiles:
    """Writes, copies and checks spec files. `jobs_url` is the dashboard of the cluster that a first
    spec is made for; None makes it for this machine."""

    def __init__(self, jobs_url: str | None) -> None:
        self.jobs_url = jobs_url

    def init(
        self,
        file: str | Path = "job.yaml",
        *,
        model: ModelRef | None = None,
        data: str | None = None,
        plan: Literal["auto", "now"] = "auto",
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> Draft:
        """Write a commented job spec for the cluster at `jobs_url`, or for this machine.

        Without `model` and `data` it trains the bundled tiny ones, which are copied along. `plan`:
        auto is chosen when the job starts, now is the planner's choice for what there is, in full.
        Raises SpecError where the file exists and may not be overwritten, PlacementError where the
        cluster does not answer.

        >>> drafted = client.init("first.yaml")
        >>> JobSpec.load(drafted.file).plan.auto
        True
        >>> drafted.command
        'rayline train first.yaml'
        """
        from rayline.launch.drafting import TINY_MODEL, Wishes, draft, holds_chats
        from rayline.launch.machines import on_cluster, this_machine
        from rayline.planner.request import known_shape
        from rayline.spec import shipped

        target = Path(file)
        shipped.refuse_existing(target, overwrite=overwrite or dry_run)
        found = this_machine() if self.jobs_url is None else on_cluster(self.jobs_url)
        bundled = ModelRef(directory=str(shipped.shipped_root() / TINY_MODEL))
        shape = known_shape(model or bundled)
        wishes = Wishes(
            name=target.stem,
            model=model,
            data=data,
            chats=data is not None and holds_chats(_first_line(Path(data))),
            chosen_now=plan == "now",
        )
        command = (
            f"rayline train {target}"
            if self.jobs_url is None
            else f"rayline submit {target} --address {found.where}"
        )
        text = draft(found, wishes, shape, command)
        brought: list[Path] = []
        if not dry_run:
            shipped.write_file(target, text)
            brought = shipped.bring_along(text, Path.cwd())
            if self.jobs_url is not None:
                brought += shipped.bring_job_script(Path.cwd())
        return Draft(target, text, found, tuple(brought), command)

    def specs(self) -> list[ShippedSpec]:
        """The specs that come with rayline, with what each is for.

        >>> [spec.name for spec in client.specs() if spec.kind == "tune"]
        ['tune/layout', 'tune/quickstart']
        """
        from rayline.spec.shipped import shipped_specs

        return tables.specs(shipped_specs())

    def copy_spec(
        self, name: str, to: str | Path | None = None, *, overwrite: bool = False
    ) -> list[Path]:
        """Copy one of them to the file `to` (else its own name, here), with what it reads of what
        comes with rayline; everything that was written. Raises SpecError.

        >>> client.copy_spec("jobs/quickstart", "mine.yaml")[0]
        PosixPath('mine.yaml')
        >>> JobSpec.load("mine.yaml").name
        'quickstart'
        """
        from rayline.spec.shipped import copy_shipped, find_shipped

        spec = find_shipped(name)
        return copy_shipped(spec, Path(to or spec.path.name), overwrite=overwrite)

    def validate(self, file: str | Path, overrides: Sequence[str] = ()) -> Document:
        """The spec that a file holds, of whichever kind. Raises SpecError naming what is wrong.

        >>> type(client.validate("jobs/specs/quickstart.yaml")).__name__
        'JobSpec'
        """
        from rayline.spec.document import read_yaml
        from rayline.spec.kinds import KINDS, kind_of

        kind = kind_of(read_yaml(file), Path(file))
        return (JobSpec if kind is None else KINDS[kind]).load(file, overrides)

    def schema(self, kind: str) -> dict[str, Any]:
        """JSON Schema of a kind of spec (job, serve, tune, cluster), for editors. Raises SpecError.

        >>> sorted(client.schema("tune")["required"])
        ['job', 'name', 'space', 'trials']
        """
        from rayline.spec.kinds import spec_class

        schema: dict[str, Any] = _any_of(spec_class(kind).model_json_schema())
        return schema


def _any_of(schema: Any) -> Any:
    """The schema with oneOf as anyOf: of an optimizer whose `kind` is left out every kind's schema
    would hold, and the spec takes the default's."""
    if isinstance(schema, list):
        return [_any_of(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        "anyOf" if key == "oneOf" else key: _any_of(part)
        for key, part in schema.items()
        if key != "discriminator"
    }


def _first_line(file: Path) -> str:
    """Of a file on this machine; empty where there is none, or none of text."""
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.readline()
    except (OSError, UnicodeDecodeError):
        return ""
