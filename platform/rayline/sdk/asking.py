"""Questions to a model that is served somewhere: needs the thin core alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayline.serving.client import Message

DEFAULT_URL = "http://127.0.0.1:8000/v1"
"""Where `rayline deploy` serves unless the spec says otherwise."""


class Asking:
    """Asks any OpenAI-compatible endpoint, rayline's own or another's."""

    def chat(
        self,
        question: str | Sequence[Message],
        *,
        url: str = DEFAULT_URL,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        api_key: str | None = None,
    ) -> str:
        """The answer to a question, or to the newest of several turns; needs the thin core alone.

        Without `model` the first one behind the address answers; without `api_key` the one in
        RAYLINE_API_KEY opens it. Raises ServingError.

        >>> client.chat("What is the capital of France?", url=url, temperature=0)
        '...'
        """
        return "".join(
            self.stream(
                question,
                url=url,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                api_key=api_key,
            )
        )

    def stream(
        self,
        question: str | Sequence[Message],
        *,
        url: str = DEFAULT_URL,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        api_key: str | None = None,
    ) -> Iterator[str]:
        """As `chat`, piece by piece while it is generated.

        >>> said = "".join(client.stream("What is the capital of France?", url=url, temperature=0))
        >>> said == client.chat("What is the capital of France?", url=url, temperature=0)
        True
        """
        from rayline.serving.client import stream_answer

        return stream_answer(
            url,
            question,
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            api_key=api_key,
        )
