"""The same over HTTP, through the gateway: what the documented surface makes of hostile requests,
ours and those that schemathesis makes of the document. The engine is scripted: it answers all."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rayline.serving.requests.openapi import openapi_document
from rayline.serving.wire import Ask, Item, Piece, Usage
from support.asking import LIMITS, PLAIN
from support.attacking import attack, knock
from support.house import House
from support.scripted_engine import ScriptedEngine, event, whole

CASES = 250
EXAMPLES = 10


class Obliging(ScriptedEngine):
    """Answers whatever gets through."""

    async def _items(self, ask: Ask) -> AsyncGenerator[Item, None]:
        self.usages[ask.request_id] = Usage(1, 0, 1)
        if ask.tree.get("stream"):
            yield Piece(event("yes"), (0,), ended=True)
            yield Piece(b"data: [DONE]\n\n")
        else:
            yield whole("yes")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    house = House()
    house.start("one", Obliging())
    with httpx.Client(base_url=house.url, timeout=30) as client:
        yield client
    house.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """schemathesis speaks through requests."""
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_hostile_bodies_get_an_answer_or_a_refusal(client, route):
    seen = attack(client, route, CASES, seed=2)
    assert seen[200] > 0
    assert seen[400] > CASES // 3


def test_nothing_else_is_reachable(client):
    assert set(knock(client)) <= {401, 403, 404, 405}


def documented() -> dict[str, object]:
    """The document, for the one model that is there."""
    document = copy.deepcopy(openapi_document(LIMITS))
    for operations in document["paths"].values():
        for operation in operations.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                body["schema"]["properties"]["model"] = {"const": "bot"}
    return document


surface = schemathesis.openapi.from_dict(documented())


@surface.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_the_document_says_holds(case, client, session):
    response = case.call(base_url=str(client.base_url), session=session)
    case.validate_response(
        response,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
