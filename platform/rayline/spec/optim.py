"""The optimizer: one kind, each with only the fields that it knows, and the learning rate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayline.spec.document import Document
from rayline.spec.schedule import CosineSchedule, ScheduleSpec


class GroupSpec(Document):
    """Parameters that are stepped otherwise than the rest."""

    match: str = Field(min_length=1)
    """Hugging Face parameter names, `*` standing for any text, such as "*norm*"."""
    lr_scale: float = Field(default=1.0, ge=0)
    """Their learning rate is the common one times this; 0 freezes them."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Their decay, whatever their dims; null keeps the common rule."""


class OptimSpec(Document):
    """What every optimizer has: a learning rate over time, decay and clipping."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay, on matrices only (not on norms and biases). Decoupled from the gradient, but for sgd,
    rmsprop, adagrad and adadelta, where it is added to the gradient (L2)."""
    groups: list[GroupSpec] = []
    """Exceptions by name; the first that matches a parameter holds."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear rise from 0 to lr."""
    schedule: ScheduleSpec = CosineSchedule()
    """What follows the warm-up: a kind, or a kind with its fields."""
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """The floor: the schedule never goes below lr times this."""
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; null leaves gradients as they are."""


class AdamWSpec(OptimSpec):
    """AdamW (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""


class Adam8bitSpec(OptimSpec):
    """AdamW whose two means are kept in 8 bits, quantized in blocks (Dettmers et al. 2022)."""

    kind: Literal["adam8bit"] = "adam8bit"
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""


class AdafactorSpec(OptimSpec):
    """Adafactor (Shazeer & Stern 2018): a matrix's mean of squares as a row times a column."""

    kind: Literal["adafactor"] = "adafactor"
    beta2_decay: float = Field(default=-0.8, le=0)
    """The mean of squares takes in a share of step ** beta2_decay of the newest one."""
    clip_threshold: float = Field(default=1.0, gt=0)
    """Largest root mean square of an update."""
    eps: float = Field(default=1e-3, gt=0)
    """The least root mean square that a parameter's scale is taken to have."""


class LionSpec(OptimSpec):
    """Lion (Chen et al. 2023): the sign of a mean."""

    kind: Literal["lion"] = "lion"
    betas: tuple[float, float] = (0.9, 0.99)
    """Share of the mean in the update, and decay of the mean."""


class LambSpec(OptimSpec):
    """LAMB (You et al. 2020): Adam with a trust ratio for each parameter."""

    kind: Literal["lamb"] = "lamb"
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the denominator."""


class MuonSpec(OptimSpec):
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for all else."""

    kind: Literal["muon"] = "muon"
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of the gradient."""
    nesterov: bool = True
    """Look one step ahead along that mean."""
    iterations: int = Field(default=5, ge=1, lt=100)
    """Newton-Schulz iterations of the orthogonalization."""
    lr_adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """match_rms_adamw: updates of AdamW's size, so one lr suits both (Liu et al. 2025). original:
    the rate of a matrix times sqrt(max(1, rows / columns))."""
    adamw_for: list[str] = ["*embed*", "*wte*", "*wpe*", "*lm_head*"]
    """Names of matrices that AdamW steps nevertheless: embeddings and the head."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decays."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's denominator."""


class SgdSpec(OptimSpec):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the running sum of gradients; 0 keeps none."""
    nesterov: bool = False
    """Look one step ahead along that sum (Nesterov 1983)."""


class RmspropSpec(OptimSpec):
    """RMSprop (Tieleman & Hinton 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    alpha: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running mean of the gradient's square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""


class AdagradSpec(OptimSpec):
    """Adagrad (Duchi et al. 2011)."""

    kind: Literal["adagrad"] = "adagrad"
    eps: float = Field(default=1e-10, gt=0)
    """Added to the denominator."""


class AdadeltaSpec(OptimSpec):
    """Adadelta (Zeiler 2012)."""

    kind: Literal["adadelta"] = "adadelta"
    rho: float = Field(default=0.9, ge=0, lt=1)
    """Decay of both running means of squares."""
    eps: float = Field(default=1e-6, gt=0)
    """Added under the roots."""


def _kind(value: Any) -> Any:
    """The tag of a tree or a spec; a tree that names no kind is AdamW's."""
    return value.get("kind", "adamw") if isinstance(value, dict) else getattr(value, "kind", None)


AnyOptimSpec = Annotated[
    Annotated[AdamWSpec, Tag("adamw")]
    | Annotated[Adam8bitSpec, Tag("adam8bit")]
    | Annotated[AdafactorSpec, Tag("adafactor")]
    | Annotated[LionSpec, Tag("lion")]
    | Annotated[LambSpec, Tag("lamb")]
    | Annotated[MuonSpec, Tag("muon")]
    | Annotated[SgdSpec, Tag("sgd")]
    | Annotated[RmspropSpec, Tag("rmsprop")]
    | Annotated[AdagradSpec, Tag("adagrad")]
    | Annotated[AdadeltaSpec, Tag("adadelta")],
    Discriminator(_kind),
]
