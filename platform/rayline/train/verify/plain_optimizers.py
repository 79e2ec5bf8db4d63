"""Each optimizer on whole parameters in one process, for the plain training.

torch's own where it has one; the others written out from their papers, one parameter at a time.
Nothing is shared with rayline.train.rules, which computes the same on shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from rayline.spec import (
    AdadeltaSpec,
    AdafactorSpec,
    AdagradSpec,
    Adam8bitSpec,
    AdamWSpec,
    AnyOptimSpec,
    LambSpec,
    LionSpec,
    MuonSpec,
    OptimSpec,
    RmspropSpec,
    SgdSpec,
)

State = dict[str, torch.Tensor]
Update = Callable[[str, torch.Tensor, torch.Tensor, State, int, float, float], None]
"""Changes a weight in place: name, weight, gradient, state (empty at first), step from 1 on, rate,
decay."""
Step = Callable[[float], None]
"""One step of all parameters, from their gradients, at a rate."""


def plain_optimizer(optim: AnyOptimSpec, parameters: Mapping[str, torch.nn.Parameter]) -> Step:
    """What steps whole parameters, by Hugging Face name, as the spec says."""
    groups = [
        {
            "params": [parameter],
            "lr": optim.lr,
            "name": name,
            "lr_scale": scale,
            "weight_decay": decay,
        }
        for name, parameter in parameters.items()
        for scale, decay in [_rate_and_decay(optim, name, parameter)]
    ]
    made = _torchs_own(optim, groups)
    if made is None:
        return _written_out(_update_of(optim), groups)
    optimizer = made

    def step(lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()

    return step


def _rate_and_decay(optim: OptimSpec, name: str, parameter: torch.Tensor) -> tuple[float, float]:
    """Vectors have no decay; the first group that matches says otherwise."""
    decay = optim.weight_decay if parameter.dim() >= 2 else 0.0
    for group in optim.groups:
        if fnmatchcase(name, group.match):
            return group.lr_scale, decay if group.weight_decay is None else group.weight_decay
    return 1.0, decay


def _torchs_own(optim: AnyOptimSpec, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
    """None where torch has no such optimizer, or only one in bfloat16 (Muon)."""
    found: torch.optim.Optimizer | None = None
    match optim:
        case AdamWSpec():
            found = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)
        case SgdSpec():
            found = torch.optim.SGD(groups, momentum=optim.momentum, nesterov=optim.nesterov)
        case RmspropSpec():
            found = torch.optim.RMSprop(groups, alpha=optim.alpha, eps=optim.eps)
        case AdagradSpec():
            found = torch.optim.Adagrad(groups, eps=optim.eps)
        case AdadeltaSpec():
            found = torch.optim.Adadelta(groups, rho=optim.rho, eps=optim.eps)
        case AdafactorSpec():
            found = torch.optim.Adafactor(
                groups,
                beta2_decay=optim.beta2_decay,
                eps=(None, optim.eps),
                d=optim.clip_threshold,
            )
    return found


def _written_out(update: Update, groups: list[dict[str, Any]]) -> Step:
    states: list[State] = [{} for _ in groups]
    done = 0

    @torch.no_grad()
    def step(lr: float) -> None:
        nonlocal done
        done += 1
        for group, state in zip(groups, states, strict=True):
            (weight,) = group["params"]
            rate = lr * group["lr_scale"]
            update(group["name"], weight, weight.grad, state, done, rate, group["weight_decay"])

    return step


def _update_of(optim: AnyOptimSpec) -> Update:
    match optim:
        case LionSpec():
            return _lion(optim)
        case LambSpec():
            return _lamb(optim)
        case MuonSpec():
            return _muon(optim)
        case Adam8bitSpec():
            return _adam8bit(optim)
    raise ValueError(f"no plain form of optim.kind {optim.kind}")


def _lion(optim: LionSpec) -> Update:
    """Chen et al. 2023, algorithm 2."""
    shown, kept = optim.betas

    def update(
        _: str, w: torch.Tensor, g: torch.Tensor, state: State, __: int, lr: float, decay: float
    ) -> None:
        mean = state.get("mean", torch.zeros_like(w))
        w.sub_(lr * (torch.sign(shown * mean + (1 - shown) * g) + decay * w))
        state["mean"] = kept * mean + (1 - kept) * g

    return update


def _adams_means(
    state: State, g: torch.Tensor, step: int, betas: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the gradient and of its square, freed of the bias of their beginning (Kingma & Ba
    2015, algorithm 1)."""
    first, second = betas
    state["mean"] = first * state.get("mean", torch.zeros_like(g)) + (1 - first) * g
    state["square"] = second * state.get("square", torch.zeros_like(g)) + (1 - second) * g * g
    return state["mean"] / (1 - first**step), state["square"] / (1 - second**step)


