"""keys, usage: who may ask served models, how much, and what they used."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayline.cli.options import DryRun, Json, Verbose
from rayline.cli.screen import Screen
from rayline.errors import SpecError

if TYPE_CHECKING:
    from rayline.sdk import Client
    from rayline.serving.access.keys import ApiKey, IssuedKey
    from rayline.serving.access.usage import UsageSum
    from rayline.spec import Limits

keys = typer.Typer(invoke_without_command=True)

KEY_COLUMNS = ("key", "id", "team", "scopes", "models", "limits", "priority", "state")
_USAGE_COLUMNS = ("requests", "cut", "failed", "refused", "prompt", "cached", "answer", "tokens")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Name or id of the key.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The gateway's database, gateway.store in its spec; by default sqlite:///serving.db.",
    ),
]
Rpm = Annotated[int | None, typer.Option("--rpm", help="Most requests a minute.")]
Tpm = Annotated[
    int | None, typer.Option("--tpm", help="Most tokens a minute, prompts and answers together.")
]
Budget = Annotated[
    int | None,
    typer.Option("--budget", help="Most tokens in a period, prompts and answers together."),
]
Per = Annotated[
    str, typer.Option("--per", help="Period of the budget: day, month (in UTC) or total.")
]


@keys.callback(epilog="Example: rayline keys")
def all_keys(
    context: typer.Context, store: StoreUrl = None, json: Json = False, verbose: Verbose = False
) -> None:
    """List the API keys of served models, or make, limit and end them."""
    if context.invoked_subcommand is None:
        list_keys(store, json, verbose)


@keys.command("list", epilog="Example: rayline keys list --json")
def list_keys(store: StoreUrl = None, json: Json = False, verbose: Verbose = False) -> None:
    """List the keys, revoked and expired ones too; secrets are kept nowhere."""
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(store)
    found = client.keys()
    if found:
        screen.table(KEY_COLUMNS, [_key_row(key) for key in found])
    else:
        screen.say(f"no keys in {client.store}; make one: rayline keys create NAME")
    screen.result(found)


@keys.command(epilog="Example: rayline keys create notebook --team research --tpm 60000")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")],
    team: Annotated[str | None, typer.Option("--team", help="Whose it is.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            help="What it may do: inference, tokenize, models, metrics, admin; else the first "
            "three. May stand several times.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Model that it may ask; else all. May stand several times."),
    ] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    budget: Budget = None,
    per: Per = "total",
    priority: Annotated[
        str, typer.Option("--priority", help="Its class in the queue: high, normal or low.")
    ] = "normal",
    weight: Annotated[
        int, typer.Option("--weight", help="Its share among the keys of its class.")
    ] = 1,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="WHEN", help="In 30d, 12h ..., or a day.")
    ] = None,
    store: StoreUrl = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a key. Its secret is shown once and kept nowhere."""
    from rayline.spec import KeySpec

    screen = Screen(json_wanted=json, verbose=verbose)
    given: dict[str, Any] = {
        "name": name,
        "team": team,
        "scopes": scope or None,
        "models": model or None,
        "priority": priority,
        "weight": weight,
        "expires_in_s": None if expires is None else _until_s(expires),
    }
    chosen = {field: value for field, value in given.items() if value is not None}
    limits = _limits(rpm, tpm, budget, per)
    spec = KeySpec.parse({**chosen, "limits": limits.model_dump()}, origin="the options")
    client = client_of(store)
    if dry_run:
        screen.say(f"would make key {name} in {client.store}: {limits_text(spec.limits)}")
        screen.result({"key": spec, "secret": None})
        return
    show_secret(screen, client.create_key(spec), "made")


