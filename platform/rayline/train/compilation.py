"""Layers compiled one by one (torch.compile of each transformer layer, as torchtitan does): all of
them are alike, so what one was compiled to runs the others too, and what travels between ranks
around a layer stays as it is."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator, Set

import torch
from torch import nn

from rayline.errors import SpecError
from rayline.spec import CompileSpec

_MOST_COMPILATIONS = 64
"""Of one layer's code, in one process."""


def check_compiler(spec: CompileSpec | None, device: torch.device) -> None:
    """Refuse what this machine has no compiler for. Every rank calls it, before anything else.
    Raises SpecError."""
    if spec is None or spec.backend != "inductor":
        return
    missing = missing_compiler(device.type)
    if missing is not None:
        raise SpecError(
            "compile.backend",
            f"inductor makes kernels for a {device.type} with {missing}, which this machine does "
            "not have",
            value=spec.backend,
            allowed="aot_eager, or compile: null",
            fix=f"install {missing} on every node (g++ and gcc: apt-get install g++), or "
            "--set compile=null",
        )


def missing_compiler(device_type: str) -> str | None:
    """What Inductor would call and does not find; None where all is there. It goes by the same
    names and variables as torch._inductor.config.cpp.cxx and Triton's runtime/build.py."""
    if device_type == "cpu":
        compilers = [os.environ.get("CXX", "g++")]
    else:
        if importlib.util.find_spec("triton") is None:
            return "triton"
        compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return None if any(map(shutil.which, compilers)) else compilers[0]


def compile_layers(
    layers: Iterable[nn.Module], experts: Iterable[nn.Module], spec: CompileSpec | None
) -> None:
    """Let the layers be compiled when they are first called, in place. Every rank calls it, after
    all that changes a layer's own forward pass and before it is sharded over the data axis, whose
    hooks run outside of what is compiled. `experts`: modules whose tokens are as many as routers
    choose; of a layer that has them only the parts without them are compiled, or shapes would
    change at every step."""
    if spec is None:
        return
    # Layers of several kinds, each training and evaluating, share one count of compilations. One
    # that was compiled too often would go on uncompiled, with a line in a log: it is an error here.
    torch.compiler.config.recompile_limit = _MOST_COMPILATIONS
    torch.compiler.config.fail_on_recompile_limit_hit = True
    uneven = set(experts)
    for layer in layers:
        for part in _even_parts(layer, uneven):
            part.compile(backend=spec.backend)


def _even_parts(layer: nn.Module, uneven: Set[nn.Module]) -> Iterator[nn.Module]:
    """The layer, or those of its children that hold none of `uneven`."""
    if uneven.isdisjoint(layer.modules()):
        yield layer
        return
    yield from (child for child in layer.children() if uneven.isdisjoint(child.modules()))
