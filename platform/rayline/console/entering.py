"""The way in: sign in and out, and what every other route asks for before it answers."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, Field

from rayline import __version__
from rayline.console.guarding import from_own_page
from rayline.console.looking import Sight
from rayline.console.plain import plain
from rayline.console.settings import ConsoleSettings
from rayline.console.signing import Reception, Session, Visitor
from rayline.tracking.following import SILENCE_S
from rayline.tracking.store import without_password

PAGE = Path(__file__).parent / "page"
CSRF_HEADER = "x-console-csrf"
_BEARER = "bearer "

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Console:
    """What the routes of one console share."""

    settings: ConsoleSettings
    sight: Sight
    reception: Reception
    cookie: str
    """Its name: browsers do not tell the ports of one machine apart."""


class Key(BaseModel):
    """What somebody signs in with."""

    key: str = Field(max_length=256)


def console_of(request: Request) -> Console:
    """The console that was asked."""
    found: Console = request.app.state.console
    return found


def _session(request: Request, console: Console) -> Session | None:
    token = request.cookies.get(console.cookie)
    return None if token is None else console.reception.session(token)


def signed_in(request: Request) -> Visitor:
    """Who asks. Raises 401 for nobody: neither a session nor a key in the Authorization header."""
    console = console_of(request)
    session = _session(request, console)
    if session is not None:
        return session.visitor
    header = request.headers.get("authorization", "")
    if header.lower().startswith(_BEARER):
        visitor = console.reception.visitor(header[len(_BEARER) :].strip())
        if visitor is not None:
            return visitor
    raise HTTPException(401, "sign in with a key", {"www-authenticate": "Bearer"})


def deliberate(request: Request, visitor: Annotated[Visitor, Depends(signed_in)]) -> Visitor:
    """Who asks for something to be done, and not by a page of somebody else's. Raises 403."""
    session = _session(request, console_of(request))
    if session is None:
        # A key in the Authorization header: no browser sends that by itself.
        return visitor
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    given = request.headers.get(CSRF_HEADER, "")
    if not from_own_page(origin, host) or not hmac.compare_digest(
        given.encode(), session.csrf.encode()
    ):
        raise HTTPException(403, "this was not asked by the console's own page")
    return visitor


def may_change(visitor: Annotated[Visitor, Depends(deliberate)]) -> Visitor:
    """Who may change something. Raises 403."""
    if not visitor.may_change:
        raise HTTPException(
            403,
            "this console only looks: rayline console --allow-changes, or an API key with the "
            "scope admin, may change things",
        )
    return visitor


def answer(value: Any) -> JSONResponse:
    """A value as JSON."""
    return JSONResponse(plain(value))


@router.get("/")
def index(request: Request) -> Response:
    """The page; for who is not signed in the form, as a 401."""
    if _session(request, console_of(request)) is None:
        return _page("sign-in.html", 401)
    return _page("index.html", 200)


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """The form. The key may stand behind the address's # : browsers send that to nobody."""
    if _session(request, console_of(request)) is not None:
        return RedirectResponse("/", 303)
    return _page("sign-in.html", 200)


@router.post("/api/sign-in")
def sign_in(given: Key, request: Request) -> Response:
    """A session for a key."""
    console = console_of(request)
    if not from_own_page(request.headers.get("origin"), request.headers.get("host", "")):
        raise HTTPException(403, "this was not asked by the console's own page")
    visitor = console.reception.visitor(given.key.strip())
    if visitor is None:
        raise HTTPException(
            401, "This key opens nothing here; the terminal that runs the console shows its key."
        )
    token, session = console.reception.begin(visitor)
    response = answer(_me(console, session.visitor, session.csrf))
    response.set_cookie(
        console.cookie,
        token,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )
    return response


@router.post("/api/sign-out")
def sign_out(request: Request, _: Annotated[Visitor, Depends(deliberate)]) -> Response:
    """The end of a session."""
    console = console_of(request)
    console.reception.end(request.cookies.get(console.cookie, ""))
    response = answer({"signed_in": False})
    response.delete_cookie(console.cookie, path="/", httponly=True, samesite="strict")
    return response


@router.get("/api/me")
def me(request: Request, visitor: Annotated[Visitor, Depends(signed_in)]) -> Response:
    """Who is signed in, and what the console looks at."""
    console = console_of(request)
    session = _session(request, console)
    return answer(_me(console, visitor, None if session is None else session.csrf))


def _me(console: Console, visitor: Visitor, csrf: str | None) -> dict[str, Any]:
    settings = console.settings
    return {
        "name": visitor.name,
        "may_change": visitor.may_change,
        "csrf": csrf,
        "version": __version__,
        "tracking": without_password(settings.tracking.uri),
        "experiment": settings.tracking.experiment,
        "address": settings.address,
        "url": settings.url,
        "silent_after_s": SILENCE_S,
    }


def _page(name: str, status: int) -> Response:
    return FileResponse(PAGE / name, status, media_type="text/html; charset=utf-8")