@keys.command(epilog="Example: rayline keys rotate notebook --overlap 1h")
def rotate(
    name: KeyName,
    overlap: Annotated[
        str | None,
        typer.Option("--overlap", metavar="TIME", help="How long the old secret holds: 1h, 2d ..."),
    ] = None,
    store: StoreUrl = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Give a key a new secret; the old one ends at once, or after --overlap."""
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(store)
    overlap_s = 0.0 if overlap is None else _duration_s(overlap, "--overlap")
    if dry_run:
        key = client.key(name)
        screen.say(f"would give {key.name} ({key.id}) a new secret")
        screen.result({"key": key, "secret": None})
        return
    show_secret(screen, client.rotate_key(name, overlap_s=overlap_s), "renewed")


@keys.command(epilog="Example: rayline keys revoke notebook")
def revoke(
    name: KeyName,
    store: StoreUrl = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """End a key for good; every gateway refuses it within a second."""
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(store)
    key = client.key(name) if dry_run else client.revoke_key(name)
    screen.say(f"{key.name} ({key.id}) {'would be' if dry_run else 'is'} revoked")
    screen.result(key)


@keys.command(
    epilog="Example: rayline keys team research --tpm 500000 --budget 20000000 --per month"
)
def team(
    name: Annotated[str, typer.Argument(metavar="TEAM", help="Name of the team.")],
    rpm: Rpm = None,
    tpm: Tpm = None,
    budget: Budget = None,
    per: Per = "total",
    store: StoreUrl = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Limit all keys of a team together; without options its limits are lifted."""
    screen = Screen(json_wanted=json, verbose=verbose)
    limits = _limits(rpm, tpm, budget, per)
    if not dry_run:
        client_of(store).limit_team(name, limits)
    screen.say(f"team {name}{' would have' if dry_run else ' has'} {limits_text(limits)}")
    screen.result({"team": name, "limits": limits})


def usage(
    by: Annotated[
        str, typer.Option("--by", help="A line for each key, team, model, variant or day.")
    ] = "key",
    key: Annotated[str | None, typer.Option("--key", help="Only this key: name or id.")] = None,
    team: Annotated[str | None, typer.Option("--team", help="Only this team.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="From 7d, 12h ... ago on, or from a day on."),
    ] = None,
    store: StoreUrl = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Add up what was asked and answered: requests and tokens of every key, team, model or day."""
    from rayline.spec import UsageQuery

    screen = Screen(json_wanted=json, verbose=verbose)
    given = {"by": by, "key": key, "team": team, "model": model}
    since_s = None if since is None else _since_s(since)
    client = client_of(store)
    found = client.usage(UsageQuery.parse({**given, "since_s": since_s}, origin="the options"))
    if found:
        screen.table((by, *_USAGE_COLUMNS), [_usage_row(line) for line in found])
    else:
        screen.say(f"no usage in {client.store}")
    screen.result(found)


def client_of(store: str | None) -> Client:
    """A client of the gateway's store; None takes the default one."""
    from rayline.sdk import Client

    return Client(store=store)


def show_secret(screen: Screen, issued: IssuedKey, what: str) -> None:
    """The one time that a secret is seen."""
    key = issued.key
    screen.say(f"{key.name} ({key.id}) is {what}: {limits_text(key.limits)}")
    screen.say(f"  {issued.secret}")
    screen.say("Keep it now: it is shown this once and kept nowhere.")
    screen.result(issued)


def limits_text(limits: Limits) -> str:
    """Limits for a person: 60 requests/min, 2,000,000 tokens/month."""
    parts = []
    if limits.requests_per_min is not None:
        parts.append(f"{limits.requests_per_min:,} requests/min")
    if limits.tokens_per_min is not None:
        parts.append(f"{limits.tokens_per_min:,} tokens/min")
    if limits.budget_tokens is not None:
        per = "in all" if limits.budget_period == "total" else f"/{limits.budget_period}"
        parts.append(f"{limits.budget_tokens:,} tokens{'' if per[0] == '/' else ' '}{per}")
    return ", ".join(parts) or "no limits"


def _limits(rpm: int | None, tpm: int | None, budget: int | None, per: str) -> Limits:
    from rayline.spec import Limits

    given = {
        "requests_per_min": rpm,
        "tokens_per_min": tpm,
        "budget_tokens": budget,
        "budget_period": per,
    }
    return Limits.parse(given, origin="the options")


def _key_row(key: ApiKey) -> tuple[object, ...]:
    return (
        key.name,
        key.id,
        key.team,
        ",".join(key.scopes),
        "all" if key.models is None else ",".join(key.models),
        limits_text(key.limits),
        key.priority if key.weight == 1 else f"{key.priority} x{key.weight}",
        _state(key),
    )


def _state(key: ApiKey) -> str:
    if key.revoked_at_s is not None:
        return f"revoked {_day(key.revoked_at_s)}"
    if key.expires_at_s is None:
        return "in use"
    return (
        f"{'expired' if key.expires_at_s <= _now_s() else 'in use until'} {_day(key.expires_at_s)}"
    )


def _usage_row(line: UsageSum) -> tuple[object, ...]:
    name = line.name or "-"
    label = name if line.group in ("", line.name) else f"{name} ({line.group})"
    counts = (line.requests, line.cut, line.failed, line.refused)
    tokens = (line.prompt_tokens, line.cached_tokens, line.completion_tokens, line.tokens)
    return (label, *(f"{count:,}" for count in (*counts, *tokens)))


def _day(at_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s).astimezone():%Y-%m-%d %H:%M}"


def _now_s() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def _until_s(when: str) -> float:
    """Seconds from now until a day begins (in UTC), or a duration."""
    begins_s = _begin_s(when)
    return _duration_s(when, "--expires") if begins_s is None else begins_s - _now_s()


def _since_s(when: str) -> float:
    """When a day began (in UTC), or a duration ago; Unix time."""
    begun_s = _begin_s(when)
    return _now_s() - _duration_s(when, "--since") if begun_s is None else begun_s


def _begin_s(text: str) -> float | None:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        return None


def _duration_s(text: str, option: str) -> float:
    found = re.fullmatch(r"(\d+)([smhdw])", text)
    if found is None:
        raise SpecError(
            option,
            "neither a time nor a day",
            value=text,
            allowed="a number with s, m, h, d or w behind it; a day, such as 2027-01-31",
            fix=f"{option} 7d, or 1h",
        )
    return float(found[1]) * _UNITS_S[found[2]]
