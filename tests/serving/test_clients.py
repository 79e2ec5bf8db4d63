"""The clients that others have written, against a real deployment that asks for a key: OpenAI's,
LangChain's and LiteLLM's. One engine at a time: first one that generates, then one that embeds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from support.deployed import HIDDEN, Gateway, Served, served, small_cluster

pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]

LITELLM = Path(__file__).parents[1] / "support" / "litellm_calls.py"
LOCKED = Path(__file__).parents[2] / "cluster" / "requirements" / "litellm.txt"
HELLO: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Answer(pydantic.BaseModel):
    """Whether it is."""

    model_config = pydantic.ConfigDict(extra="forbid")

    sure: bool


TOOL: Any = {
    "type": "function",
    "function": {"name": "tell", "parameters": Answer.model_json_schema()},
}
CHOICE: Any = {"type": "function", "function": {"name": "tell"}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with small_cluster(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="class")
def generating(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine = {"tool_call_parser": "hermes", "structured_outputs": "guidance"}
    with served(gateway, tmp_path_factory.mktemp("generating"), {"engine": engine}) as one:
        yield one


@pytest.fixture(scope="class")
def embedding(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(
        gateway, tmp_path_factory.mktemp("embedding"), {"engine": {"task": "embed"}}
    ) as one:
        yield one


@pytest.fixture(scope="session")
def litellm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiteLLM's own environment, from its lock."""
    folder = tmp_path_factory.mktemp("litellm")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", LOCKED]
    subprocess.run(install, check=True, timeout=280)
    return python


def through_litellm(python: Path, to: Served, what: str) -> dict[str, Any]:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    command = [python, LITELLM, to.url, to.key, to.model, what, json.dumps(to.blanks)]
    shown = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    return found


