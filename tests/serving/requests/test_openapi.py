"""The table of routes, and the document that is made of it."""

from __future__ import annotations

import json
from typing import get_args

import jsonschema
import pytest

from rayline.serving.requests import ROUTES, Route
from rayline.serving.requests.openapi import openapi_document
from rayline.spec.access import Scope
from support.asking import LIMITS, PLAIN

DOCUMENT = openapi_document(LIMITS)


def schema_of(route: str) -> dict[str, object]:
    (path,) = [entry.path for entry in ROUTES if entry.route == route]
    return DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_every_route_has_one_path_and_every_path_a_scope():
    assert sorted(entry.route for entry in ROUTES if entry.route) == sorted(get_args(Route))
    assert len({(entry.path, entry.method) for entry in ROUTES}) == len(ROUTES)
    assert [entry.path for entry in ROUTES if entry.scope is None] == ["/health", "/-/healthz"]
    assert {entry.scope for entry in ROUTES} - {None} == set(get_args(Scope))


def test_the_document_holds_the_table_and_nothing_else():
    documented = {
        (path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert documented == {(entry.path, entry.method) for entry in ROUTES}
    json.dumps(DOCUMENT, allow_nan=False)


def test_each_operation_says_what_key_it_asks_for():
    for entry in ROUTES:
        operation = DOCUMENT["paths"][entry.path][entry.method.lower()]
        assert operation["security"] == ([] if entry.scope is None else [{"key": [entry.scope]}])


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_what_passes_fits_the_documented_schema(route):
    schema = schema_of(route)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(PLAIN[route], schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**PLAIN[route], "chat_template": "x"}, schema)
