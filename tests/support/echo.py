"""An OpenAI-compatible endpoint of a few lines: it streams the last user's words back."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Echo(http.server.BaseHTTPRequestHandler):
    """Serves one model, called echo."""

    def do_GET(self) -> None:
        self._send(json.dumps({"object": "list", "data": [{"id": "echo"}]}), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = f"{body['model']} {body['messages'][-1]['content']}".split()
        if not body.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1}
            self._send(json.dumps({"choices": [choice], "usage": usage}), "application/json")
            return
        pieces = [words[0], *[f" {word}" for word in words[1:]]]
        events = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
        self._send(
            "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]), "text/event-stream"
        )

    def _send(self, text: str, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def echo_endpoint() -> Iterator[str]:
    """The address of one, up to /v1, for as long as it is held."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
