"""The console's HTTP surface, without a browser."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from rayline.console import ConsoleSettings
from rayline.console.app import console_app
from rayline.console.signing import Reception
from rayline.sdk import Client
from rayline.serving.access.key_store import open_keys
from rayline.spec import KeySpec, TrackingSpec
from support.command_words import parsed
from support.console_house import HousedClient

HOST = "http://127.0.0.1:8080"
KEY = "rlc-a-key-of-the-tests"


@pytest.fixture
def app(settings: ConsoleSettings, client: HousedClient) -> Any:
    reception = Reception(client.store, allow_changes=False, key=KEY)
    return console_app(settings, client, reception, 8080)


@pytest.fixture
def open_app(settings: ConsoleSettings, client: HousedClient) -> Any:
    """One whose key may change things."""
    reception = Reception(client.store, allow_changes=True, key=KEY)
    return console_app(dataclasses.replace(settings, allow_changes=True), client, reception, 8080)


@asynccontextmanager
async def browser(app: Any, key: str | None = KEY) -> Any:
    """A client that has signed in as a page does, and sends what a page would."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=HOST, timeout=30) as http:
        if key is not None:
            answer = await http.post("/api/sign-in", json={"key": key}, headers={"origin": HOST})
            assert answer.status_code == 200, answer.text
            http.headers.update({"x-console-csrf": answer.json()["csrf"], "origin": HOST})
        yield http


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def paths(app: Any) -> list[tuple[str, str]]:
    return [
        (method, route.path)
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    ]


OPEN = {("GET", "/"), ("GET", "/sign-in"), ("POST", "/api/sign-in")}


def test_whatever_is_served_asks_for_a_key(app: Any) -> None:
    """The list is read from the app, so what is added stands under it."""

    async def work() -> None:
        async with browser(app, key=None) as http:
            asked = [one for one in paths(app) if one not in OPEN]
            assert len(asked) > 18
            for method, path in asked:
                url = path.replace("{run_id}", "0" * 32).replace("{name}", "bot")
                answer = await http.request(method, url.replace("{job_id}", "j"), json={})
                assert answer.status_code == 401, (method, path)
            index = await http.get("/")
            assert index.status_code == 401
            assert "Sign in" in index.text
            assert (await http.get("/sign-in")).status_code == 200
            assert (await http.get("/docs")).status_code == 404
            assert (await http.get("/openapi.json")).status_code == 404

    run(work)


def test_a_wrong_key_is_refused_and_the_right_one_is_a_cookie_for_no_script(app: Any) -> None:
    async def work() -> None:
        async with browser(app, key=None) as http:
            for key in ("", "rlc-wrong", "x" * 5000):
                wrong = await http.post("/api/sign-in", json={"key": key})
                assert wrong.status_code in (401, 422)
            right = await http.post("/api/sign-in", json={"key": KEY})
            cookie = right.headers["set-cookie"]
            assert cookie.startswith("rayline_console_8080=")
            for flag in ("HttpOnly", "SameSite=strict", "Path=/"):
                assert flag in cookie
            assert KEY not in cookie
            assert (await http.get("/")).status_code == 200
            me = (await http.get("/api/me")).json()
            assert (me["name"], me["may_change"]) == ("console key", False)
            # A key in the Authorization header does without a cookie, for scripts.
            http.cookies.clear()
            bearer = {"authorization": f"Bearer {KEY}"}
            assert (await http.get("/api/runs", headers=bearer)).status_code == 200
            assert (await http.get("/api/runs")).status_code == 401

    run(work)


def test_signing_out_ends_it(app: Any) -> None:
    async def work() -> None:
        async with browser(app) as http:
            kept = dict(http.cookies)
            assert (await http.post("/api/sign-out")).status_code == 200
            http.cookies.update(kept)
            assert (await http.get("/api/runs")).status_code == 401

    run(work)


def test_every_answer_tells_browsers_what_they_may_do(app: Any) -> None:
    async def work() -> None:
        async with browser(app) as http:
            for url in ("/", "/sign-in", "/page/main.js", "/api/runs", "/nothing"):
                headers = (await http.get(url, follow_redirects=True)).headers
                policy = headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "script-src 'self'" in policy
                assert "unsafe" not in policy
                assert "frame-ancestors 'none'" in policy
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] == "no-referrer"
            assert (await http.get("/page/main.js")).headers["content-type"].startswith("text/java")
            assert (await http.get("/page/../app.py")).status_code == 404

    run(work)


def test_another_name_for_this_machine_gets_nothing(app: Any) -> None:
    async def work() -> None:
        async with browser(app) as http:
            for name in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example"):
                answer = await http.get("/api/runs", headers={"host": name})
                assert answer.status_code == 421
                assert "rows" not in answer.text

    run(work)


def test_who_only_looks_changes_nothing(app: Any, client: HousedClient) -> None:
    async def work() -> None:
        async with browser(app) as http:
            before = client.model.release
            for path, body in (
                ("canary", {"percent": 50}),
                ("promote", {}),
                ("rollback", {"to": None}),
            ):
                refused = await http.post(f"/api/deployments/bot/{path}", json=body)
                assert refused.status_code == 403
                assert "--allow-changes" in refused.json()["detail"]
            assert (await http.post("/api/jobs/j-1a2b3c4d/stop")).status_code == 403
            assert client.model.release == before

    run(work)


