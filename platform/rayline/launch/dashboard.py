"""Ray's dashboard over HTTP: the Jobs API that `ray job submit` speaks, without Ray.

Routes and documents are those of Ray's OpenAPI file (Ray 2.60: doc/source/cluster/
running-applications/job-submission/openapi.yml) and of its State API, `/api/v0/nodes`. The thin
core can send a job and watch it with httpx; a log comes over a websocket as it grows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from rayline.errors import PlacementError
from rayline.launch.addresses import token_file

Tree = dict[str, Any]
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_LISTEN_S = 0.2
"""How long one look for the next piece of a log takes: so soon an end of following is heard."""
_UNKNOWN = httpx.codes.NOT_FOUND


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One node that is alive, as the dashboard tells it."""

    node_id: str
    head: bool
    resources: Mapping[str, float]
    """What it has in all: CPU, GPU, memory in bytes, accelerator_type:H100 ..."""


class Dashboard:
    """The dashboard at `url`, such as http://head:8265. `headers` go with every request.

    Every method raises PlacementError where it does not answer, asks for a token or refuses.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url
        self._headers = dict(headers)

    def ray_version(self) -> str:
        """Which Ray runs there."""
        return str(self._json("GET", "/api/version")["ray_version"])

    def jobs(self) -> list[Tree]:
        """Every job that was submitted, as Ray describes it."""
        told: Any = self._json("GET", "/api/jobs/")
        return [job for job in told if job.get("submission_id")]

    def job(self, job_id: str) -> Tree | None:
        """One job; None where the cluster does not know it."""
        response = self._request("GET", f"/api/jobs/{job_id}", allowed=(_UNKNOWN,))
        return None if response.status_code == _UNKNOWN else response.json()

    def log(self, job_id: str) -> str:
        """All that a job has printed."""
        return str(self._json("GET", f"/api/jobs/{job_id}/logs")["logs"])

    def follow_log(self, job_id: str, over: threading.Event) -> Iterator[str]:
        """A job's log from its beginning, piece by piece, until it has ended or `over` is set.
        Raises what `websockets` raises where the connection breaks."""
        from websockets.exceptions import ConnectionClosedOK
        from websockets.sync.client import connect

        address = self.url.replace("http", "ws", 1)
        with connect(
            f"{address}/api/jobs/{job_id}/logs/tail",
            additional_headers=self._headers,
            # The dashboard only writes: it hears neither a ping nor a farewell.
            ping_interval=None,
            close_timeout=_LISTEN_S,
            open_timeout=_TIMEOUT.connect,
            max_size=None,
        ) as connection:
            while not over.is_set():
                try:
                    piece = connection.recv(timeout=_LISTEN_S)
                except TimeoutError:
                    continue
                except ConnectionClosedOK:
                    return
                yield piece if isinstance(piece, str) else piece.decode("utf-8", "replace")

    def submit(self, job_id: str, command: str, package: str, variables: Mapping[str, str]) -> bool:
        """Start `command` as a job in the folder of `package` (see `send_package`), with these
        environment variables. False where the id is taken."""
        body = {
            "entrypoint": command,
            "submission_id": job_id,
            "runtime_env": {"working_dir": package, "env_vars": dict(variables)},
            "metadata": {},
        }
        response = self._request("POST", "/api/jobs/", json=body, allowed=range(400, 600))
        if response.is_error and "already exists" not in response.text:
            self._refuse(response)
        return response.is_success

    def stop(self, job_id: str) -> None:
        """Ask a job to end (SIGTERM); Ray kills it once its grace is over."""
        self._request("POST", f"/api/jobs/{job_id}/stop")

    def send_package(self, name: str, content: bytes) -> str:
        """Keep a zip file on the cluster, unless it is there; its address for `submit`. A name
        stands for one content for ever."""
        route = f"/api/packages/gcs/{name}"
        if self._request("GET", route, allowed=(_UNKNOWN,)).status_code == _UNKNOWN:
            self._request("PUT", route, content=content)
        return f"gcs://{name}"

    def nodes(self) -> list[ClusterNode]:
        """The nodes that are alive, the head first."""
        told = self._json("GET", "/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        found = [
            ClusterNode(each["node_id"], bool(each["is_head_node"]), each["resources_total"])
            for each in told
            if each["state"] == "ALIVE"
        ]
        return sorted(found, key=lambda node: (not node.head, node.node_id))

    def _json(self, method: str, route: str) -> Any:
        response = self._request(method, route)
        try:
            return response.json()
        except ValueError:
            raise PlacementError(
                "cluster",
                "what answers there is not Ray's dashboard: it sends no JSON",
                value=self.url,
                fix="give the dashboard's address, such as http://127.0.0.1:8265",
            ) from None

    def _request(
        self,
        method: str,
        route: str,
        *,
        allowed: tuple[int, ...] | range = (),
        json: Tree | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        try:
            response = httpx.request(
                method,
                f"{self.url}{route}",
                json=json,
                content=content,
                headers=self._headers,
                timeout=_TIMEOUT,
                follow_redirects=True,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as wrong:
            raise unreachable(self.url, first_line(wrong)) from None
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise closed(self.url, token_was_wrong=response.status_code == httpx.codes.FORBIDDEN)
        if response.is_error and response.status_code not in allowed:
            self._refuse(response)
        return response

    def _refuse(self, response: httpx.Response) -> NoReturn:
        lines = [line for line in response.text.splitlines() if line.strip()]
        # Ray answers with a traceback, whose last line says what is wrong.
        told = lines[-1].strip()[:300] if lines else response.reason_phrase
        raise PlacementError(
            "cluster",
            f"its dashboard refused: {told} (HTTP {response.status_code})",
            value=self.url,
        )


def unreachable(shown: str | None, why: str) -> PlacementError:
    """The error for a dashboard that does not answer."""
    return PlacementError(
        "cluster",
        f"its dashboard cannot be reached: {why}",
        value=shown,
        fix="check that the cluster runs and that the address is the dashboard's, such as "
        "http://127.0.0.1:8265 (`ray dashboard CLUSTER.yaml` forwards it)",
    )


def closed(shown: str | None, *, token_was_wrong: bool) -> PlacementError:
    """The error for a dashboard that wants another token."""
    return PlacementError(
        "cluster",
        "it is protected by a token, and "
        + ("the token sent is wrong" if token_was_wrong else "none was sent"),
        value=shown,
        fix="export RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or in "
        f"{token_file(os.environ)} (mode 600)",
    )


def first_line(wrong: BaseException) -> str:
    """What an exception says, in a line."""
    lines = str(wrong).strip().splitlines()
    return lines[0][:300] if lines else type(wrong).__name__
