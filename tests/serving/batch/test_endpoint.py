"""A batch put to an endpoint (a scripted one): retries, limits, what ends it, and going on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import ServingError, SpecError
from rayline.serving.batch import BatchSummary, EndpointSettings, run_batch
from rayline.serving.batch.endpoint import retry_wait_s
from rayline.serving.batch.lines import BatchLine
from support.scripted_endpoint import (
    KEY,
    ScriptedEndpoint,
    endpoint_that_hangs_up,
    scripted_endpoint,
)


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with scripted_endpoint() as running:
        yield running


def written(folder: Path, *prompts: str) -> Path:
    file = folder / "in.jsonl"
    lines = [
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "bot", "prompt": prompt},
        }
        for number, prompt in enumerate(prompts)
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def answers(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def test_every_request_has_one_answer_and_no_more_are_under_way_than_allowed(
    endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    prompts = [f"slow {number % 7}" for number in range(60)]
    seen: list[tuple[int, int]] = []
    summary = run_batch(
        written(tmp_path, *prompts),
        tmp_path / "out.jsonl",
        EndpointSettings(endpoint.url, concurrency=5),
        observe=lambda done, total: seen.append((done, total)),
    )
    assert summary == BatchSummary(requests=60, resumed=0, answered=60, failed=0)
    assert 2 <= endpoint.most_under_way <= 5
    assert seen == [(number, 60) for number in range(61)]
    found = answers(tmp_path / "out.jsonl")
    for number, prompt in enumerate(prompts):
        response = found[f"{number}"]["response"]
        assert response["body"] == {"choices": [{"text": prompt}], "path": "/v1/completions"}
        assert response["request_id"] == f"req-{prompt}"


def test_who_has_no_room_is_asked_again_and_who_refuses_is_not(
    endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    file = written(tmp_path, "ok", "busy 2", "down 1", "refuse", "fail", "html")
    summary = run_batch(file, tmp_path / "out.jsonl", EndpointSettings(endpoint.url))
    assert summary == BatchSummary(requests=6, resumed=0, answered=6, failed=3)
    assert endpoint.asked == {"ok": 1, "busy 2": 3, "down 1": 2, "refuse": 1, "fail": 1, "html": 1}
    found = answers(tmp_path / "out.jsonl")
    status = {i: (line["response"]["status_code"], line["error"]) for i, line in found.items()}
    assert status["0"] == status["1"] == status["2"] == (200, None)
    assert status["3"] == (400, {"code": "bad_prompt", "message": "no"})
    assert status["4"] == (500, {"code": "http_500", "message": "broken"})
    assert status["5"][0] == 502
    assert status["5"][1]["code"] == "no_json"


def test_what_is_answered_is_not_asked_again_and_errors_only_where_that_is_wanted(
    endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    file, out = written(tmp_path, "ok", "refuse", "slow 1"), tmp_path / "out.jsonl"
    run_batch(file, out, EndpointSettings(endpoint.url))
    # As a process leaves it that was killed while it wrote the last line.
    out.write_bytes(out.read_bytes()[:-20])
    again = run_batch(file, out, EndpointSettings(endpoint.url))
    assert (again.resumed, again.answered, again.failed) == (2, 1, 1)
    assert sum(endpoint.asked.values()) == 4
    run_batch(file, out, EndpointSettings(endpoint.url))
    assert sum(endpoint.asked.values()) == 4
    retried = run_batch(file, out, EndpointSettings(endpoint.url), retry_failed=True)
    assert (retried.resumed, retried.answered, retried.failed) == (2, 1, 1)
    assert endpoint.asked["refuse"] >= 2
    assert sorted(answers(out)) == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["closed", "hangs up"])
def test_an_endpoint_out_of_reach_ends_the_batch_and_nothing_is_made_up(
    tmp_path: Path, how: str
) -> None:
    file, out = written(tmp_path, "ok", "ok too"), tmp_path / "out.jsonl"
    if how == "closed":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ServingError, match="does not answer"):
            run_batch(file, out, EndpointSettings(url, patience_s=1))
    else:
        with endpoint_that_hangs_up() as url, pytest.raises(ServingError, match="does not answer"):
            run_batch(file, out, EndpointSettings(url, patience_s=1))
    assert out.read_bytes() == b""


def test_one_that_has_no_room_for_too_long_ends_the_batch_with_what_was_answered(
    endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    file, out = written(tmp_path, "ok", "busy 1000"), tmp_path / "out.jsonl"
    with pytest.raises(ServingError, match="HTTP 429, for 2 s") as ended:
        run_batch(file, out, EndpointSettings(endpoint.url, patience_s=2))
    assert "run the same command again" in ended.value.fix
    assert list(answers(out)) == ["0"]


def test_a_wait_that_the_server_asks_for_beyond_the_patience_is_not_sat_through(
    endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    endpoint.retry_after = "120"
    began_s = time.monotonic()
    with pytest.raises(ServingError, match="does not answer"):
        run_batch(
            written(tmp_path, "down 9"),
            tmp_path / "out.jsonl",
            EndpointSettings(endpoint.url, patience_s=60),
        )
    assert time.monotonic() - began_s < 10


def test_a_refused_key_ends_the_batch_at_once_and_the_right_one_is_sent(
    endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    endpoint.needs_key = True
    file, out = written(tmp_path, "ok", "ok"), tmp_path / "out.jsonl"
    for key in (None, "rk-wrong"):
        with pytest.raises(ServingError, match="refuses the key: Incorrect API key") as refused:
            run_batch(file, out, EndpointSettings(endpoint.url, key))
        assert "rk-wrong" not in str(refused.value)
    assert run_batch(file, out, EndpointSettings(endpoint.url, KEY)).answered == 2


@pytest.mark.parametrize(
    "url", ["not an address", "ftp://127.0.0.1/v1", "http://[::1/v1", "http://"]
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ServingError):
        run_batch(
            written(tmp_path, "ok"), tmp_path / "out.jsonl", EndpointSettings(url, patience_s=1)
        )


def test_the_requests_themselves_are_not_written_over(tmp_path: Path) -> None:
    file = written(tmp_path, "ok")
    with pytest.raises(SpecError, match="is the file of requests itself"):
        run_batch(file, file, EndpointSettings("http://127.0.0.1:1/v1"))
    assert "prompt" in file.read_text()


@pytest.mark.parametrize("url", ["http://h:8000/v1", "http://h:8000/v1/", "http://h:8000"])
def test_a_lines_url_is_the_endpoints(url: str) -> None:
    line = BatchLine(1, "a", "/v1/embeddings", 0, 1)
    assert EndpointSettings(url).address_of(line) == "http://h:8000/v1/embeddings"


@given(attempt=st.integers(0, 1000), draw=st.floats(0, 1))
def test_waits_grow_to_a_limit_and_differ_from_one_another(attempt: int, draw: float) -> None:
    wait_s = retry_wait_s(attempt, None, 0, draw)
    longest_s = min(30, 0.5 * 2 ** min(attempt, 30))
    assert longest_s / 2 <= wait_s <= longest_s


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("2.5", 2.5),
        ("100000", 300),
        ("Thu, 01 Jan 1970 00:01:10 GMT", 10),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0),
    ],
)
def test_a_server_says_when_to_come_back(header: str, seconds: float) -> None:
    assert retry_wait_s(3, header, 60, 0) == seconds
    assert retry_wait_s(3, header, 60, 1) == seconds + 0.5


def test_what_says_nothing_is_left_aside() -> None:
    assert retry_wait_s(0, "soon", 60, 1) == retry_wait_s(0, None, 60, 1) == 0.5
    assert retry_wait_s(0, "nan", 60, 1) <= 300.5
