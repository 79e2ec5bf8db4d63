"""Chat messages and tools: text only.

Source: OpenAI API reference, "Create chat completion" (messages, tools) and "Create a model
response" (input, tools). Whatever a client hands back of an answer of ours is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayline.serving.requests.body import check_encoded
from rayline.serving.requests.refusal import Tree
from rayline.serving.requests.sampling import NAME, label
from rayline.serving.requests.schemas import Schema
from rayline.serving.requests.shapes import Either, Fields, ListOf, Tagged
from rayline.serving.requests.values import Flag, Nothing, Shape, Text, Whole, Word
from rayline.spec import RequestLimits

_CHOICES = Word(("none", "auto", "required"))
_BESIDE: dict[str, dict[str, Shape]] = {
    "output_text": {"annotations": Nothing(), "logprobs": Nothing()}
}
TEXT_ONLY = "Only text is served: no images, audio, video, files or embeddings."


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a tool call: JSON in a string, as a model made it."""

    limits: RequestLimits

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        Text(self.limits.max_text_chars).check(value, at)
        check_encoded(str(value), self.limits.max_json_depth, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return Text(self.limits.max_text_chars).schema()


def name_shape() -> Text:
    """What a tool or a schema may be called."""
    return Text(most=128, least=1, pattern=NAME)


def messages(limits: RequestLimits) -> ListOf:
    """The turns of a chat."""
    text, content = Text(most=limits.max_text_chars), _content(limits, "text")
    named: dict[str, Shape] = {"content": content, "name": label()}
    call = Fields(
        {
            "id": label(),
            "type": Word(("function",)),
            "index": Whole(0, limits.max_tools),
            "function": Fields(
                {"name": name_shape(), "arguments": Arguments(limits)},
                required=("name", "arguments"),
            ),
        },
        required=("id", "type", "function"),
    )
    assistant: dict[str, Shape] = {
        "content": _content(limits, "text", "refusal"),
        "name": label(),
        "tool_calls": ListOf(call, most=limits.max_tools),
        "refusal": text,
        "reasoning": text,
        "reasoning_content": text,
        "annotations": Nothing(),
        "audio": Nothing(),
        "function_call": Nothing(),
    }
    roles = {
        "system": Fields(_role("system", named), required=("role", "content")),
        "developer": Fields(_role("developer", named), required=("role", "content")),
        "user": Fields(_role("user", named), required=("role", "content")),
        "assistant": Fields(_role("assistant", assistant), required=("role",)),
        "tool": Fields(
            _role("tool", {**named, "tool_call_id": label()}),
            required=("role", "content", "tool_call_id"),
        ),
    }
    return ListOf(Tagged("role", roles), most=limits.max_messages, least=1)


def _role(role: str, shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {"role": Word((role,)), **shapes}


def _content(limits: RequestLimits, *kinds: str) -> Either:
    """Text, whole or in parts of some kinds."""
    text = Text(most=limits.max_text_chars)
    parts = {}
    for kind in kinds:
        holds = "refusal" if kind == "refusal" else "text"
        shapes: dict[str, Shape] = {"type": Word((kind,)), holds: text, **_BESIDE.get(kind, {})}
        parts[kind] = Fields(shapes, required=("type", holds))
    listed = ListOf(Tagged("type", parts, otherwise=TEXT_ONLY), most=limits.max_content_parts)
    return Either({"string": text, "array": listed})


def tools(limits: RequestLimits) -> ListOf:
    """Functions that the model may call."""
    function = Fields(_function(limits), required=("name",))
    shapes: dict[str, Shape] = {"type": Word(("function",)), "function": function}
    return ListOf(Fields(shapes, required=("type", "function")), most=limits.max_tools, least=1)


def tool_choice() -> Either:
    """Whether, and which."""
    named = Fields({"name": name_shape()}, required=("name",))
    shapes: dict[str, Shape] = {"type": Word(("function",)), "function": named}
    return Either({"string": _CHOICES, "object": Fields(shapes, required=("type", "function"))})


def _function(limits: RequestLimits) -> dict[str, Shape]:
    return {
        "name": name_shape(),
        "description": Text(most=limits.max_text_chars),
        "parameters": Schema(limits, steers=False),
        "strict": Flag(),
    }


def response_tools(limits: RequestLimits) -> ListOf:
    """The same in the Responses API. Its other tools reach out to servers that a client names."""
    shapes: dict[str, Shape] = {"type": Word(("function",)), **_function(limits)}
    otherwise = "Only tools of type 'function' are served."
    tool = Tagged("type", {"function": Fields(shapes, required=("type", "name"))}, otherwise)
    return ListOf(tool, most=limits.max_tools)


def response_tool_choice() -> Either:
    """The same in the Responses API."""
    shapes: dict[str, Shape] = {"type": Word(("function",)), "name": name_shape()}
    return Either({"string": _CHOICES, "object": Fields(shapes, required=("type", "name"))})


def response_input(limits: RequestLimits) -> Either:
    """What the Responses API answers: a text, or the items of a conversation."""
    text = Text(most=limits.max_text_chars)
    own: dict[str, Shape] = {"id": label(), "status": label()}
    thought = {
        kind: Fields({"type": Word((kind,)), "text": text}, required=("type", "text"))
        for kind in ("summary_text", "reasoning_text")
    }
    thoughts = ListOf(Tagged("type", thought), most=limits.max_content_parts)
    items = {
        "message": Fields(
            {
                "type": Word(("message",)),
                "role": Word(("user", "assistant", "system", "developer")),
                "content": _content(limits, "input_text", "output_text", "refusal"),
                "phase": label(),
                **own,
            },
            required=("role", "content"),
        ),
        "function_call": Fields(
            {
                "type": Word(("function_call",)),
                "call_id": label(),
                "name": name_shape(),
                "arguments": Arguments(limits),
                "namespace": Nothing(),
                **own,
            },
            required=("type", "call_id", "name", "arguments"),
        ),
        "function_call_output": Fields(
            {
                "type": Word(("function_call_output",)),
                "call_id": label(),
                "output": _content(limits, "input_text"),
                **own,
            },
            required=("type", "call_id", "output"),
        ),
        "reasoning": Fields(
            {
                "type": Word(("reasoning",)),
                "summary": thoughts,
                "content": thoughts,
                "encrypted_content": Nothing(),
                **own,
            },
            required=("type", "summary"),
        ),
    }
    item = Tagged("type", items, otherwise=TEXT_ONLY, default="message")
    return Either(
        {
            "string": Text(most=limits.max_text_chars, least=1),
            "array": ListOf(item, most=limits.max_messages, least=1),
        }
    )
