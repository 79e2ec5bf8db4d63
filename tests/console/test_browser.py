"""The console in a real browser, headless: what people see, and what they can do with it.

Runs and their curves come from a real MLflow; the kill and the recovery from one real gang on a
real Ray; chats from the real gateway, whose engines are scripted. Every test also fails on whatever
the browser's console complains about. Screenshots stay in tests/console/screenshots.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright

from rayline.actors.chaos import run_trial
from rayline.console import ConsoleSettings
from rayline.console.entering import PAGE
from rayline.console.server import Opened
from rayline.spec import Fault, StepReport
from rayline.tracking import list_runs, open_run
from support.command_words import parsed
from support.console_house import HousedClient, console

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

SHOTS = Path(__file__).with_name("screenshots")
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 860}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        told = "no Chromium on the path: cluster/requirements/browser.sh installs Debian's"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def looking(settings: ConsoleSettings, client: HousedClient) -> Iterator[Opened]:
    """A console that only looks."""
    with console(settings, client) as opened:
        yield opened


@pytest.fixture(scope="module")
def changing(settings: ConsoleSettings, client: HousedClient) -> Iterator[Opened]:
    """One whose key may change things."""
    with console(dataclasses.replace(settings, allow_changes=True), client) as opened:
        yield opened


@dataclass
class Seen:
    """A page, and what the browser said about it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    bytes: int = 0

    def go(self, view: str, heading: str) -> None:
        self.page.goto(f"{self.page.url.partition('#')[0]}#/{view}")
        expect(self.page.get_by_role("heading", level=1)).to_have_text(heading)
        expect(self.page.locator("main")).to_have_attribute("aria-busy", "false")

    def shot(self, name: str) -> None:
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def see(browser: Browser) -> Iterator[Callable[..., Seen]]:
    """see(opened, viewport=..., dark=...) signs in by the address that the terminal shows."""
    opened_pages: list[tuple[Any, Seen]] = []

    def look(opened: Opened, viewport: Any = DESK, dark: bool = False, key: bool = True) -> Seen:
        context = browser.new_context(
            viewport=viewport, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        seen = Seen(context.new_page())
        seen.page.on("console", lambda said: _note(seen, said.type, said.text))
        seen.page.on("pageerror", lambda wrong: seen.complaints.append(str(wrong)))
        opened_pages.append((context, seen))
        if key:
            seen.page.goto(opened.sign_in_url)
            seen.page.wait_for_url(f"{opened.url}/")
            expect(seen.page.locator("main")).to_have_attribute("aria-busy", "false")
            assert opened.key not in seen.page.url
        return seen

    yield look
    complaints = [told for _, seen in opened_pages for told in seen.complaints]
    for context, _ in opened_pages:
        context.close()
    assert complaints == []


def _note(seen: Seen, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        seen.complaints.append(f"{kind}: {text}")


@dataclass(frozen=True)
class Broken:
    """A run that lost a rank."""

    run_id: str


@pytest.fixture(scope="module")
def broken_run(recorded: Any) -> Broken:
    """Two ranks on two nodes, of which one is killed once: real processes, a real SIGKILL."""
    import ray
    from ray.cluster_utils import Cluster

    job = recorded.job.changed(
        {
            "name": "lossy",
            "steps": 8,
            "plan": {"data": 2},
            "data.sequence_tokens": 64,
            "recovery.snapshot_every_steps": 1,
            "recovery.spares": 0,
        }
    )
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        run_trial(job, "killed", [Fault(kind="kill", rank=1, step=4, phase="backward")])
    finally:
        ray.shutdown()
        cluster.shutdown()
    (run,) = [one for one in list_runs(recorded.tracking, 200) if one.name == "lossy-killed"]
    assert run.status == "finished"
    return Broken(run.run_id)


def views(recorded: Any) -> list[tuple[str, str]]:
    """Every view with its heading."""
    return [
        ("runs", "Runs"),
        (f"runs/{recorded.run_id}", "small"),
        ("searches", "Searches"),
        (f"searches/{recorded.search_id}", "rates"),
        ("models", "Models"),
        ("deployments", "Deployments"),
        ("access", "Keys and usage"),
        ("chat", "Playground"),
        ("jobs", "Jobs"),
    ]


def first_paint_ms(page: Page) -> float:
    """From the request to the first content that is painted."""
    page.reload()
    entry = "performance.getEntriesByName('first-contentful-paint')[0]"
    page.wait_for_function(entry)
    return float(page.evaluate(f"{entry}.startTime"))


def test_it_opens_fast_and_light(see: Any, looking: Opened) -> None:
    seen = see(looking)
    page = seen.page
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    page.reload()
    expect(page.get_by_role("link", name="small")).to_be_visible()
    page.wait_for_load_state("networkidle")
    loaded_bytes = sum(len(one.body()) for one in answers)
    assert 20_000 < loaded_bytes < 300_000
    assert sum(file.stat().st_size for file in PAGE.iterdir()) < 300_000
    paints_ms = [first_paint_ms(page) for _ in range(3)]
    print(f"first paint after {paints_ms} ms, {loaded_bytes} bytes")
    # The best of three: other things run on this machine, too.
    assert min(paints_ms) < 1000
    assert page.get_by_role("navigation", name="Views").get_by_role("link").count() == 7
    expect(page.locator("#rights")).to_have_text("read-only")
    seen.shot("runs")


def test_a_curve_moves_while_somebody_looks(
    see: Any, looking: Opened, recorded: Any, step_report: Callable[[int], StepReport]
) -> None:
    seen = see(looking)
    ended = threading.Event()
    with open_run(
        recorded.tracking, name="live", params={"steps": 500}, tags={"rayline.plan": "one"}
    ) as run:

        def train() -> None:
            step = 0
            while not ended.wait(0.1):
                step += 1
                run.observe(step_report(step))
                if step == 20:
                    run.event("checkpoint", "no room on disk")

        thread = threading.Thread(target=train)
        thread.start()
        try:
            seen.go(f"runs/{run.run_id}", "live")
            chart = seen.page.locator("[data-curve=loss]")
            expect(chart).to_be_visible(timeout=15_000)
            first = int(chart.get_attribute("data-points") or 0)
            drawn = chart.locator("polyline").get_attribute("points")
            seen.page.wait_for_function(
                "([first]) => Number(document.querySelector('[data-curve=loss]').dataset.points)"
                " > first + 10",
                arg=[first],
                timeout=15_000,
            )
            assert chart.locator("polyline").get_attribute("points") != drawn
            happened = seen.page.get_by_role("table", name="Events")
            expect(happened.get_by_text("no room on disk")).to_be_visible(timeout=15_000)
            expect(seen.page.locator("p.live")).to_contain_text("Live: step")
            for name in ("tokens_per_s", "grad_norm", "val_loss"):
                expect(seen.page.locator(f"[data-curve={name}]")).to_be_visible()
            seen.page.locator("[data-curve=loss] .chart-box").press("Home")
            expect(chart.locator("output")).to_have_text("step 1: 8")
            seen.shot("run-live")
        finally:
            ended.set()
            thread.join()
    expect(seen.page.locator("p.live")).to_have_text("This run is over: finished.", timeout=15_000)


def test_the_gang_map_shows_a_kill_and_a_recovery(
    see: Any, looking: Opened, broken_run: Broken
) -> None:
    seen = see(looking)
    seen.go(f"runs/{broken_run.run_id}", "lossy-killed")
    page = seen.page
    expect(page.locator(".seat")).to_have_count(2)
    expect(page.locator(".node")).to_have_count(2)
    expect(page.locator(".seat.replaced")).to_have_count(1)
    replaced = page.locator(".seat[data-rank='1']")
    expect(replaced).to_contain_text("stage 0, data 1, context 0, tensor 0")
    expect(replaced).to_contain_text("took over from process")
    (outage,) = page.locator(".outages > li").all()
    expect(outage).to_contain_text("rank 1 lost")
    expect(outage).to_contain_text("recovered after")
    expect(outage).to_contain_text("in place of process")
    expect(page.locator(".timeline .outage")).to_have_count(1)
    for kind in ("restarted", "recovered"):
        happened = page.get_by_role("table", name="Events")
        expect(happened.get_by_text(kind, exact=True)).to_be_visible()
    page.get_by_text("Show the planner's picture").click()
    expect(page.get_by_role("img", name="The pipeline's timeline")).to_be_visible()
    page.get_by_text("Show the spec that it was started with").click()
    expect(page.locator("pre")).to_contain_text("name: lossy-killed")
    seen.shot("run-recovered")


def ask(page: Page, key: str, question: str, tokens: int) -> None:
    page.get_by_label("API key of the gateway").fill(key)
    page.get_by_label("API key of the gateway").blur()
    expect(page.get_by_label("Model A").locator("option")).to_have_count(3)
    page.get_by_label("Most tokens").fill(str(tokens))
    page.get_by_label("Question", exact=True).fill(question)


def test_a_chat_streams_and_stops(
    see: Any, looking: Opened, client: HousedClient, model_key: str
) -> None:
    seen = see(looking)
    seen.go("chat", "Playground")
    page = seen.page
    ask(page, model_key, "tell me more", tokens=50)
    page.get_by_role("button", name="Ask both").click()
    said = page.get_by_role("log", name="Answers of A").locator(".assistant")
    expect(said).to_contain_text("tell me more")
    before = len(said.inner_text())
    page.wait_for_function(
        "([least]) => document.querySelector('.assistant').textContent.length > least",
        arg=[before],
    )
    page.get_by_role("button", name="Stop", exact=True).click()
    times = page.get_by_role("status", name="Times of A")
    expect(times).to_contain_text("Stopped after")
    rest = len(said.inner_text())
    expect(page.get_by_role("button", name="Ask both")).to_be_enabled()
    time.sleep(0.3)
    assert len(said.inner_text()) == rest
    # And the engines have stopped computing, too.
    assert [engine.load().running for *_, engine in client.house.replicas.values()] == [0, 0]
    page.get_by_label("Most tokens").fill("6")
    page.get_by_label("Question", exact=True).fill("and now")
    page.get_by_role("button", name="Ask both").click()
    expect(times).to_contain_text("6 tokens in")
    expect(times).to_contain_text("TTFT")
    assert model_key not in page.content()


def test_two_versions_are_compared_side_by_side(see: Any, looking: Opened, model_key: str) -> None:
    seen = see(looking)
    seen.go("chat", "Playground")
    page = seen.page
    ask(page, model_key, "who are you", tokens=8)
    page.get_by_label("Model A").select_option(label="bot, version 1 (stable)")
    page.get_by_label("Model B").select_option(label="bot, version 2 (canary)")
    page.get_by_role("button", name="Ask both").click()
    for side, name in (("A", "one"), ("B", "two")):
        log = page.get_by_role("log", name=f"Answers of {side}")
        expect(log.locator(".assistant")).to_have_text(f"{name} who are you {name} who are you ")
        expect(page.get_by_role("status", name=f"Times of {side}")).to_contain_text("8 tokens in")
        line = (
            page.get_by_role("region", name=f"Side {side}").locator(".line code").text_content()
            or ""
        )
        verb, params = parsed(line)
        assert (verb, params["question"], params["model"]) == ("chat", "who are you", "bot")
    seen.shot("chat")


def test_the_canarys_slider_is_off_for_who_only_looks(see: Any, looking: Opened) -> None:
    seen = see(looking)
    seen.go("deployments", "Deployments")
    page = seen.page
    expect(page.get_by_label("Share of version 2 (canary)")).to_be_disabled()
    for name in ("Promote version 2", "Roll back"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()
    expect(page.get_by_text("This key only looks.")).to_be_visible()
    expect(page.get_by_role("img", name="Traffic")).to_have_attribute(
        "aria-label", "Traffic: version 2 gets 10 %, version 1 gets 90 %"
    )
    expect(page.get_by_text("Why so many replicas")).to_be_visible()
    seen.shot("deployments")


def test_without_a_key_there_is_a_401_and_a_form(see: Any, looking: Opened) -> None:
    seen = see(looking, key=False)
    page = seen.page
    response = page.goto(f"{looking.url}/")
    assert response is not None
    assert response.status == 401
    asked = page.request.get(f"{looking.url}/api/runs")
    assert asked.status == 401
    expect(page.get_by_role("heading", name="rayline console")).to_be_visible()
    page.get_by_label("Key").fill("rlc-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("opens nothing here")
    seen.shot("sign-in")
    page.get_by_label("Key").fill(looking.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    # What a browser says of every 401, and nothing else.
    seen.complaints[:] = [told for told in seen.complaints if "401 (Unauthorized)" not in told]


def test_dark_is_the_systems_choice_or_ones_own_and_stays(see: Any, looking: Opened) -> None:
    seen = see(looking, dark=True)
    page = seen.page
    ground = "getComputedStyle(document.body.parentElement).backgroundColor"
    dark = page.evaluate(ground)
    assert page.locator("html").get_attribute("data-theme") == "dark"
    button = page.get_by_role("button", name="Dark")
    expect(button).to_have_attribute("aria-pressed", "true")
    button.press("Enter")
    assert page.locator("html").get_attribute("data-theme") == "light"
    assert page.evaluate(ground) != dark
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "light"
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(page.get_by_role("link", name="small")).to_be_visible()
    assert page.evaluate(ground) == dark
    seen.shot("runs-dark")


def test_nothing_is_wider_than_a_phone(see: Any, looking: Opened, recorded: Any) -> None:
    seen = see(looking, viewport=PHONE)
    for view, heading in views(recorded):
        seen.go(view, heading)
        seen.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        wide = seen.page.evaluate(
            "[...document.querySelectorAll('body *')].filter((one) =>"
            " one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll, .skip')"
            " && getComputedStyle(one).position !== 'absolute').map((one) => one.outerHTML)"
        )
        assert wide == [], view
        width = seen.page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], view
        seen.shot(f"phone-{view.partition('/')[0]}{'-one' if '/' in view else ''}")


def test_every_view_comes_without_a_complaint(
    see: Any, looking: Opened, recorded: Any, broken_run: Broken
) -> None:
    seen = see(looking)
    for view, heading in [*views(recorded), (f"runs/{broken_run.run_id}", "lossy-killed")]:
        seen.go(view, heading)
        expect(seen.page.get_by_role("alert")).to_have_count(0)
        seen.page.go_back()
        seen.page.go_forward()
        expect(seen.page.get_by_role("heading", level=1)).to_have_text(heading)
    # A view that is not there is the first one, a run that is not there a sentence.
    seen.go("nothing", "Runs")
    assert seen.complaints == []
    seen.page.goto(f"{looking.url}/#/runs/{'0' * 32}")
    expect(seen.page.get_by_role("alert")).to_contain_text("no such run")
    seen.complaints[:] = [told for told in seen.complaints if "404 (Not Found)" not in told]


def test_axe_finds_nothing_serious(see: Any, looking: Opened, recorded: Any) -> None:
    axe = Axe()
    for dark in (False, True):
        seen = see(looking, dark=dark)
        for view, heading in views(recorded):
            seen.go(view, heading)
            found = axe.run(seen.page).response["violations"]
            serious = [
                (one["id"], [node["html"] for node in one["nodes"]])
                for one in found
                if one["impact"] in ("serious", "critical", "moderate")
            ]
            assert serious == [], (view, dark)
            if dark:
                name = f"{view.partition('/')[0]}{'-one' if '/' in view else ''}"
                seen.shot(f"dark-{name}")


def test_every_action_shows_the_line_that_does_the_same(
    see: Any, changing: Opened, client: HousedClient, recorded: Any
) -> None:
    seen = see(changing)
    page = seen.page
    shown = set()
    for view, heading in views(recorded):
        seen.go(view, heading)
        for line in page.locator(".line code").all_text_contents():
            shown.add(parsed(line)[0])
    assert shown >= {"runs", "models", "status", "canary", "promote", "rollback", "list"}
    assert shown >= {"keys list", "usage"}
    seen.go("deployments", "Deployments")
    slider = page.get_by_label("Share of version 2 (canary)")
    expect(slider).to_be_enabled()
    line = page.locator(".act", has=slider).locator(".line code")
    expect(line).to_have_text("rayline canary bot 10% --address 10.0.0.1:6379")
    slider.focus()
    with page.expect_response("**/canary") as answered:
        slider.press("ArrowLeft")
    assert answered.value.json()["line"] == "rayline canary bot 9% --address 10.0.0.1:6379"
    expect(line).to_have_text(answered.value.json()["line"])
    assert client.model.release.percent == 9.0
    expect(page.locator("#said")).to_contain_text("rayline canary bot 9%")
    expect(page.get_by_role("img", name="version 2 gets 9 %")).to_be_visible()
    shares = {"Roll back": "rollback", "Promote version 2": "promote"}
    for name, path in shares.items():
        told = page.locator(".act", has_text=name).locator(".line code").first.text_content() or ""
        assert told.split()[1] == path
    seen.shot("deployments-changing")
    with page.expect_response("**/rollback") as answered:
        page.get_by_role("button", name="Roll back", exact=True).click()
    assert answered.value.json()["line"] == "rayline rollback bot --address 10.0.0.1:6379"
    assert client.model.release.canary is None
    expect(page.get_by_role("button", name="Promote version 2")).to_have_count(0)
