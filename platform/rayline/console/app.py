"""The FastAPI application of one console."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from rayline.console import chatting, doing, entering, live, reading
from rayline.console.command_lines import CommandLines
from rayline.console.entering import PAGE, Console
from rayline.console.guarding import Guard
from rayline.console.looking import Sight
from rayline.console.settings import ConsoleSettings
from rayline.console.signing import Reception
from rayline.errors import PlacementError, RaylineError, ServingError, SpecError
from rayline.sdk import Client

_STATUS = {SpecError: 404, PlacementError: 503, ServingError: 502}


def console_app(
    settings: ConsoleSettings, client: Client, reception: Reception, port: int
) -> FastAPI:
    """The whole surface; what is not below is a 404. `port` is where it will listen."""
    # Its own description of itself is one page more that would have to be guarded.
    app = FastAPI(title="rayline console", docs_url=None, redoc_url=None, openapi_url=None)
    sight = Sight(settings, client, CommandLines(settings))
    app.state.console = Console(settings, sight, reception, f"rayline_console_{port}")
    for module in (entering, reading, doing, chatting, live):
        app.include_router(module.router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_exception_handler(RaylineError, _refused)
    app.add_middleware(Guard, names=settings.names)
    return app


async def _refused(_: Request, wrong: Exception) -> Response:
    """An error of rayline's tree, in its own words."""
    status = next((code for kind, code in _STATUS.items() if isinstance(wrong, kind)), 500)
    told = wrong.as_dict() if isinstance(wrong, RaylineError) else {"problem": str(wrong)}
    return JSONResponse({"detail": told}, status)
