"""deploy, undeploy, chat: from a model to an address, and a talk with it."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.local_answer import ANSWER_TOKENS, answer_here
from rayline.cli.options import DryRun, Json, RayAddress, Sets, SpecFile, Verbose
from rayline.cli.screen import Screen, packages_silenced

if TYPE_CHECKING:
    from rayline.sdk import Client
    from rayline.serving import Endpoint
    from rayline.serving.client import Message
    from rayline.spec import EngineSpec, ServeSpec

    Answer = Callable[[Sequence[Message]], Iterator[str]]

DEFAULT_URL = "http://127.0.0.1:8000/v1"


def deploy(
    spec: SpecFile,
    sets: Sets,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model on Ray Serve and vLLM; ready once it has generated a token.

    Without --address the cluster is started here and serves until Ctrl-C; with it, the deployment
    stays on that cluster until `rayline undeploy`."""
    from rayline.sdk import Client
    from rayline.spec import ServeSpec
    from rayline.tracking import resolve_model

    screen = Screen(json_wanted=json, verbose=verbose)
    deployment = ServeSpec.load(spec, sets)
    show_deployment(screen, deployment)
    if dry_run:
        if deployment.rehearsal is None:
            resolve_model(deployment.model, deployment.tracking, need_weights=False)
        screen.result(deployment)
        return
    client = Client(address=address)
    endpoint = client.deploy(deployment)
    show_endpoint(screen, endpoint)
    screen.result(endpoint)
    if address is None:
        screen.say("serving until Ctrl-C")
        serve_until_interrupted(client, deployment.name)


def undeploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the deployment.")],
    address: RayAddress = "auto",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Take a deployment off a cluster; open streams may finish first."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    screen.say(f"undeploy {name} from the cluster at {address}")
    if not dry_run:
        Client(address=address).undeploy(name)
        screen.say(f"{name} is gone")
    screen.result({"name": name, "undeployed": not dry_run})


def chat(
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="Ask this and end; else a dialogue.")
    ] = None,
    url: Annotated[str, typer.Option("--url", help="Address of the endpoint, up to /v1.")] = (
        DEFAULT_URL
    ),
    model: Annotated[
        str | None, typer.Option("--model", help="Served model; by default the first one.")
    ] = None,
    here: Annotated[
        str | None,
        typer.Option(
            "--here",
            metavar="REF",
            help="Ask a model in this process instead: directory:PATH, registry:NAME@ALIAS, "
            "run:ID or hub:ID.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="0 always takes the likeliest.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Talk with a served model; the answer streams. Without a question: a dialogue, to Ctrl-D."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    answer: Answer
    if here is not None:
        answer = partial(_answer_here, _model_folder(here), max_tokens)
    else:
        answer = partial(
            Client().stream, url=url, model=model, max_tokens=max_tokens, temperature=temperature
        )
    if question is None:
        _dialogue(screen, answer)
        return
    said = _say_as_it_comes(screen, answer([{"role": "user", "content": question}]))
    screen.result({"question": question, "answer": said})


def _dialogue(screen: Screen, answer: Answer) -> None:
    """Question after question; each answer knows the turns before it."""
    turns: list[Message] = []
    while (question := _asked(screen)) is not None:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": _say_as_it_comes(screen, answer(turns))})
    screen.result(turns)


def _asked(screen: Screen) -> str | None:
    """The next line that is not empty; None at the end of the input."""
    while True:
        if screen.interactive:
            screen.write("> ")
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip():
            return line.strip()


def _say_as_it_comes(screen: Screen, pieces: Iterable[str]) -> str:
    said = ""
    for piece in pieces:
        screen.write(piece)
        said += piece
    screen.say()
    return said


def _model_folder(text: str) -> Path:
    from rayline.spec import ModelRef, TrackingSpec
    from rayline.tracking import resolve_model

    return resolve_model(ModelRef.from_text(text), TrackingSpec())


def _answer_here(folder: Path, max_tokens: int | None, turns: Sequence[Message]) -> Iterator[str]:
    with packages_silenced():
        answer = answer_here(folder, turns, max_tokens or ANSWER_TOKENS)
    yield answer


def show_deployment(screen: Screen, deployment: ServeSpec) -> None:
    """What would be served, where, by how many replicas."""
    scale, engine = deployment.scale, deployment.engine
    replicas = (
        f"{scale.min_replicas} to {scale.max_replicas}, one more above "
        f"{scale.target_ongoing_requests} requests in flight each{prefill_text(engine)}"
    )
    limits = (
        f"vLLM, {engine.dtype}, up to {engine.max_model_len} tokens, "
        f"{engine.max_num_seqs} sequences at once"
    )
    screen.table(
        ["", ""],
        [
            ("deployment", deployment.name),
            ("model", deployment.model),
            ("address", f"http://{deployment.gateway.host}:{deployment.gateway.port}/v1"),
            ("replicas", replicas),
            ("engine", limits),
        ],
    )


def prefill_text(engine: EngineSpec) -> str:
    """The replicas that compute prompts for those; empty where each computes its own."""
    split = engine.split
    if split is None:
        return ""
    return f"; {split.prefill_replicas} for prompts of {split.min_prompt_tokens} tokens and more"


def show_endpoint(screen: Screen, endpoint: Endpoint) -> None:
    """Where it answers, and how to ask."""
    screen.say(f"{endpoint.model} answers at {endpoint.url}")
    screen.say(f'  rayline chat "Hello" --url {endpoint.url}')
    screen.say(f"  {curl_line(endpoint, 'Hello')}")


def curl_line(endpoint: Endpoint, question: str) -> str:
    """The command that asks without rayline, ready for a shell."""
    turns = [{"role": "user", "content": question}]
    body = dump_json({"model": endpoint.model, "messages": turns})
    header = "Content-Type: application/json"
    return shlex.join(["curl", f"{endpoint.url}/chat/completions", "-H", header, "-d", body])


def serve_until_interrupted(client: Client, name: str) -> None:
    """Wait for Ctrl-C, then take the deployment away."""
    try:
        threading.Event().wait()
    finally:
        client.undeploy(name)
