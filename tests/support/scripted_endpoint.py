"""A scripted endpoint: a few lines of HTTP that answer as they are told, in the place of a server.
It is for how clients behave; what real servers answer is tested elsewhere."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

KEY = "rk-scripted"


@dataclass
class ScriptedEndpoint:
    """What a prompt says is how it is answered: `ok`, `busy N` (429 N times, then ok), `down N`
    (503 N times), `refuse` (400), `fail` (500), `html`, `break N` (the connection is cut N times),
    `slow MS`."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """How often each prompt came."""
    under_way: int = 0
    most_under_way: int = 0
    needs_key: bool = False
    retry_after: str | None = "0"

    async def answer(self, request: Request) -> Response:
        """One request to any of the routes."""
        if self.needs_key and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "Incorrect API key."}}, 401)
        body = json.loads(await request.body())
        prompt = str(body.get("prompt") or body.get("input"))
        self.asked[prompt] += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self._by(prompt, request.url.path)
        finally:
            self.under_way -= 1

    async def _by(self, prompt: str, path: str) -> Response:
        what, _, number = prompt.partition(" ")
        again = self.asked[prompt] <= int(number or 0)
        headers = {"x-request-id": f"req-{prompt}"}
        if what in ("busy", "down") and again:
            if self.retry_after is not None:
                headers["retry-after"] = self.retry_after
            error = {"error": {"message": "later", "code": "overloaded"}}
            return JSONResponse(error, 429 if what == "busy" else 503, headers)
        if what == "refuse":
            error = {"error": {"message": "no", "code": "bad_prompt"}}
            return JSONResponse(error, 400, headers)
        if what == "fail":
            return JSONResponse({"error": {"message": "broken"}}, 500, headers)
        if what == "html":
            return HTMLResponse("<html>gone</html>", 200)
        if what == "slow":
            await asyncio.sleep(int(number) / 1000)
        return JSONResponse({"choices": [{"text": prompt}], "path": path}, 200, headers)


@contextmanager
def scripted_endpoint() -> Iterator[ScriptedEndpoint]:
    """An endpoint on loopback while it lasts."""
    endpoint = ScriptedEndpoint()
    app = Starlette(routes=[Route("/v1/{path:path}", endpoint.answer, methods=["POST"])])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        endpoint.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@contextmanager
def endpoint_that_hangs_up() -> Iterator[str]:
    """An address where every connection is accepted and closed at once."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        closing = threading.Event()

        def hang_up() -> None:
            while not closing.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        closing.set()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
