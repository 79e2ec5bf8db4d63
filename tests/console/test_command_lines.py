"""Every line that the console shows is one that the command line takes, with the same meaning."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.console import ConsoleSettings
from rayline.console.command_lines import CommandLines
from rayline.spec import TrackingSpec
from support.command_words import parsed

RUN = "0123456789abcdef0123456789abcdef"
PLAIN = CommandLines(ConsoleSettings())
TOLD = CommandLines(
    ConsoleSettings(
        tracking=TrackingSpec(uri="sqlite:///a folder/runs.db", experiment="my tries"),
        store="sqlite:///keys.db",
        url="http://10.0.0.1:8000/v1",
        address="10.0.0.1:6379",
        jobs_url="http://10.0.0.1:8265",
    )
)
CALLS: dict[str, tuple[object, ...]] = {
    "runs": (50,),
    "run": (RUN,),
    "attach": (RUN,),
    "resume": (RUN,),
    "models": (),
    "served": ("chat",),
    "canary": ("chat", 12.5),
    "promote": ("chat",),
    "roll_back": ("chat", 3),
    "jobs": (),
    "stop": ("quickstart-1a2b3c4d",),
    "logs": ("quickstart-1a2b3c4d",),
    "keys": (),
    "lineage": ("bot", 3),
    "usage": ("team",),
    "chat": ("What's that?", "bot", 16, 0.5),
}


def test_every_line_is_in_the_table() -> None:
    methods = inspect.getmembers(CommandLines, inspect.isfunction)
    assert {name for name, _ in methods if not name.startswith("_")} == set(CALLS)


@pytest.mark.parametrize("lines", [PLAIN, TOLD], ids=["plain", "told"])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_command_line_takes_it(lines: CommandLines, name: str) -> None:
    line = getattr(lines, name)(*CALLS[name])
    verb, params = parsed(line)
    assert verb.split()[0] == line.split()[1]
    if lines is PLAIN:
        assert "--tracking-uri" not in line
        assert "--address" not in line
    for option in ("tracking_uri", "experiment", "store"):
        if lines is TOLD and option in params:
            wanted = {
                "tracking_uri": "sqlite:///a folder/runs.db",
                "experiment": "my tries",
                "store": "sqlite:///keys.db",
            }
            assert params[option] == wanted[option]


def test_what_acts_says_what_it_acts_on() -> None:
    assert TOLD.canary("chat", 12.5) == "rayline canary chat 12.5% --address 10.0.0.1:6379"
    assert parsed(TOLD.canary("chat", 12.5))[1]["share"] == "12.5%"
    assert PLAIN.promote("chat") == "rayline promote chat"
    assert PLAIN.roll_back("chat") == "rayline rollback chat"
    assert parsed(PLAIN.roll_back("chat", 3))[1]["to"] == 3
    stop = TOLD.stop("quickstart-1a2b3c4d")
    assert stop == "rayline stop quickstart-1a2b3c4d --address http://10.0.0.1:8265"
    joined = CommandLines(ConsoleSettings(address="auto"))
    # Resuming starts Ray where it stands unless it is told to join; the others join by themselves.
    assert joined.resume(RUN) == f"rayline resume {RUN} --address auto"
    assert joined.promote("chat") == "rayline promote chat"


def test_a_password_is_not_shown() -> None:
    secret = TrackingSpec(uri="postgresql://me:hunter2@host/db")
    lines = CommandLines(ConsoleSettings(tracking=secret, store="postgresql://me:hunter2@host/k"))
    for line in (lines.run(RUN), lines.models(), lines.keys(), lines.usage("key")):
        assert "hunter2" not in line
        assert "postgresql://me:***@host" in line


@given(question=st.text(min_size=1), tokens=st.integers(1, 10**6), warm=st.floats(0, 2))
def test_a_question_arrives_as_it_was_typed(question: str, tokens: int, warm: float) -> None:
    if "\0" in question:
        return
    verb, params = parsed(PLAIN.chat(question, "bot", tokens, warm))
    assert (verb, params["question"], params["model"]) == ("chat", question, "bot")
    assert params["max_tokens"] == tokens
    assert params["temperature"] == pytest.approx(warm, rel=1e-5, abs=1e-300)