class TestGenerating:
    """One engine that generates."""

    def test_openais_client(self, generating: Served) -> None:
        client = openai.OpenAI(base_url=generating.url, api_key=generating.key, max_retries=0)
        assert [model.id for model in client.models.list()] == ["bot"]
        assert client.models.retrieve("bot").id == "bot"
        asked: Any = {"model": "bot", "messages": HELLO, "temperature": 0, "max_tokens": 24}
        whole = client.chat.completions.create(**asked)
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 24
        chunks = list(
            client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        text_only = client.completions.create(model="bot", prompt="Once", max_tokens=4)
        assert text_only.usage is not None
        response = client.responses.create(model="bot", input="Hello", max_output_tokens=8)
        assert response.usage is not None
        assert 0 < response.usage.output_tokens <= 8
        events = [
            event.type
            for event in client.responses.create(
                model="bot", input="Hello", max_output_tokens=8, stream=True
            )
        ]
        assert (events[0], events[-1]) == ("response.created", "response.completed")

    def test_openais_client_with_tools_and_schemas(self, generating: Served) -> None:
        client = openai.OpenAI(base_url=generating.url, api_key=generating.key, max_retries=0)
        asked: Any = {"model": "bot", "messages": HELLO, "temperature": 0, "max_tokens": 64}
        asked["logit_bias"] = generating.blanks
        called = client.chat.completions.create(**asked, tools=[TOOL], tool_choice=CHOICE)
        (call,) = called.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "tell"
        Answer.model_validate_json(call.function.arguments)
        # What came back goes in again, as clients hand it back.
        turns = [
            *HELLO,
            called.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "yes"},
        ]
        after = client.chat.completions.create(**{**asked, "messages": turns}, tools=[TOOL])
        assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")
        parsed = client.chat.completions.parse(**asked, response_format=Answer)
        assert isinstance(parsed.choices[0].message.parsed, Answer)
        held = client.responses.parse(
            model="bot",
            input="Sure?",
            text_format=Answer,
            max_output_tokens=64,
            extra_body={"logit_bias": generating.blanks},
        )
        assert isinstance(held.output_parsed, Answer)

    def test_openais_client_reads_the_errors(self, generating: Served) -> None:
        client = openai.OpenAI(base_url=generating.url, api_key=generating.key, max_retries=0)
        ask = client.chat.completions.create
        with pytest.raises(openai.BadRequestError) as refused:
            ask(model="bot", messages=HELLO, temperature=7)
        assert (refused.value.param, refused.value.code) == (
            "temperature",
            "decimal_above_max_value",
        )
        with pytest.raises(openai.BadRequestError) as refused:
            ask(model="bot", messages=HELLO, extra_body={"chat_template": "{{ 1 }}"})
        assert refused.value.param == "chat_template"
        with pytest.raises(openai.BadRequestError) as refused:
            ask(model="bot", messages=[{"role": "user", "content": "word " * 600}])
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError) as missing:
            ask(model="other", messages=HELLO)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="rl-wrong").models.list()
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="bot", input="one")

    def test_langchains_client(self, generating: Served) -> None:
        chat = ChatOpenAI(
            model="bot",
            base_url=generating.url,
            api_key=pydantic.SecretStr(generating.key),
            temperature=0,
            max_completion_tokens=64,
            logit_bias={int(token): bias for token, bias in generating.blanks.items()},
            max_retries=0,
        )
        question = HELLO[0]["content"]
        whole = chat.invoke(question)
        assert whole.usage_metadata is not None
        assert whole.usage_metadata["output_tokens"] <= 64
        assert "".join(str(piece.content) for piece in chat.stream(question)) == whole.content
        called = chat.bind_tools([TOOL], tool_choice="tell").invoke(question)
        assert [call["name"] for call in called.tool_calls] == ["tell"]
        for method in ("json_schema", "function_calling"):
            held = chat.with_structured_output(Answer, method=method).invoke(question)
            assert isinstance(held, Answer)
        assert len(chat.batch([question] * 3)) == 3
        with pytest.raises(openai.NotFoundError):
            chat.model_copy(update={"model_name": "other"}).invoke(question)

    def test_litellms_client(self, generating: Served, litellm_python: Path) -> None:
        found = through_litellm(litellm_python, generating, "generate")
        assert found["streamed"] == found["text"]
        assert 0 < found["usage"] <= 24
        assert found["called"]["name"] == "tell"
        Answer.model_validate_json(found["called"]["arguments"])
        Answer.model_validate_json(found["held"])
        assert found["errors"] == {
            "no such model": "NotFoundError",
            "wrong key": "AuthenticationError",
            "wrong field": "BadRequestError",
        }


class TestEmbedding:
    """One engine that embeds."""

    def test_every_client_gets_vectors(self, embedding: Served, litellm_python: Path) -> None:
        official = openai.OpenAI(base_url=embedding.url, api_key=embedding.key, max_retries=0)
        # OpenAI's client asks for base64 and unpacks it.
        found = official.embeddings.create(model="bot", input=["one", "two"])
        plain = official.embeddings.create(
            model="bot", input=["one", "two"], encoding_format="float"
        )
        assert [len(one.embedding) for one in found.data] == [HIDDEN, HIDDEN]
        assert found.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
        chained = OpenAIEmbeddings(
            model="bot",
            base_url=embedding.url,
            api_key=pydantic.SecretStr(embedding.key),
            # It would look for OpenAI's own tokenizer.
            check_embedding_ctx_length=False,
            max_retries=0,
        )
        vectors = chained.embed_documents(["one", "two"])
        assert vectors[0] == pytest.approx(plain.data[0].embedding, abs=1e-6)
        assert chained.embed_query("one") == pytest.approx(vectors[0], abs=1e-6)
        through = through_litellm(litellm_python, embedding, "embed")
        assert through == {"vectors": [HIDDEN, HIDDEN]}
        with pytest.raises(openai.BadRequestError):
            official.chat.completions.create(model="bot", messages=HELLO)
