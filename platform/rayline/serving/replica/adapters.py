"""The adapters of one vLLM engine: known to the engine by number, to its OpenAI layer by name.

vLLM has a door of its own for this over HTTP, which anybody who reaches it may use; here the folder
is one that was checked (serving/adapters.py).
"""

from __future__ import annotations

import logging
from pathlib import Path

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from rayline.errors import SpecError

logger = logging.getLogger(__name__)


class LoadedAdapters:
    """Used within the event loop of the engine."""

    def __init__(self, client: AsyncLLM, models: OpenAIServingModels) -> None:
        self._client = client
        self._models = models

    async def add(self, name: str, folder: Path) -> None:
        """Answer with the adapter in `folder` whoever asks for `name`. What was published under
        the name answers until the new one can, and then no new request.

        Raises SpecError where vLLM does not take it.
        """
        # A number of its own for each content: requests under way keep theirs.
        request = LoRARequest(name, self._models.lora_id_counter.inc(1), str(folder))
        try:
            await self._client.add_lora(request)
        # The worker's own error comes wrapped in those of the processes between.
        except Exception as wrong:
            logger.exception("adapter %s was not loaded", name)
            raise SpecError(f"adapter {name}", f"vLLM does not load it: {wrong}") from None
        before = self._models.lora_requests.get(name)
        self._models.lora_requests[name] = request
        if before is not None:
            await self._client.remove_lora(before.lora_int_id)

    async def remove(self, name: str) -> None:
        """Answer no new request for `name`; those under way end as they began. Does nothing where
        there is no such adapter."""
        before = self._models.lora_requests.pop(name, None)
        if before is not None:
            await self._client.remove_lora(before.lora_int_id)
