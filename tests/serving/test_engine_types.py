"""What passes the gateway's checks is what vLLM's own request types take: no engine is started."""

from __future__ import annotations

import copy

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from rayline.serving.replica.layers import _REQUESTS
from rayline.serving.requests import RefusedError, parse_request
from support.asking import LIMITS, PLAIN
from support.mutating import cases

pytestmark = pytest.mark.serve

CASES = 4000


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_what_passes_is_no_surprise_to_the_engine(route):
    passed = 0
    for case in cases(route, CASES, seed=5):
        try:
            asked = parse_request(route, case.body, LIMITS)
        except RefusedError:
            continue
        request = _REQUESTS[route].validate_python(copy.deepcopy(asked.tree))
        if isinstance(request, ChatCompletionRequest | CompletionRequest):
            request.to_sampling_params(asked.max_tokens or 16, {})
        elif isinstance(request, ResponsesRequest):
            request.to_sampling_params(16)
        passed += 1
    assert passed > CASES // 10