def test_a_page_of_somebody_else_changes_nothing(open_app: Any, client: HousedClient) -> None:
    async def work() -> None:
        async with browser(open_app) as http:
            before = client.model.release
            share = {"percent": 40}
            for headers in (
                {"origin": "https://evil.example"},
                {"origin": "null"},
                {"x-console-csrf": ""},
                {"x-console-csrf": "é".encode("latin-1").decode("latin-1")},
            ):
                raw = {name: value.encode("latin-1") for name, value in headers.items()}
                refused = await http.post("/api/deployments/bot/canary", json=share, headers=raw)
                assert refused.status_code == 403, headers
            assert client.model.release == before

    run(work)


def test_an_action_does_what_its_line_says(open_app: Any, client: HousedClient) -> None:
    async def work() -> None:
        async with browser(open_app) as http:
            done = await http.post("/api/deployments/bot/canary", json={"percent": 5})
            assert done.json()["line"] == "rayline canary bot 5% --address 10.0.0.1:6379"
            assert parsed(done.json()["line"])[1]["share"] == "5%"
            assert (client.model.release.percent, client.model.release.goal) == (5.0, 5.0)
            back = await http.post("/api/deployments/bot/canary", json={"percent": 10})
            assert back.status_code == 200
            assert client.model.release.percent == 10.0
            for wrong in ({"percent": 101}, {"percent": "x"}, {}):
                answer = await http.post("/api/deployments/bot/canary", json=wrong)
                assert answer.status_code == 422

    run(work)


def test_an_operators_api_key_may_change_things_where_the_consoles_may_not(
    app: Any, client: HousedClient
) -> None:
    secret = open_keys(client.store).create(KeySpec(name="operator", scopes=("admin",))).secret

    async def work() -> None:
        async with browser(app, secret) as http:
            assert (await http.get("/api/me")).json()["may_change"] is True
            done = await http.post("/api/deployments/bot/canary", json={"percent": 10})
            assert done.status_code == 200

    run(work)


def test_views_show_what_the_store_has(app: Any, recorded: Any) -> None:
    async def work() -> None:
        async with browser(app) as http:
            runs = (await http.get("/api/runs?limit=100")).json()
            names = [row["summary"]["name"] for row in runs["rows"]]
            assert {"small", "rates"} <= set(names)
            one = (await http.get(f"/api/runs/{recorded.run_id}")).json()
            assert one["view"]["summary"]["step"] == 60
            curves = {curve["measure"]["key"]: curve for curve in one["view"]["curves"]}
            assert curves["loss"]["recorded"] == 60
            assert curves["val_loss"]["steps"][0] == 5
            assert len(one["view"]["gang"]["seats"]) == 4
            spec = (await http.get(f"/api/runs/{recorded.run_id}/spec")).json()
            assert "name: small" in spec["text"]
            picture = (await http.get(f"/api/runs/{recorded.run_id}/plan")).json()
            assert picture["problem"] == ""
            assert picture["svg"].count("worker 1<") == 2
            board = (await http.get(f"/api/searches/{recorded.search_id}")).json()["view"]
            assert board["fields"] == ["optim.lr", "plan.data"]
            assert [one["summary"]["name"] for one in board["trials"]] == [
                "rates-2",
                "rates-0",
                "rates-1",
            ]
            drawn = await http.get(f"/api/searches/{recorded.search_id}/report")
            assert drawn.headers["content-security-policy"].startswith("sandbox allow-scripts;")
            (model,) = (await http.get("/api/models")).json()["rows"]
            assert [hop["kind"] for hop in model["hops"]] == [
                "run",
                "check",
                "version",
                "deployment",
            ]
            assert model["version"]["aliases"] == ["champion"]
            whole = (await http.get("/api/models/bot/1/lineage")).json()
            assert whole["problem"] == ""
            assert "Lineage of bot" in whole["svg"]
            assert recorded.run_id[:8] in whole["svg"]
            assert whole["lines"]["show"].startswith("rayline lineage bot/1")
            unknown = (await http.get("/api/models/bot/7/lineage")).json()
            assert unknown["svg"] == ""
            assert "version '7'" in unknown["problem"]

    run(work)


def test_what_is_not_there_is_told_in_words(app: Any, recorded: Any) -> None:
    async def work() -> None:
        async with browser(app) as http:
            unknown = await http.get(f"/api/runs/{'0' * 32}")
            assert unknown.status_code == 404
            assert "no such run" in unknown.json()["detail"]["problem"]
            assert (await http.get("/api/runs/x' or 1=1")).status_code == 422
            for part in ("plan", "spec"):
                told = (await http.get(f"/api/runs/{recorded.search_id}/{part}")).json()
                assert "keeps no spec.yaml" in told["problem"]
            jobs = (await http.get("/api/jobs")).json()
            assert jobs["rows"] == []
            assert "--address auto" in jobs["problem"]

    run(work)


