"""Two real engines, of which one computes prompts for the other: pages travel by NIXL, and what is
written behind them is what one engine alone writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

from rayline.models.tiny import write_tiny_model
from rayline.serving.gateway.splitting import prompt_alone, with_pages
from rayline.serving.requests import Tree
from rayline.serving.wire import Ask
from rayline.spec import ServeSpec

pytestmark = [pytest.mark.engines, pytest.mark.timeout(200)]

TEXT = "The quick brown fox jumps over the lazy dog. " * 8


@dataclass
class Pair:
    """Who computes prompts, and who writes answers."""

    prompts: Any
    answers: Any


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
    running: Callable[..., AbstractContextManager[Any]],
) -> Iterator[Pair]:
    folder = write_tiny_model(tmp_path_factory.mktemp("split") / "model", layers=2)
    engine = {"max_model_len": 1024, "max_num_seqs": 4, "kv_cache_gib": 0.0625, "split": {}}
    spec = ServeSpec.parse({"name": "tiny", "model": {"directory": str(folder)}, "engine": engine})
    with running(spec, "prefill") as prompts, running(spec, "decode") as answers:
        yield Pair(prompts, answers)


def fetched() -> float:
    """Tokens whose keys and values came from elsewhere, by the counter of who started last."""
    name = "vllm:external_prefix_cache_hits"
    return sum(
        metric.value
        for metric in get_metrics_snapshot()
        if isinstance(metric, Counter) and metric.name == name
    )


def asked(beginning: str) -> Tree:
    body = {"model": "tiny", "prompt": f"{beginning} {TEXT}", "temperature": 0.0}
    return {**body, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}


def compute(pair: Pair, tree: Tree) -> Tree:
    answer, _ = pair.prompts.ask("completions", prompt_alone(Ask("", "completions", tree)).tree)
    pages: Tree = answer["kv_transfer_params"]
    return pages


def write(engine: Any, tree: Tree) -> list[int]:
    """The tokens of an answer."""
    answer, usage = engine.ask("completions", tree)
    assert usage.completion_tokens == 24
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens


def test_what_is_written_behind_pages_is_what_one_engine_writes(pair: Pair) -> None:
    tree, before = asked("first"), fetched()
    pages = compute(pair, tree)
    tokens = write(pair.answers, with_pages(Ask("", "completions", tree), pages).tree)
    assert len(set(tokens)) > 1
    assert tokens == write(pair.prompts, tree)
    # All of the prompt but its last token, which has to be computed for what comes behind it.
    assert fetched() - before > len(TEXT) * 0.9


def test_pages_that_cannot_be_fetched_are_computed_again(pair: Pair) -> None:
    tree = asked("second")
    pages = compute(pair, tree) | {"remote_engine_id": "gone", "remote_port": 9}
    tokens = write(pair.answers, with_pages(Ask("", "completions", tree), pages).tree)
    assert tokens == write(pair.prompts, tree)
