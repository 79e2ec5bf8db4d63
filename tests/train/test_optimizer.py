"""Each optimizer on one process against torch's own, or against its paper written out plainly."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rayline.errors import SpecError
from rayline.parallel.layout import Held
from rayline.spec import AnyOptimSpec, OptimSpec
from rayline.train.optimizer import ShardedOptimizer, check_groups
from rayline.train.rules.adam8bit import BLOCK_ELEMENTS, Mean8bit, dynamic_shares
from rayline.train.rules.member import Member
from rayline.train.rules.muon import orthogonalized
from rayline.train.shards import Holding, Shards

STEPS = 10
LR = 1e-2
SHAPES = {
    "model.embed_tokens.weight": (40, 12),
    "model.layers.0.mlp.up_proj.weight": (24, 300),
    "model.layers.0.mlp.down_proj.weight": (30, 24),
    "model.norm.weight": (12,),
}
KINDS = (
    "adamw",
    "adam8bit",
    "adafactor",
    "lion",
    "lamb",
    "muon",
    "sgd",
    "rmsprop",
    "adagrad",
    "adadelta",
)


def spec_of(kind: str, **fields: Any) -> OptimSpec:
    tree = {"kind": kind, "lr": LR, "weight_decay": 0.1} | fields
    adapter: TypeAdapter[OptimSpec] = TypeAdapter(AnyOptimSpec)
    return adapter.validate_python(tree)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    found = {
        name: torch.randn(shape, generator=generator) * 10.0 ** (step % 3 - 2)
        for name, shape in SHAPES.items()
    }
    found["model.embed_tokens.weight"][::2] = 0.0
    return found


def alone(tensors: dict[str, torch.Tensor]) -> Shards:
    return Shards({name: all_of(tensor) for name, tensor in tensors.items()})


def all_of(tensor: torch.Tensor) -> Holding:
    view = tuple(slice(0, size) for size in tensor.shape)
    return Holding(tensor, tuple(tensor.shape), (Held((0,) * tensor.dim(), view),))


def stepped(spec: OptimSpec, steps: int = STEPS) -> dict[str, torch.Tensor]:
    tensors = weights()
    optimizer = ShardedOptimizer(alone(tensors), spec)
    for step in range(1, steps + 1):
        optimizer.step(gradients(step), LR / step)
    return tensors


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_waits_on_the_host_steps_bit_by_bit(kind: str) -> None:
    """Between steps it is in host memory alone, where checkpoints read and fill it."""
    tensors = weights()
    optimizer = ShardedOptimizer(alone(tensors), spec_of(kind), 0.9, on_host=True)
    expected = weights()
    usual = ShardedOptimizer(alone(expected), spec_of(kind), 0.9)
    for one in (optimizer, usual):
        one.begin_averages()
    for step in range(1, 4):
        for one in (optimizer, usual):
            one.step(gradients(step), LR / step)
    assert all(torch.equal(tensors[name], weight) for name, weight in expected.items())
    for name in SHAPES:
        assert optimizer.slots(name) == usual.slots(name)
        for found, there in zip(optimizer.pieces(name), usual.pieces(name), strict=True):
            assert torch.equal(found.data, there.data), found.slot
            waiting = optimizer.slot(found.slot, name)
            with optimizer.on_device():
                assert optimizer.slot(found.slot, name).data_ptr() != waiting.data_ptr()
            assert optimizer.slot(found.slot, name).data_ptr() == waiting.data_ptr()


Update = Callable[[str, torch.Tensor, torch.Tensor, int, float, float], None]


def stepped_plainly(update: Update) -> dict[str, torch.Tensor]:
    """`update(name, weight, gradient, step, lr, decay)` for each parameter and step."""
    tensors = {name: tensor.double() for name, tensor in weights().items()}
    for step in range(1, STEPS + 1):
        for name, gradient in gradients(step).items():
            decay = 0.1 if tensors[name].dim() > 1 else 0.0
            update(name, tensors[name], gradient.double(), step, LR / step, decay)
    return {name: tensor.float() for name, tensor in tensors.items()}


def stepped_by_torch(kind: type[torch.optim.Optimizer], **fields: Any) -> dict[str, torch.Tensor]:
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in weights().items()}
    groups = [
        {"params": [p for p in tensors.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in tensors.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, **fields)
    for step in range(1, STEPS + 1):
        for name, gradient in gradients(step).items():
            tensors[name].grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = LR / step
        optimizer.step()
    return {name: parameter.detach() for name, parameter in tensors.items()}


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float
) -> None:
    begun = weights()
    for name, weight in expected.items():
        assert not torch.equal(weight, begun[name]), f"{name} never moved"
        off = (found[name] - weight).abs().max().item()
        assert off <= atol, f"{name} is off by {off:.1e}"


@pytest.mark.parametrize(
    ("kind", "theirs", "fields", "options"),
    [
        ("adamw", torch.optim.AdamW, {}, {"betas": (0.9, 0.95)}),
        ("sgd", torch.optim.SGD, {}, {"momentum": 0.9}),
        ("sgd", torch.optim.SGD, {"nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.0}, {}),
        ("rmsprop", torch.optim.RMSprop, {}, {}),
        ("adagrad", torch.optim.Adagrad, {}, {}),
        ("adadelta", torch.optim.Adadelta, {}, {}),
        ("adafactor", torch.optim.Adafactor, {}, {}),
    ],
)
def test_ten_steps_equal_torchs_own_optimizer(
    kind: str,
    theirs: type[torch.optim.Optimizer],
    fields: dict[str, Any],
    options: dict[str, Any],
) -> None:
    assert_close(stepped(spec_of(kind, **fields)), stepped_by_torch(theirs, **options), 2e-6)


def test_lion_is_the_papers() -> None:
    means: dict[str, torch.Tensor] = {}

    def update(
        name: str, weight: torch.Tensor, grad: torch.Tensor, step: int, lr: float, decay: float
    ) -> None:
        mean = means.get(name, torch.zeros_like(weight))
        weight -= lr * (torch.sign(0.9 * mean + 0.1 * grad) + decay * weight)
        means[name] = 0.99 * mean + 0.01 * grad

    assert_close(stepped(spec_of("lion")), stepped_plainly(update), 2e-6)


def adams_means(
    first: float, second: float
) -> Callable[[str, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]:
    """Both means of the gradients so far, freed of the bias of their beginning."""
    means: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def after(name: str, grad: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        zero = torch.zeros_like(grad)
        mean, square = means.get(name, (zero, zero))
        mean, square = first * mean + (1 - first) * grad, second * square + (1 - second) * grad**2
        means[name] = mean, square
        return mean / (1 - first**step), square / (1 - second**step)

    return after


def test_lamb_is_the_papers() -> None:
    means = adams_means(0.9, 0.999)

    def update(
        name: str, weight: torch.Tensor, grad: torch.Tensor, step: int, lr: float, decay: float
    ) -> None:
        mean, square = means(name, grad, step)
        direction = mean / (square.sqrt() + 1e-6) + decay * weight
        weight -= lr * weight.norm() / direction.norm() * direction

    assert_close(stepped(spec_of("lamb")), stepped_plainly(update), 2e-6)


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_is_jordans_with_adamw_for_embeddings_and_vectors(adjust: str) -> None:
    means: dict[str, torch.Tensor] = {}
    adams = adams_means(0.9, 0.95)

    def update(
        name: str, weight: torch.Tensor, grad: torch.Tensor, step: int, lr: float, decay: float
    ) -> None:
        weight *= 1 - lr * decay
        if "layers" not in name:
            mean, square = adams(name, grad, step)
            weight -= lr * mean / (square.sqrt() + 1e-8)
            return
        mean = means[name] = 0.95 * means.get(name, torch.zeros_like(grad)) + 0.05 * grad
        ahead = 0.05 * grad + 0.95 * mean
        left, values, right = torch.linalg.svd(ahead, full_matrices=False)
        values = values / values.norm()
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        rows, columns = weight.shape
        original = max(1, rows / columns) ** 0.5
        ratio = original if adjust == "original" else 0.2 * max(rows, columns) ** 0.5
        weight -= lr * ratio * (left * values) @ right

    assert_close(stepped(spec_of("muon", lr_adjust=adjust)), stepped_plainly(update), 1e-5)


def test_muon_equals_torchs_as_far_as_bfloat16_goes() -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    weight, begun = torch.nn.Parameter(weights()[name]), weights()[name]
    theirs = torch.optim.Muon([weight], lr=LR, weight_decay=0.1)
    tensors = {name: weights()[name]}
    ours = ShardedOptimizer(alone(tensors), spec_of("muon", lr_adjust="original"))
    for step in range(1, STEPS + 1):
        weight.grad = gradients(step)[name]
        theirs.step()
        ours.step({name: gradients(step)[name]}, LR)
    moved = (weight.detach() - begun).norm()
    assert (tensors[name] - weight.detach()).norm() < 0.02 * moved


def test_muon_orthogonalizes_a_stack_of_matrices_one_by_one() -> None:
    stack = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2))
    together = orthogonalized(stack, 5)
    for number in range(3):
        assert torch.allclose(together[number], orthogonalized(stack[number], 5), atol=1e-6)
    values = torch.linalg.svdvals(together)
    assert 0.5 < values.min() < values.max() < 1.5


def test_adam_in_8_bits_follows_adamw() -> None:
    exact, packed = stepped(spec_of("adamw")), stepped(spec_of("adam8bit"))
    for name, begun in weights().items():
        moved = (exact[name] - begun).norm()
        off = (packed[name] - exact[name]).norm()
        assert 0 < off < 0.05 * moved, f"{name}: {off / moved:.3f}"


@pytest.mark.parametrize("signed", [True, False])
def test_shares_of_8_bits_are_256_over_seven_decades(signed: bool) -> None:
    shares = dynamic_shares(signed=signed)
    assert len(shares.unique()) == 256
    assert shares.max() == 1
    assert shares.min() == pytest.approx(-0.9929688 if signed else 0)
    positive = shares[shares > 0]
    assert positive.min() == pytest.approx(5.5e-7 if signed else 3.25e-7)


@given(width=st.integers(1, 700), scale=st.floats(1e-12, 1e6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_packing_keeps_every_element_within_half_a_share(
    width: int, scale: float, seed: int
) -> None:
    """The widest gap between shares is that of the highest decade: 0.9 over 64."""
    mean = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * scale
    holding = all_of(mean)
    packing = Mean8bit("exp_avg", signed=True)
    state = packing.begin(Member("w", "w", mean, (3, width), 1.0, 0.0))
    assert not packing.unpacked(holding, state).any()
    largest = packing.largest(holding, state, mean)
    packing.pack(holding, state, mean, largest)
    kept = packing.unpacked(holding, state)
    for begin in range(0, width, BLOCK_ELEMENTS):
        block, found = (t[:, begin : begin + BLOCK_ELEMENTS] for t in (mean, kept))
        bound = block.abs().amax(-1, keepdim=True) * (0.9 / 64 / 2 * 1.01)
        assert ((block - found).abs() <= bound).all()


def test_a_group_has_its_own_rate_and_decay() -> None:
    groups = [
        {"match": "*embed*", "lr_scale": 0.0},
        {"match": "*up_proj*", "weight_decay": 0.0},
        {"match": "*layers.0*", "lr_scale": 0.5},
    ]
    found = stepped(spec_of("adamw", groups=groups), steps=1)
    plain, undecayed = stepped(spec_of("adamw"), steps=1), spec_of("adamw", weight_decay=0.0)
    embed, up, down, norm = SHAPES
    assert torch.equal(found[embed], weights()[embed])
    assert torch.equal(found[up], stepped(undecayed, steps=1)[up])
    half = (plain[down] - weights()[down]) / 2
    assert torch.allclose(found[down] - weights()[down], half, atol=1e-6)
    assert torch.equal(found[norm], plain[norm])


def test_a_group_that_matches_nothing_is_refused() -> None:
    spec = spec_of("adamw", groups=[{"match": "*norm*"}, {"match": "*nrom*"}])
    with pytest.raises(SpecError, match=r"optim\.groups\.1\.match.*matches no parameter"):
        check_groups(spec, set(SHAPES))


@pytest.mark.parametrize("kind", KINDS)
def test_state_put_elsewhere_goes_on_bit_by_bit(kind: str) -> None:
    """Seven steps, then three by a new optimizer that was given the state as pieces."""
    spec = spec_of(kind)
    tensors = weights()
    first = ShardedOptimizer(alone(tensors), spec, average_decay=0.9)
    for step in range(1, 8):
        first.step(gradients(step), LR / step)
    moved = {name: tensor.clone() for name, tensor in tensors.items()}
    second = ShardedOptimizer(alone(moved), spec, average_decay=0.9)
    for name in SHAPES:
        for kept, fresh in zip(first.pieces(name), second.pieces(name), strict=True):
            assert kept.slot == fresh.slot
            assert tuple(kept.data.shape) == kept.shape
            fresh.data.copy_(kept.data)
    second.resume_at(7)
    for step in range(8, 11):
        for optimizer in (first, second):
            optimizer.step(gradients(step), LR / step)
    for name, tensor in tensors.items():
        assert torch.equal(moved[name], tensor), name
        assert torch.equal(first.slot("average", name), second.slot("average", name)), name


def test_the_average_of_weights_is_their_exponential_mean() -> None:
    tensors = weights()
    optimizer = ShardedOptimizer(alone(tensors), spec_of("adamw"), average_decay=0.9)
    expected = {name: tensor.double() for name, tensor in weights().items()}
    for step in range(1, STEPS + 1):
        optimizer.step(gradients(step), LR)
        for name, tensor in tensors.items():
            expected[name] = 0.9 * expected[name] + 0.1 * tensor.double()
    optimizer.take_averages()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor.double(), expected[name], atol=1e-6), name
        assert math.isfinite(tensor.sum())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
