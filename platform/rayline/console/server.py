"""The console as a process: a socket, the application on it, until it is interrupted."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn

from rayline.console.app import console_app
from rayline.console.settings import ConsoleSettings
from rayline.console.signing import Reception
from rayline.errors import SpecError
from rayline.sdk import Client

_LAST_WORDS_S = 1
"""How long streams may take to end when the console does."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Where a console answers, and what opens it."""

    url: str
    key: str = field(repr=False)
    may_change: bool
    """Whether that key may do more than look."""

    @property
    def sign_in_url(self) -> str:
        """The address that signs in by itself. The key stands behind the #, which browsers keep to
        themselves."""
        return f"{self.url}/sign-in#key={self.key}"


def serve_console(settings: ConsoleSettings, on_open: Callable[[Opened], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_open` is told once it answers. Called by the command line,
    on the main thread. Raises SpecError where it cannot listen or the store cannot be read,
    PlacementError where the cluster cannot be joined."""
    client = Client(
        address=settings.address,
        jobs_url=settings.jobs_url,
        tracking=settings.tracking,
        store=settings.store,
    )
    # Also lets MLflow be imported before somebody waits for it.
    client.runs(limit=1)
    if settings.address is not None:
        client.deployments()
        client.jobs_url = client.jobs_url or client.dashboard_url()
        settings = dataclasses.replace(settings, jobs_url=client.jobs_url)
    with listening(settings) as opened:
        port = opened.getsockname()[1]
        reception = Reception(settings.store, allow_changes=settings.allow_changes)
        server = uvicorn.Server(server_config(settings, client, reception, port))
        on_open(Opened(_url(settings.host, port), reception.key, settings.allow_changes))
        server.run(sockets=[opened])


def server_config(
    settings: ConsoleSettings, client: Client, reception: Reception, port: int
) -> uvicorn.Config:
    """How uvicorn serves a console."""
    return uvicorn.Config(
        console_app(settings, client, reception, port),
        log_level="warning",
        # Who looked at what is nobody's business, and addresses may hold names.
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


def listening(settings: ConsoleSettings) -> socket.socket:
    """A socket that takes connections. Raises SpecError where the address is taken or is not this
    machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((settings.host, settings.port))
    except OSError as wrong:
        opened.close()
        raise SpecError(
            "--port",
            f"the console cannot listen there: {wrong.strerror}",
            value=f"{settings.host}:{settings.port}",
            fix="--port 0 takes a free one",
        ) from None
    opened.listen()
    return opened


def _url(host: str, port: int) -> str:
    name = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - only compared with
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
