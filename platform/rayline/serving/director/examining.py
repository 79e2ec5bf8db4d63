"""A version is asked its evaluation set, by the wire and past the gateways: it has no share yet."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence

from rayline.serving.director.fleet import ReplicaAddress
from rayline.serving.requests import Route
from rayline.serving.rollout.questions import Question, score
from rayline.serving.wire import Ask, Caller, WholeAnswer

_AT_ONCE = 4
"""Few enough that what is served meanwhile hardly feels it."""
_QUESTION_TIMEOUT_S = 120.0


async def examine(address: ReplicaAddress, model: str, questions: Sequence[Question]) -> float:
    """Share of the questions that the replica answers as expected, 0 to 1. One that it refuses, or
    does not answer in time, is not. Raises LostReplicaError where the replica is lost."""
    caller = await Caller.connect(address.host, address.port, address.secret)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def answer(question: Question) -> str:
        async with turns:
            try:
                async with asyncio.timeout(_QUESTION_TIMEOUT_S):
                    return await _answer(caller, model, question)
            except TimeoutError:
                return ""

    try:
        answers = await asyncio.gather(*(answer(question) for question in questions))
    finally:
        caller.close()
    return score(questions, answers)


async def _answer(caller: Caller, model: str, question: Question) -> str:
    route: Route = "completions" if isinstance(question.asked, str) else "chat"
    call = caller.ask(Ask(uuid.uuid4().hex, route, question.body(model)))
    said = ""
    try:
        while not call.finished:
            for item in await call.items():
                if isinstance(item, WholeAnswer):
                    said = _text(item)
    finally:
        call.cancel()
    return said


def _text(answer: WholeAnswer) -> str:
    choice = json.loads(answer.json_text)["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])
