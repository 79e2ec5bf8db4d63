"""CompileSpec: what turns a model's layers into fused kernels before they run."""

from __future__ import annotations

from typing import Literal

from rayline.spec.document import Document


class CompileSpec(Document):
    """Each layer compiled by itself, by torch.compile, when it first runs (and again where shapes
    change: an evaluation, a batch that grows). It changes rounding and nothing else."""

    backend: Literal["inductor", "aot_eager"] = "inductor"
    """inductor: fused kernels; takes a C++ compiler on CPU, Triton and a C compiler on GPU.
    aot_eager: the same tracing without kernels, no faster than no compiling: for finding what the
    tracing changes."""
