"""The servers that are set against each other: vLLM's own, ray.serve.llm, rayline. Each is one tree
of processes with the same arguments and environment for its engine. And the models that they serve.
Imported by the scripts beside it.

On a CPU vLLM's own server computes in a process beside the engine's, rayline in the engine's:
`vllm_one_process` is vLLM's own server told to do the same."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from load import Server
from processes import Tree

from rayline.serving.settings import Options, engine_arguments, environment
from rayline.spec import ServeSpec

VLLM, RAY_SERVE_LLM, RAYLINE = "vllm", "ray_serve_llm", "rayline"
VLLM_ONE_PROCESS = "vllm_one_process"
NAMES = (VLLM, VLLM_ONE_PROCESS, RAY_SERVE_LLM, RAYLINE)
READY_S = 400.0
TOKENS = 32
"""Of each prompt, and of each answer."""
_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class Model:
    """What is served, and how a prompt of TOKENS tokens is made for it."""

    what: str
    write: Callable[[Path], object]
    prompt: dict[str, Any]
    """What chat_questions is told."""


def write_tiny(folder: Path) -> None:
    from rayline.models.tiny import write_tiny_model

    write_tiny_model(folder, layers=4, hidden=256, heads=8, kv_heads=4, ffn=544)


def write_smollm2(folder: Path) -> None:
    from rayline.cli.smollm2 import prepare_smollm2

    prepare_smollm2(folder)


MODELS = {
    # 19 tokens of the chat's own, and a byte a token.
    "tiny": Model("Llama of 2.6 M parameters, fp32", write_tiny, {"letters": 13}),
    # 14 of the chat's own, and a letter with the space before it is one.
    "smollm2": Model(
        "SmolLM2-135M-Instruct, fp32",
        write_smollm2,
        {"letters": 18, "between": " ", "system": ""},
    ),
}


def spec_of(name: str, folder: Path) -> ServeSpec:
    """The same for every contender."""
    return ServeSpec.parse(
        {
            "name": name,
            "model": {"directory": str(folder)},
            "device": "cpu",
            "engine": {
                "dtype": "float32",
                "max_model_len": 1024,
                "max_num_seqs": 32,
                "kv_cache_gib": 0.5,
            },
            "cpus_per_replica": 2,
        }
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    server: Server
    tree: Tree
    ready_s: float
    """From the start of its process to the first token that came out of it."""


@contextmanager
def running(name: str, spec: ServeSpec, folder: Path, more: dict[str, str]) -> Iterator[Running]:
    """One of NAMES, serving what `spec` says, until the end of the block. Its log and whatever it
    keeps lies in `folder`; `more` is environment beyond the engine's."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    spec = spec.changed({"gateway.port": port})
    command = {
        VLLM: vllm_command,
        VLLM_ONE_PROCESS: vllm_one_process_command,
        RAY_SERVE_LLM: ray_command,
        RAYLINE: rayline_command,
    }[name]
    key_file = folder / "key"
    began_s = time.perf_counter()
    with Tree(command(spec, folder), everywhere(spec) | more, folder / "log") as tree:
        server = wait_for_a_token(spec, port, key_file, tree)
        yield Running(server, tree, time.perf_counter() - began_s)


def everywhere(spec: ServeSpec) -> dict[str, str]:
    """The environment of every contender."""
    return {
        **os.environ,
        **environment(spec, "cpu"),
        "RAY_AUTH_MODE": "disabled",
        # By default Ray's workers give way to everything else on the machine.
        "RAY_worker_niceness": "0",
    }


def vllm_command(spec: ServeSpec, _: Path) -> list[str]:
    """vLLM's own server. Its access log, a line a request, is off."""
    module = "vllm.entrypoints.openai.api_server"
    return [
        *(sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(spec.gateway.port)),
        *("--model", str(spec.model.directory), "--served-model-name", spec.name),
        "--disable-uvicorn-access-log",
        *flags(engine_arguments(spec, "cpu")),
    ]


def vllm_one_process_command(spec: ServeSpec, folder: Path) -> list[str]:
    """vLLM's own server, computing in its engine's process."""
    executor = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    return [*vllm_command(spec, folder), "--distributed-executor-backend", executor]


def flags(arguments: Options) -> list[str]:
    """Engine arguments as vLLM's command line takes them."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def ray_command(spec: ServeSpec, _: Path) -> list[str]:
    """ray.serve.llm as it comes."""
    told = {
        "model": spec.name,
        "folder": spec.model.directory,
        "port": spec.gateway.port,
        "engine": engine_arguments(spec, "cpu"),
        "environment": environment(spec, "cpu"),
    }
    return [sys.executable, str(_PEERS / "ray_serve_llm.py"), json.dumps(told)]


def rayline_command(spec: ServeSpec, folder: Path) -> list[str]:
    """rayline, with a key, a quota and the ledger."""
    spec = spec.changed({"gateway.store": store_in(folder), "gateway.keys": "required"})
    file = folder / "serve.yaml"
    file.write_text(spec.to_yaml())
    return [sys.executable, str(_PEERS / "rayline_serve.py"), str(file), str(folder / "key")]


def store_in(folder: Path) -> str:
    """rayline's keys and ledger."""
    return f"sqlite:///{folder / 'serving.db'}"


def wait_for_a_token(spec: ServeSpec, port: int, key_file: Path, tree: Tree) -> Server:
    """Where it answers. Raises RuntimeError where it ends before, or takes longer than READY_S."""
    url = f"http://127.0.0.1:{port}/v1"
    body = {"model": spec.name, "prompt": "Hello", "max_tokens": 1}
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        tree.check()
        server = Server(url, key_file.read_text() if key_file.exists() else None)
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        try:
            if httpx.post(f"{url}/completions", json=body, headers=headers, timeout=60).is_success:
                return server
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"no token within {READY_S:g} s:\n{tree.log.read_text()[-4000:]}")
