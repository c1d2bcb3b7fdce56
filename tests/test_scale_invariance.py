"""Which tensors the loss does not feel the scale of: found from one gradient, shown by scaling them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_wd as wd
from lightning_wd.scale_invariance import INVARIANT, radial_products


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual sum, dropout and a head."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8, eps),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8, eps),
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 5))
        self.unused = nn.Linear(2, 2)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):  # as after some training
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


def residual(eps: float = 1e-8) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(0)
    net, x, y = Residual(eps), torch.randn(16, 3, 10, 10), torch.randint(5, (16,))

    def loss(module: nn.Module) -> Tensor:
        torch.manual_seed(1)  # the same dropout
        return nn.functional.cross_entropy(module(x), y)

    return net, loss


CONVOLUTIONS = ["stem.0.weight", "block.0.weight", "block.3.weight"]


def test_convolutions_before_a_norm_are_found_and_scaling_them_changes_nothing() -> None:
    net, loss = residual()
    found = wd.scale_invariant(net, loss(net))
    assert [name for name, share in found.items() if share < INVARIANT] == CONVOLUTIONS
    before = loss(net).item()
    for name, p in net.named_parameters():
        if math.isnan(found[name]):
            continue
        scaled = copy.deepcopy(net)
        with torch.no_grad():
            scaled.get_parameter(name).mul_(2.0)
        change = abs(loss(scaled).item() - before)
        if name in CONVOLUTIONS:
            assert change < 1e-6 * before, name
        elif p.ndim > 1:
            assert change > 1e-2 * before, name


def test_the_eps_of_a_norm_layer_shows_where_its_input_is_small() -> None:
    """Scaling such a tensor does change the loss."""
    net, loss = residual(eps=1e-2)
    found = wd.scale_invariant(net, loss(net))
    assert [name for name, share in found.items() if share < INVARIANT] == []


def test_the_number_is_the_share_of_the_gradient_along_the_weights() -> None:
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, 0.0, 0.0]]))
    found = wd.scale_invariant(net, -net(x).sum())  # g = -x: <g, w> = -2, ||g|| = 3, ||w|| = 2
    assert found == {"weight": pytest.approx(1 / 3, rel=1e-15)}


def test_a_tensor_of_several_chunks() -> None:
    torch.manual_seed(0)
    g, w = torch.randn(2, 2**22 + 5, dtype=torch.float64)
    expected = torch.stack([g @ w, g @ g, w @ w])
    torch.testing.assert_close(radial_products(g, w), expected, rtol=1e-10, atol=1e-6)


def test_where_nothing_is_known_is_nan_and_frozen_tensors_are_left_out() -> None:
    net, loss = residual()
    net.stem[1].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    with torch.no_grad():
        net.block[4].weight.zero_()  # type: ignore[index, union-attr]  # a zero-initialised branch
    found = wd.scale_invariant(net, loss(net))
    nothing = {"unused.weight", "unused.bias", "block.4.weight", "block.0.weight", "block.3.weight", "block.3.bias"}
    assert {name for name, share in found.items() if math.isnan(share)} >= nothing
    assert found.keys() == {name for name, p in net.named_parameters() if p.requires_grad}


def test_the_graph_and_the_gradients_are_left_as_they_are() -> None:
    net, loss = residual()
    kept = loss(net)
    wd.scale_invariant(net, kept)
    assert all(p.grad is None for p in net.parameters())
    kept.backward()
    twin, _ = residual()
    loss(twin).backward()
    for p, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.grad is other.grad is None or torch.equal(p.grad, other.grad)  # type: ignore[arg-type]


def test_names_are_those_of_the_plan_under_wrappers_and_ties() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Embedding(5, 4, sparse=True)
            self.two = nn.Linear(4, 5, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)).square().mean()

    net = torch.optim.swa_utils.AveragedModel(Tied())
    found = wd.scale_invariant(net, net.module(torch.tensor([0, 2])))
    assert list(found) == [row.name for row in wd.plan_decay(net)] == ["one.weight"]


def test_sparse_and_complex_tensors() -> None:
    table = nn.Embedding(5, 4, sparse=True)
    with torch.no_grad():
        table.weight.fill_(2.0)
    (share,) = wd.scale_invariant(table, table(torch.tensor([1])).sum()).values()
    assert share == pytest.approx(8 / (2 * math.sqrt(4 * 20)))  # <g, w> = 4 * 2, ||g|| = 2, ||w|| = sqrt(20 * 4)
    waves = nn.Module()
    waves.w = nn.Parameter(torch.tensor([3 + 4j, 1j]))
    normed = waves.w / waves.w.abs().square().sum().sqrt()
    (share,) = wd.scale_invariant(waves, (normed[0].real - normed[1].imag) ** 2).values()  # type: ignore[operator]
    assert share < INVARIANT


def freed() -> Any:
    net = nn.Linear(2, 1)
    loss = net(torch.ones(1, 2)).square().sum()
    loss.backward()
    return net, loss


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: (nn.Linear(2, 2), 0.5), ["found: float", "fix: pass what training_step returns, before backward"]),
        (lambda: (nn.Linear(2, 1), torch.ones(())), ["found: Tensor of shape () without a graph"]),
        (lambda: (net := nn.Linear(2, 1), net(torch.ones(3, 2))), ["found: Tensor of shape (3, 1)\n"]),
        (
            lambda: (net := nn.Linear(2, 1), net(torch.full((1, 2), math.nan)).sum()),
            ["scale_invariant needs a finite loss.", "found: a loss of nan", "fix: ask with a batch and weights whose"],
        ),
        (freed, ["cannot differentiate the loss: Trying to backward through the graph a second time", "which frees"]),
        (
            lambda: (nn.Linear(2, 1), nn.Linear(2, 1)(torch.ones(1, 2)).sum()),
            ["the loss does not depend on any trainable tensor", "found: 2 trainable tensors"],
        ),
    ],
)
def test_what_is_refused(make: Any, words: list[str]) -> None:
    module, loss = make()
    with pytest.raises(wd.ConfigError) as caught:
        wd.scale_invariant(module, loss)
    assert [each for each in words if each not in str(caught.value)] == []
