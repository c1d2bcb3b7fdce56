"""Each row of docs/coming_from trains to the same weights by its two columns, with a rate that changes on the way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.pages import table
from torch import nn

import lightning_wd as wd

HEAD = "you wrote | you write | the same because"
ETAS = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.125]
Weights = list[np.ndarray]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).double()


def weights_of(model: nn.Module) -> Weights:
    return [p.detach().numpy().copy() for p in model.parameters()]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return tuple(torch.randn(16, n, generator=source, dtype=torch.float64) for n in (4, 1))  # type: ignore[return-value]


def loss(model: nn.Module) -> torch.Tensor:
    inputs, targets = data()
    return nn.functional.mse_loss(model(inputs), targets)


def by_torch(code: str, **names: Any) -> Weights:
    """Train with the optimizer of torch's kind that the code makes."""
    model = net()
    params = list(model.parameters())
    names |= {"model": model, "params": params, "torch": torch, "wd": wd}
    names["matrices"], names["rest"] = ([p for p in params if (p.ndim == 2) is two] for two in (True, False))
    optimizer = eval(code, names)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: ETAS[min(t, len(ETAS) - 1)])
    for _ in ETAS:
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        schedule.step()
    return weights_of(model)


def by_arrays(step: Callable[[Weights, Weights, float], Weights], penalty: Any = None) -> Weights:
    """Train with ``step(weights, gradients, eta) -> weights``; ``penalty(weight)`` is added to the loss."""
    model = net()
    for eta in ETAS:
        model.zero_grad()
        (loss(model) + sum(map(penalty, model.parameters()) if penalty else [])).backward()
        gradients = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
        for p, w in zip(model.parameters(), step(weights_of(model), gradients, eta), strict=True):
            p.data = torch.tensor(w)
    return weights_of(model)


def by_formula(make: Callable[..., Any], lr: float) -> Weights:
    """Train with a float64 twin for each weight: ``make(w, base_lr)``."""
    twins: list[Any] = []

    def step(weights: Weights, gradients: Weights, eta: float) -> Weights:
        twins[:] = twins or [make(w=w, base_lr=lr) for w in weights]
        for twin, g in zip(twins, gradients, strict=True):
            twin.step(g, lr * eta)
        return [twin.w for twin in twins]

    return by_arrays(step)


def timm(code: str) -> Weights:
    pytest.importorskip("timm.optim", reason="timm is not installed: make test-zoo")
    import timm as library

    return by_torch(code, timm=library)


def transformers(code: str) -> Weights:
    library: Any = pytest.importorskip("transformers", reason="transformers is not installed: make test-zoo")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: make test-zoo")
    return by_torch(code, transformers=library, args=functools.partial(library.TrainingArguments, "out"))


def composer(code: str) -> Weights:
    def adamw(params: Any, lr: float, weight_decay: float) -> Weights:
        betas = (0.9, 0.95)
        return by_formula(functools.partial(reference.Adam, lam=weight_decay, style="independent", betas=betas), lr)

    def sgdw(params: Any, lr: float, momentum: float, weight_decay: float) -> Weights:
        twin = functools.partial(reference.SGD, lam=weight_decay, style="independent", momentum=momentum)
        return by_formula(twin, lr)

    return eval(code, {"DecoupledAdamW": adamw, "DecoupledSGDW": sgdw, "params": None})


def keras(code: str) -> Weights:
    def addons(learning_rate: float, weight_decay: float) -> Weights:
        return by_formula(
            functools.partial(reference.Adam, lam=weight_decay, style="constant", eps=1e-7), learning_rate
        )

    if code.startswith("tfa."):
        return eval(code, {"tfa": SimpleNamespace(optimizers=SimpleNamespace(AdamW=addons))})
    pytest.importorskip("keras", reason="keras is not installed: make test-zoo")
    import keras as library

    if library.backend.backend() != "torch":
        pytest.skip("this Keras runs on another backend: KERAS_BACKEND=torch")
    optimizer, *penalties = eval(f"({code},)", {"keras": library})
    lr = float(optimizer.learning_rate)
    variables: list[Any] = []

    def step(weights: Weights, gradients: Weights, eta: float) -> Weights:
        if not variables:
            variables.extend(library.Variable(w, dtype="float64") for w in weights)
            optimizer.build(variables)
        optimizer.learning_rate = lr * eta
        optimizer.apply([torch.tensor(g) for g in gradients], variables)
        return [variable.numpy() for variable in variables]

    return by_arrays(step, *penalties)


def optax(code: str) -> Weights:
    jax: Any = pytest.importorskip("jax", reason="jax is not installed: make test-zoo")
    library: Any = pytest.importorskip("optax", reason="optax is not installed: make test-zoo")
    with jax.enable_x64(True):
        etas = jax.numpy.asarray(ETAS)
        is_matrix = [p.ndim == 2 for p in net().parameters()]
        chain = eval(code, {"optax": library, "is_matrix": is_matrix, "schedule": lambda count: 1e-2 * etas[count]})
        state: list[Any] = []

        def step(weights: Weights, gradients: Weights, eta: float) -> Weights:
            tree = [jax.numpy.asarray(w) for w in weights]
            updates, new = chain.update(gradients, state[0] if state else chain.init(tree), tree)
            state[:] = [new]
            return [np.array(w) for w in library.apply_updates(tree, updates)]

        return by_arrays(step)


def emerging_optimizers(code: str) -> Weights:
    """The four formulas of its mixin, under SGD."""
    keywords = eval(f"dict({code})")
    lam, method = keywords["weight_decay"], keywords["weight_decay_method"]

    def step(weights: Weights, gradients: Weights, eta: float) -> Weights:
        lr = 0.1 * eta
        fraction = {"decoupled": lam * lr, "independent": lam, "palm": lam * lr**2, "l2": 0.0}[method]
        penalty = lam if method == "l2" else 0.0
        return [w - fraction * w - lr * (g + penalty * w) for w, g in zip(weights, gradients, strict=True)]

    return by_arrays(step)


# Keras adds epsilon before the bias correction, torch after it; decay moves these weights by 2e-3.
TOLERANCE = {"keras": 1e-4}
ROWS = [
    pytest.param(way, wrote, write, id=f"{name}-{wrote}")
    for name, way in {
        "torch": by_torch,
        "timm": timm,
        "transformers": transformers,
        "composer": composer,
        "keras": keras,
        "optax": optax,
        "emerging_optimizers": emerging_optimizers,
    }.items()
    for wrote, write, _ in table(f"coming_from/{name}.md", HEAD)
]


@pytest.mark.filterwarnings("ignore")  # of the other package, about itself
@pytest.mark.parametrize(("way", "wrote", "write"), ROWS)
def test_both_columns_train_to_the_same_weights(
    way: Callable[[str], Weights], wrote: str, write: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.chdir(tmp_path)
    theirs = way(wrote)
    ours = by_torch(write if way is not emerging_optimizers else f"wd.SGDW(params, lr=0.1, {write})")
    assert (
        math.dist(*(np.concatenate([w.ravel() for w in side]) for side in (ours, weights_of(net())))) > 0.01
    )  # it trained
    for w, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(w, other, rtol=1e-9, atol=TOLERANCE.get(way.__name__, 1e-9))