def _lamb(optim: LambSpec) -> Update:
    """You et al. 2020, algorithm 2."""

    def update(
        _: str, w: torch.Tensor, g: torch.Tensor, state: State, step: int, lr: float, decay: float
    ) -> None:
        mean, square = _adams_means(state, g, step, optim.betas)
        direction = mean / (square.sqrt() + optim.eps) + decay * w
        size, length = float(w.norm()), float(direction.norm())
        w.sub_(lr * (size / length if size and length else 1.0) * direction)

    return update


def _muon(optim: MuonSpec) -> Update:
    """Jordan et al. 2024: the iteration turns each singular value by a polynomial and leaves the
    singular vectors, so it is applied to the values themselves."""

    def turned(matrix: torch.Tensor) -> torch.Tensor:
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values = values / values.norm(dim=-1, keepdim=True).clamp(min=1e-7)
        for _ in range(optim.iterations):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        return ((left * values.unsqueeze(-2)) @ right).to(matrix.dtype)

    def update(
        name: str,
        w: torch.Tensor,
        g: torch.Tensor,
        state: State,
        step: int,
        lr: float,
        decay: float,
    ) -> None:
        w.mul_(1 - lr * decay)
        if w.dim() < 2 or any(fnmatchcase(name, pattern) for pattern in optim.adamw_for):
            mean, square = _adams_means(state, g, step, optim.betas)
            w.sub_(lr * mean / (square.sqrt() + optim.eps))
            return
        share = optim.momentum
        mean = state["mean"] = share * state.get("mean", torch.zeros_like(w)) + (1 - share) * g
        ahead = share * mean + (1 - share) * g if optim.nesterov else mean
        rows, columns = w.shape[-2:]
        longer: float = 0.2 * max(rows, columns) ** 0.5
        if optim.lr_adjust == "original":
            longer = max(1.0, rows / columns) ** 0.5
        w.sub_(lr * longer * turned(ahead))

    return update


def _adam8bit(optim: Adam8bitSpec) -> Update:
    """Dettmers et al. 2022, sections 1.3 and 2: between steps each mean is what its 8 bits say."""
    signed, positive = _shares(signed=True), _shares(signed=False)

    def update(
        _: str, w: torch.Tensor, g: torch.Tensor, state: State, step: int, lr: float, decay: float
    ) -> None:
        mean, square = _adams_means(state, g, step, optim.betas)
        # The step is taken with the means as they are; what is kept of them is packed.
        state["mean"] = _in_8_bits(state["mean"], signed)
        state["square"] = _in_8_bits(state["square"], positive)
        w.mul_(1 - lr * decay).sub_(lr * mean / (square.sqrt() + optim.eps))

    return update


def _shares(*, signed: bool) -> torch.Tensor:
    """The 256 numbers that 8 bits stand for, ascending."""
    found = {0.0, 1.0}
    for decade in range(-6, 1):
        parts = 2 ** (decade + 6 + (0 if signed else 1))
        for part in range(parts):
            middle = (0.1 + 0.9 * (part + 0.5) / parts) * 10.0**decade
            found |= {middle, -middle} if signed else {middle}
    return torch.tensor(sorted(found))


def _in_8_bits(mean: torch.Tensor, shares: torch.Tensor, block: int = 256) -> torch.Tensor:
    """Each element as the nearest share of the largest of its block of neighbours."""
    width = mean.shape[-1]
    blocks = torch.nn.functional.pad(mean, (0, -width % block)).unflatten(-1, (-1, block))
    largest = blocks.abs().amax(-1, keepdim=True)
    scaled = blocks / largest.clamp(min=torch.finfo(mean.dtype).tiny)
    above = torch.searchsorted(shares, scaled.contiguous()).clamp(1, len(shares) - 1)
    lower, upper = shares[above - 1], shares[above]
    nearest = torch.where(scaled - lower < upper - scaled, lower, upper)
    return (nearest * largest).flatten(-2)[..., :width]
