"""RequestLimits: how much one request may ask for."""

from __future__ import annotations

from pydantic import Field

from rayline.spec.document import Document


class RequestLimits(Document):
    """How much one request may ask for. What is above is refused before the engine sees it.

    The defaults let through whatever OpenAI's clients send in earnest; where a number is OpenAI's
    or vLLM's own (0.32), it says so.
    """

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Largest body; the longest prompt of a 128k-token model is about 1 MiB of text."""
    max_json_depth: int = Field(default=64, ge=8, le=256)
    """Deepest nesting of objects and arrays in a body, and in the arguments of a tool call."""
    max_text_chars: int = Field(default=2**20, ge=1)
    """Longest single text. Whatever a tokenizer is given is bounded by it."""
    max_messages: int = Field(default=2048, ge=1)
    """Most messages of a chat (OpenAI's number)."""
    max_content_parts: int = Field(default=256, ge=1)
    """Most parts of one message's content."""
    max_inputs: int = Field(default=2048, ge=1)
    """Most texts to embed, score or rank in one request (OpenAI's number for embeddings)."""
    max_choices: int = Field(default=16, ge=1)
    """Largest `n`."""
    max_sequences: int = Field(default=64, ge=1)
    """Most sequences of one request: its prompts times `n`. Each holds a place in the engine."""
    max_output_tokens: int = Field(default=2**17, ge=1)
    """Largest max_tokens. The engine's max_model_len bounds it further, and alone bounds an answer
    of which the request does not say how long it may become."""
    max_token_id: int = Field(default=2**20 - 1, ge=1)
    """Largest id of a token. The engine knows the vocabulary; this one keeps numbers that would
    overflow from it."""
    max_stops: int = Field(default=4, ge=1, le=4)
    """Most stop strings, each searched for after every token (OpenAI's and vLLM's number)."""
    max_stop_chars: int = Field(default=256, ge=1)
    """Longest stop string or bad word; so much text is held back while it streams."""
    max_bad_words: int = Field(default=64, ge=1, le=128)
    """Most bad words (vLLM stops at 128 after tokenizing)."""
    max_logit_bias: int = Field(default=300, ge=1, le=1024)
    """Most entries of logit_bias (OpenAI's number; vLLM stops at 1024)."""
    max_top_logprobs: int = Field(default=20, ge=0)
    """Most alternatives shown for a token (OpenAI's and vLLM's number)."""
    max_tools: int = Field(default=128, ge=1)
    """Most tools, and most tool calls of one message (OpenAI's number)."""
    max_schema_bytes: int = Field(default=64 * 1024, ge=64)
    """Largest JSON schema, of a tool or of an answer."""
    max_schema_depth: int = Field(default=32, ge=2, le=64)
    """Deepest nesting of objects and arrays in a schema (vLLM stops at 64)."""
    max_pattern_chars: int = Field(default=2048, ge=1)
    """Longest regular expression."""
    max_metadata: int = Field(default=16, ge=0)
    """Most entries of metadata; a key has at most 64 characters, a value 512 (OpenAI's numbers)."""