def test_a_console_over_nothing_shows_nothing_and_says_why(tmp_path: Any) -> None:
    tracking = TrackingSpec(uri=f"sqlite:///{tmp_path}/none.db")
    store = f"sqlite:///{tmp_path}/none-either.db"
    bare = ConsoleSettings(tracking=tracking, store=store)
    client = Client(tracking=tracking, store=store)
    app = console_app(bare, client, Reception(store, allow_changes=False, key=KEY), 8080)

    async def work() -> None:
        async with browser(app) as http:
            for view in ("runs", "searches", "models"):
                assert (await http.get(f"/api/{view}")).json()["rows"] == []
            told = (await http.get("/api/deployments")).json()
            assert "--address auto" in told["problem"]
            access = (await http.get("/api/access?by=nothing")).json()
            assert (access["keys"], access["usage"], access["by"]) == ([], [], "key")

    run(work)
    assert list(tmp_path.iterdir()) == []


def test_deployments_and_answers_are_those_of_the_gateway(app: Any, model_key: str) -> None:
    key = {"x-model-key": model_key}

    async def work() -> None:
        async with browser(app) as http:
            (row,) = (await http.get("/api/deployments")).json()["rows"]
            assert (row["stable"], row["canary"], row["percent"]) == (1, 2, 10.0)
            assert [one["percent"] for one in row["versions"]] == [10.0, 90.0]
            assert row["versions"][1]["scaling"]
            targets = (await http.post("/api/chat/targets", json={}, headers=key)).json()["targets"]
            assert [one["label"] for one in targets] == [
                "bot",
                "bot, version 1 (stable)",
                "bot, version 2 (canary)",
            ]
            for target, name in zip(targets[1:], ("one", "two"), strict=True):
                answer = await http.post("/api/chat/ask", json=question(target), headers=key)
                told = events(answer.text)
                pieces = [data for kind, data in told if kind == "piece"]
                assert "".join(pieces) == f"{name} hello world {name} "
                assert [kind for kind, _ in told if kind != "piece"] == ["line", "done"]
                assert parsed(told[0][1])[1]["question"] == "hello world"
                done = told[-1][1]
                assert done["tokens"] == 4
                assert 0 < done["ttft_ms"] <= 1000 * done["seconds"]

    run(work)


def question(target: dict[str, Any], **more: object) -> dict[str, Any]:
    turns = [{"role": "user", "content": "hello world"}]
    body = {"model": target["model"], "session": target.get("session"), "turns": turns}
    return {**body, "max_tokens": 4, **more}


def events(text: str) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(one.split(": ", 1) for one in block.splitlines() if ": " in one)
        if "data" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_what_the_gateway_refuses_is_told_in_its_words(
    settings: ConsoleSettings, client: HousedClient, model_key: str
) -> None:
    key = {"x-model-key": model_key}
    reception = Reception(client.store, allow_changes=False, key=KEY)
    elsewhere = dataclasses.replace(settings, url="http://127.0.0.1:9/v1")

    async def work() -> None:
        async with browser(console_app(settings, client, reception, 8080)) as http:
            wrong = await http.post(
                "/api/chat/ask", json=question({"model": "nobody"}), headers=key
            )
            (_, (kind, told)) = events(wrong.text)
            assert (kind, told[:8]) == ("wrong", "HTTP 404")
            keyless = await http.post("/api/chat/ask", json=question({"model": "bot"}))
            assert events(keyless.text)[-1][1].startswith("HTTP 401")
        async with browser(console_app(elsewhere, client, reception, 8080)) as http:
            gone = await http.post("/api/chat/ask", json=question({"model": "bot"}))
            assert events(gone.text)[-1][0] == "wrong"
            assert "does not answer" in events(gone.text)[-1][1]
            targets = (await http.post("/api/chat/targets", json={})).json()
            assert targets["targets"] == []
            assert "nobody answers there" in targets["problem"]

    run(work)


def test_a_run_is_followed_to_its_end(app: Any, recorded: Any) -> None:
    async def work() -> None:
        async with browser(app) as http:
            told = events((await http.get(f"/api/runs/{recorded.run_id}/live")).text)
            assert [kind for kind, _ in told] == ["run", "over"]
            assert told[0][1]["view"]["summary"]["status"] == "finished"
            assert told[1][1] == "finished"

    run(work)


def test_no_key_is_ever_logged(
    app: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "rl-secret-of-the-gateway"

    async def work() -> None:
        async with browser(app) as http:
            await http.post("/api/chat/targets", json={}, headers={"x-model-key": secret})
            await http.post("/api/sign-in", json={"key": "rlc-wrong"})
            ask = question({"model": "bot"})
            await http.post("/api/chat/ask", json=ask, headers={"x-model-key": secret})

    run(work)
    said = caplog.text + "".join(capfd.readouterr())
    for word in (KEY, secret, "rlc-wrong"):
        assert word not in said


def test_the_process_needs_no_torch() -> None:
    code = "import sys, rayline.console.server; print('torch' in sys.modules, 'ray' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
