"""What fields must not say together. fields.py has checked each by itself."""

from __future__ import annotations

from rayline.serving.requests.prompts import prompts
from rayline.serving.requests.refusal import Tree, refuse
from rayline.serving.requests.routes import Route
from rayline.serving.requests.schemas import check_steering
from rayline.spec import RequestLimits

_PAIRS = (("text_1", "text_2"), ("queries", "documents"))


def check_rules(route: Route, tree: Tree, limits: RequestLimits) -> None:
    """Raise RefusedError where fields contradict each other. Called by parse_request."""
    if route in ("chat", "completions"):
        _check_generation(tree)
        _check_sequences(route, tree, limits)
    if route == "chat":
        _check_alternatives(tree)
    if route in ("chat", "responses", "tokenize"):
        _check_tools(route, tree, limits)
        _check_turns(tree)
    if route == "score":
        _check_pairs(tree)
    if route == "tokenize" and ("prompt" in tree) == ("messages" in tree):
        refuse("Give one of 'prompt' and 'messages'.", "prompt", "invalid_value")


def _check_generation(tree: Tree) -> None:
    if "stream_options" in tree and not tree.get("stream"):
        refuse(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )
    most = tree.get("max_completion_tokens", tree.get("max_tokens"))
    if most is not None and tree.get("min_tokens", 0) > most:
        refuse("'min_tokens' is above the most tokens asked for.", "min_tokens", "invalid_value")
    if tree.get("max_tokens") == 0 and not tree.get("echo"):
        refuse("'max_tokens' may be 0 only with 'echo'.", "max_tokens", "invalid_value")
    if tree.get("n", 1) > 1 and tree.get("temperature") == 0:
        refuse("'n' must be 1 where temperature is 0: all would be equal.", "n", "invalid_value")
    structured = tree.get("structured_outputs")
    if structured is None:
        return
    if "response_format" in tree:
        refuse(
            "Give one of 'response_format' and 'structured_outputs'.",
            "structured_outputs",
            "invalid_value",
        )
    kinds = structured.keys() & {"json", "json_object", "regex", "choice"}
    if len([kind for kind in kinds if structured[kind] is not None]) != 1:
        refuse(
            "'structured_outputs' holds one of 'json', 'json_object', 'regex' and 'choice'.",
            "structured_outputs",
            "invalid_value",
        )


def _check_sequences(route: Route, tree: Tree, limits: RequestLimits) -> None:
    count = prompts(route, tree) * tree.get("n", 1)
    if count > limits.max_sequences:
        refuse(
            f"The prompts times 'n' are {count} sequences; at most {limits.max_sequences} are "
            "generated for one request.",
            "n",
            "invalid_value",
        )


def _check_alternatives(tree: Tree) -> None:
    if tree.get("top_logprobs") and not tree.get("logprobs"):
        refuse("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs", "invalid_value")


def _check_turns(tree: Tree) -> None:
    if tree.get("continue_final_message") and tree.get("add_generation_prompt"):
        refuse(
            "Give one of 'continue_final_message' and 'add_generation_prompt'.",
            "continue_final_message",
            "invalid_value",
        )


def _check_tools(route: Route, tree: Tree, limits: RequestLimits) -> None:
    tools = [tool if route == "responses" else tool["function"] for tool in tree.get("tools", [])]
    choice = tree.get("tool_choice")
    # The Responses API's clients say auto by default.
    idle = (None, "none", "auto") if route == "responses" else (None, "none")
    if not tools and choice not in idle:
        refuse(
            "'tool_choice' is only allowed when 'tools' are specified.",
            "tool_choice",
            "invalid_value",
        )
    named = None
    if isinstance(choice, dict):
        named = choice["name"] if route == "responses" else choice["function"]["name"]
        if named not in [tool["name"] for tool in tools]:
            refuse("'tool_choice' names none of the tools.", "tool_choice", "invalid_value")
    for number, tool in enumerate(tools):
        forced = choice == "required" or tool["name"] == named
        if tool.get("parameters") and (forced or tool.get("strict")):
            check_steering(tool["parameters"], limits, f"tools[{number}].parameters")


def _check_pairs(tree: Tree) -> None:
    given = [pair for pair in _PAIRS if pair[0] in tree or pair[1] in tree]
    if len(given) != 1 or any(name not in tree for name in given[0]):
        refuse("Give 'queries' and 'documents'.", "queries", "missing_required_parameter")
    first, second = (tree[name] for name in given[0])
    left, right = (len(side) if isinstance(side, list) else 1 for side in (first, second))
    if left not in (1, right):
        refuse(
            f"'{given[0][0]}' holds {left} texts and '{given[0][1]}' {right}: as many, or one.",
            given[0][0],
            "invalid_value",
        )
