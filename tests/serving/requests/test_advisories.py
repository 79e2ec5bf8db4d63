"""One test for each published weakness of the engine: what an attacker would send is refused before
it gets there, or the version that is pinned has it mended.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import rayline.serving.requests
from rayline.serving.requests import ROUTES, RefusedError, parse_request
from rayline.serving.requests.fields import fields_of
from rayline.serving.settings import engine_arguments
from rayline.spec import ModelRef, ServeSpec
from support.asking import LIMITS, PLAIN, encoded, refused

ROOT = Path(__file__).resolve().parents[3]
LIST = ROOT.parent / "shared" / "data" / "vllm_advisories.md"

Check = Callable[[], None]
CHECKS: dict[str, Check] = {}
"""By every name that the weakness goes by."""


def about(*names: str) -> Callable[[Check], Check]:
    def keep(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return keep


def pinned() -> tuple[int, ...]:
    """The version of vLLM that is installed with this package."""
    serve = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["serve"]
    (pin,) = [line for line in serve if line.startswith("vllm")]
    return tuple(int(part) for part in pin.removeprefix("vllm==").split("."))


def paths() -> set[str]:
    return {entry.path for entry in ROUTES}


def part(**content: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [content]}]}


@about("PYSEC-2026-4199")
def a_failing_grammar_kills_the_engine() -> None:
    assert pinned() >= (0, 30)
    # The same from another side, found here: an allocation of 16 GiB ends the process.
    costly = {"type": "array", "items": {}, "maxItems": 10**9}
    assert refused({"structured_outputs": {"json": costly}}).status == 400


@about("PYSEC-2026-4353")
def placeholders_at_the_engines_own_route() -> None:
    assert not [path for path in paths() if "generate" in path or "inference" in path]


@about("PYSEC-2026-4325")
def methods_become_labels_of_metrics() -> None:
    assert {entry.method for entry in ROUTES} == {"GET", "POST"}


@about("PYSEC-2026-4184", "CVE-2026-130686")
def media_is_fetched_before_it_is_counted() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/huge.png"}}
    assert refused(part(**image)).param == "messages[0].content[0].type"
    many = {"messages": [{"role": "user", "content": [image] * 200}]}
    assert refused(many).param == "messages[0].content[0].type"
    assert refused(part(type="video_url", video_url={"url": "file:///dev/zero"})).status == 400
    assert refused(part(type="input_audio", input_audio={"data": "AAAA"})).status == 400


@about("CVE-2026-94626", "CVE-2025-32444")
def the_transfer_of_caches_is_the_servers_own() -> None:
    asked_for = {"kv_transfer_params": {"tp_size": 10**9, "remote_host": "10.0.0.1"}}
    for route in ("chat", "completions", "responses"):
        assert refused(asked_for, route).param == "kv_transfer_params"
    assert "kv_transfer_config" not in engine_arguments(spec(), "gpu")


@about("PYSEC-2026-4361", "CVE-2026-114052")
def tokenizing_without_a_key_and_without_a_bound() -> None:
    scopes = {entry.path: entry.scope for entry in ROUTES}
    assert scopes["/tokenize"] == scopes["/detokenize"] == "tokenize"
    endless = refused({"prompt": "x" * (LIMITS.max_text_chars + 1)}, "tokenize")
    assert endless.code == "string_above_max_length"


@about("PYSEC-2026-4344", "PYSEC-2026-4349", "chat_template_kwargs stall")
def a_template_of_the_clients() -> None:
    endless = "{% for i in range(10**9) %}x{% endfor %}"
    for route in PLAIN:
        assert refused({"chat_template": endless}, route).param == "chat_template"
        inside = refused({"chat_template_kwargs": {"chat_template": endless}}, route)
        assert inside.param == "chat_template_kwargs"


@about("CVE-2026-115912", "GHSA-6757-hggm-hp2w")
def a_forged_handle_to_shared_memory() -> None:
    handle = {"type": "image_embeds", "image_embeds": {"shm": "psm_0"}, "uuid": "x"}
    assert refused(part(**handle)).status == 400
    assert refused({"mm_processor_kwargs": {"handle": "psm_0"}}).param == "mm_processor_kwargs"
    assert refused({"mm_payload": "tensors"}).param == "mm_payload"


@about("CVE-2025-62164", "CVE-2026-56340", "PYSEC-2026-2303", "wrong-shape embeddings")
def embeddings_in_the_place_of_a_prompt() -> None:
    body = {"prompt": None, "prompt_embeds": "UEsDBAo="}
    assert refused(body, "completions").status == 400
    assert refused({"prompt_embeds": "UEsDBAo="}, "completions").param == "prompt_embeds"
    assert refused(part(type="prompt_embeds", data="UEsDBAo=")).status == 400
    assert refused(part(prompt_embeds="UEsDBAo=")).status == 400
    assert "enable_prompt_embeds" not in engine_arguments(spec(), "gpu")


@about("PYSEC-2026-2298")
def as_many_choices_as_memory_holds() -> None:
    assert refused({"n": 10**9}).code == "integer_above_max_value"
    assert refused({"n": 16, "prompt": ["x"] * 64}, "completions").param == "n"
    assert refused({"best_of": 10**9}, "completions").param == "best_of"


@about("Nemotron auto_map RCE")
def code_that_comes_with_a_model() -> None:
    for device in ("cpu", "gpu"):
        assert engine_arguments(spec(), device)["trust_remote_code"] is False


@about("outlines cache fills disk")
def a_cache_of_patterns_on_disk() -> None:
    for field in ("guided_decoding_backend", "backend", "_backend"):
        body = {"structured_outputs": {"regex": "a", field: "outlines"}}
        assert refused(body).param == f"structured_outputs.{field}"
        assert refused({field: "outlines"}).param == field


@about("CVE-2026-41523")
def python_without_asserts() -> None:
    room = Path(inspect.getfile(rayline.serving.requests)).parent
    for file in room.glob("*.py"):
        assert not [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assert)
        ]
    code = (
        "from rayline.serving.requests import RefusedError, parse_request\n"
        "from rayline.spec import RequestLimits\n"
        "try:\n"
        '    parse_request(\'chat\', b\'{"model": "bot", "chat_template": 1}\', RequestLimits())\n'
        "except RefusedError as refused:\n"
        "    print(refused.refusal.param)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "chat_template"


def spec() -> ServeSpec:
    return ServeSpec(name="bot", model=ModelRef(hub="a/b"))


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_it_stops_before_the_engine(name):
    CHECKS[name]()


def test_every_advisory_that_is_listed_has_its_test():
    if not LIST.is_file():
        message = f"no list of advisories at {LIST.name}: nothing to compare with"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    listed = set(re.findall(r"(?:PYSEC|CVE|GHSA)-[0-9a-z]+(?:-[0-9a-z]+)+", LIST.read_text()))
    assert listed <= CHECKS.keys()


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_nothing_that_reaches_into_the_server_is_a_field(route):
    taken = fields_of(route, LIMITS).shapes
    inward = re.compile(r"template|transfer|embeds|mm_|media|xargs|processor|backend|priority|salt")
    assert not [name for name in taken if inward.search(name)]
    for name in ("extra_args", "trace_decode_token_ids", "vllm_xargs", "lora_request"):
        with pytest.raises(RefusedError):
            parse_request(route, encoded({**PLAIN[route], name: {}}), LIMITS)
