"""Several optimizers in one: equal, step for step, to separate torch optimizers; one state, one schedule."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.optim as optim
from helpers import reference
from helpers.lit import Lit, fit
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.optimizer import register_optimizer_step_pre_hook

import lightning_wd as wd

# --- state that a constructor makes ---


class Eager(torch.optim.Optimizer):
    """SGD with a sum of gradients that the constructor makes, as that of torch 2.6's Adagrad does, and no step."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(self.state[p]["sum"].add_(p.grad), alpha=group["lr"])


@pytest.mark.parametrize("name", ["eager.Eager", None])
def test_groups_that_come_later_have_the_state_that_a_constructor_makes(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("eager")
    module.Eager = Eager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "eager", module)
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    groups = [{"params": [p], **({"optimizer": name} if name else {})} for p in params]
    optimizer: Any = (wd.MultiOptimizer if name else wd.decoupled(Eager))(groups[:2], lr=0.1, weight_decay=0.5)
    optimizer.add_param_group(groups[2])
    for _ in range(2):  # w <- 0.95 * w - 0.1 * (1 + ... + t)
        for p in params:
            p.grad = torch.ones(2)
        optimizer.step()
    for p in params:
        assert p.tolist() == pytest.approx([0.95 * 0.85 - 0.2] * 2)
        assert optimizer.state[p]["sum"].tolist() == [2.0, 2.0]


# --- equal to separate optimizers ---------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))


def convnet() -> nn.Module:
    convolutions = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *convolutions, nn.Flatten(), nn.Linear(4, 3))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embedding(x)).mean(1))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(8, 6)),
    "convnet": (convnet, lambda: torch.randn(8, 36)),
    "tokens": (Tokens, lambda: torch.randint(7, (8, 5))),
}
LR, AMOUNT = 0.02, 0.1
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
# config's name, rule for biases, rule for the head -> separate optimizers of the rest, the biases and the head
Mix = tuple[str, dict[str, Any], dict[str, Any], tuple[Make, Make, Make]]
MIXES: dict[str, Mix] = {
    "adamw, sgdw": (
        "adamw",
        {"optimizer": "sgdw", "momentum": 0.0},
        {"optimizer": "sgdw", "lr": 0.1, "nesterov": True, "style": "l2", "weight_decay": 0.01},
        (
            lambda p: optim.AdamW(p, LR, weight_decay=AMOUNT, fused=True),
            lambda p: optim.SGD(p, LR, fused=True),
            lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True),
        ),
    ),
    "one class, three settings": (
        "adamw",
        {"betas": [0.8, 0.99]},
        {"betas": [0.5, 0.9], "eps": 1e-3, "weight_decay": 0.5},
        (
            lambda p: optim.AdamW(p, LR, weight_decay=AMOUNT, fused=True),
            lambda p: optim.AdamW(p, LR, (0.8, 0.99), weight_decay=0.0, fused=True),
            lambda p: optim.AdamW(p, LR, (0.5, 0.9), 1e-3, 0.5, fused=True),
        ),
    ),
    "radamw, nadamw, adagradw": (
        "radamw",
        {"optimizer": "nadamw", "momentum_decay": 0.01},
        {"optimizer": "adagradw", "lr": 0.5, "weight_decay": 0.0},
        (
            lambda p: optim.RAdam(p, LR),
            lambda p: optim.NAdam(p, LR, momentum_decay=0.01),
            lambda p: optim.Adagrad(p, 0.5),
        ),
    ),
    "dotted paths": (
        "sgdw",
        {"optimizer": "torch.optim.Adadelta", "rho": 0.8},
        {"optimizer": "torch.optim.RMSprop", "momentum": 0.5, "style": "l2", "weight_decay": 0.2},
        (
            lambda p: optim.SGD(p, LR, momentum=0.9, fused=True),
            lambda p: optim.Adadelta(p, LR, 0.8),
            lambda p: optim.RMSprop(p, LR, momentum=0.5, weight_decay=0.2),
        ),
    ),
}


def head_of(model: nn.Module) -> str:
    return [name for name, _ in model.named_parameters()][-2]


def rules(mix: Mix, model: nn.Module) -> list[dict[str, Any]]:
    _, biases, head, _ = mix
    return [{"name": head_of(model), **head}, {"name": "regex:bias", **biases}]


def built(model: nn.Module, mix: Mix) -> Any:
    amount = AMOUNT if mix[0] == "adamw" else 0.0  # elsewhere our decay is an operation of its own
    config = {"name": mix[0], "lr": LR, "weight_decay": amount, "mask": {"rules": rules(mix, model)}}
    return wd.configure_optimizers(model, config)["optimizer"]


def backward(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad()
    model(x).sum(1).sub(1).square().mean().backward()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("model", MODELS)
def test_equal_to_separate_optimizers_bit_for_bit(model: str, mix: str) -> None:
    make, data = MODELS[model]
    torch.manual_seed(0)
    ours = make()
    theirs = copy.deepcopy(ours)
    optimizer = built(ours, MIXES[mix])
    named, head = dict(theirs.named_parameters()), head_of(theirs)
    biases = [name for name in named if "bias" in name]
    rest = [name for name in named if name not in (*biases, head)]
    plan = optimizer.decay_plan
    decays = [[n for n in rest if plan[n].wd_mult], [n for n in rest if not plan[n].wd_mult]]
    of_rest, of_biases, of_head = MIXES[mix][3]
    separate = [of_rest([named[n] for n in decays[0]]), of_biases([named[n] for n in biases]), of_head([named[head]])]
    if decays[1]:  # weights of norm layers
        separate[0].add_param_group({"params": [named[n] for n in decays[1]], "weight_decay": 0.0})
    peaks = [[group["lr"] for group in each.param_groups] for each in (optimizer, *separate)]
    for step in range(50):
        for each, rates in zip((optimizer, *separate), peaks, strict=True):
            for group, peak in zip(each.param_groups, rates, strict=True):
                group["lr"] = peak * (1 - step / 100)
        x = data()
        backward(ours, x)
        backward(theirs, x)
        optimizer.step()
        for each in separate:
            each.step()
    for name, p in ours.named_parameters():
        assert torch.equal(p, named[name]), name
    several = mix != "one class, three settings"
    assert isinstance(optimizer, wd.MultiOptimizer) is several
    if not several:
        assert type(optimizer) is wd.AdamW


def test_equal_to_the_definitions_in_float64() -> None:
    torch.manual_seed(0)
    w, v = (nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2))
    groups = [
        {"params": [w], "optimizer": "adamw", "betas": (0.8, 0.99), "style": "independent", "weight_decay": 0.02},
        {"params": [v], "optimizer": "sgdw", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.05},
    ]
    optimizer = wd.MultiOptimizer(groups, lr=0.1, cautious_wd=True)
    adam = reference.Adam(w.detach().numpy().copy(), 0.1, 0.02, "independent", cautious=True, betas=(0.8, 0.99))
    sgd = reference.SGD(v.detach().numpy().copy(), 0.2, 0.05, cautious=True, momentum=0.9)
    for eta in (1.0, 0.5, 0.25, 0.75):
        for p, twin, peak in ((w, adam, 0.1), (v, sgd, 0.2)):
            p.grad = torch.randn(4, 3, dtype=torch.float64)
            twin.step(p.grad.numpy().copy(), peak * eta)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * eta
        optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), adam.w, rtol=1e-12)
    np.testing.assert_allclose(v.detach().numpy(), sgd.w, rtol=1e-12)


# --- one Optimizer ------------------------------------------------------------------------------------------------


def pair(**config: Any) -> tuple[nn.Module, Any]:
    """A model whose weights AdamW steps, and whose biases SGDW steps at a rate of their own."""
    torch.manual_seed(0)
    model = mlp()
    rule = {"name": "*.bias", "optimizer": "sgdw", "lr": 0.05, "momentum": 0.9}
    config = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "mask": {"rules": [rule]}, **config}
    return model, wd.configure_optimizers(model, config)["optimizer"]


def train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    for seed in range(steps):
        backward(model, torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)))
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_groups_say_what_steps_them() -> None:
    _, optimizer = pair()
    said = [(g["name"], g["optimizer"], g["use_muon"], g["lr"], g["base_lr"]) for g in optimizer.param_groups]
    assert said == [
        ("decay", "adamw", False, 0.01, 0.01),
        ("no_decay", "adamw", False, 0.01, 0.01),
        ("no_decay_lr_0.05_sgdw_momentum_0.9", "sgdw", False, 0.05, 0.05),
    ]
    assert [sorted(g.keys() & {"betas", "momentum"}) for g in optimizer.param_groups] == [["betas"]] * 2 + [
        ["momentum"]
    ]


def test_hooks_and_closure_run_once() -> None:
    model, optimizer = pair()
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    everywhere = register_optimizer_step_pre_hook(lambda *_: calls.append("global"))
    before = weights(model)

    def closure() -> torch.Tensor:
        assert equal(weights(model), before)  # no optimizer has stepped yet
        calls.append("closure")
        backward(model, torch.ones(2, 6))
        return torch.tensor(7.0)

    try:
        assert optimizer.step(closure) == 7.0
    finally:
        everywhere.remove()
    assert calls == ["global", "before", "closure", "after"]
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_gradscaler_unscales_for_all_and_skips_all(fused: bool) -> None:
    def scaled(scale: float, inf: bool = False) -> dict[str, torch.Tensor]:
        model, optimizer = pair(fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
        for _ in range(3):
            model.zero_grad()
            loss = model(torch.ones(2, 6)).square().mean()
            scaler.scale(loss * (float("inf") if inf else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert all(not hasattr(s.optimizer, "grad_scale") for s in optimizer._steppers)
        return weights(model)

    assert equal(scaled(2.0**10), scaled(1.0))  # a power of two is exact
    assert equal(scaled(1.0, inf=True), weights(pair()[0]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_alike_and_alone(copied: Callable[[Any], Any]) -> None:
    model, optimizer = pair()
    train(model, optimizer)
    optimizer.decay_plan = optimizer.decay_config = optimizer.admit = None  # a pickle keeps what torch's keeps
    twin, its = copied((model, optimizer))
    start = weights(model)
    train(twin, its)
    assert equal(weights(model), start)
    train(model, optimizer)
    assert equal(weights(model), weights(twin))
    its.param_groups[2]["lr"] = 0.0  # the stepper within sees it
    still = weights(twin)
    train(twin, its, 1)
    moved = {name for name, p in twin.named_parameters() if not torch.equal(p, still[name])}
    assert moved == {name for name in still if not name.endswith("bias")}


def test_a_killed_run_goes_on_bit_for_bit_from_plain_data() -> None:
    def run(kill: bool) -> dict[str, torch.Tensor]:
        mix = MIXES["radamw, nadamw, adagradw"]
        torch.manual_seed(0)
        model = mlp()
        optimizer = built(model, mix)
        train(model, optimizer)
        if kill:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model = mlp()
            model.load_state_dict(saved["model"])
            optimizer = built(model, mix)
            optimizer.load_state_dict(saved["optimizer"])
        train(model, optimizer)
        return weights(model)

    assert equal(run(kill=True), run(kill=False))


def test_a_killed_trainer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    rules = [{"name": "*.bias", "optimizer": "sgdw", "lr": 0.1}, {"name": "net.2.weight", "optimizer": "nadamw"}]
    config = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "mask": {"rules": rules}}

    def module() -> Lit:
        torch.manual_seed(0)
        return Lit(config, "warmup_cosine")

    whole = module()
    trainer = fit(whole, tmp_path / "whole", max_epochs=4)
    peaks = {group["optimizer"]: group["base_lr"] for group in trainer.optimizers[0].param_groups}
    assert peaks == {"adamw": 0.01, "sgdw": 0.1, "nadamw": 0.01}
    kill = LambdaCallback(on_train_epoch_end=lambda t, _: setattr(t, "should_stop", t.current_epoch == 1))
    first = fit(module(), tmp_path / "part", max_epochs=4, callbacks=[kill])
    assert first.global_step == 16
    first.save_checkpoint(tmp_path / "part.ckpt")
    resumed = module()
    trainer = fit(resumed, tmp_path / "rest", ckpt_path=str(tmp_path / "part.ckpt"), max_epochs=4)
    assert isinstance(trainer.optimizers[0], wd.MultiOptimizer)
    assert equal(weights(resumed), weights(whole))


def test_a_schedule_moves_each_group_from_its_own_peak() -> None:
    model, optimizer = pair()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    train(model, optimizer, 1)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.005, 0.025]
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = model[0].bias.detach() - before["0.bias"]  # type: ignore[index,union-attr]
    buffer = optimizer.state[model[0].bias]["momentum_buffer"]  # type: ignore[index,union-attr]
    torch.testing.assert_close(moved, -0.025 * buffer)


def test_the_state_of_other_optimizers_is_refused() -> None:
    model, optimizer = pair()
    train(model, optimizer)
    saved = optimizer.state_dict()
    rule = {"name": "*.bias", "optimizer": "rmspropw", "lr": 0.05, "momentum": 0.9}
    _, other = pair(mask={"rules": [rule]})
    with pytest.raises(wd.CheckpointMismatchError) as caught:
        other.load_state_dict(saved)
    assert str(caught.value) == (
        "the checkpoint does not fit this MultiOptimizer: group 'no_decay_lr_0.05_sgdw_momentum_0.9' is of another "
        "optimizer.\n  found: optimizer 'sgdw', as of SGD\n  valid: adamw, rmspropw\n"
        "  fix: load it into the optimizer that saved it, or start this one without its state"
    )
    plain = wd.configure_optimizers(mlp(), {"name": "adamw", "lr": 0.01, "weight_decay": 0.1})["optimizer"]
    with pytest.raises(
        wd.CheckpointMismatchError, match=r"found: no optimizer, as of AdamW or Adam\b|found: no optimizer"
    ):
        optimizer.load_state_dict(plain.state_dict())
    with pytest.raises(wd.CheckpointMismatchError, match="is of another optimizer"):
        plain.load_state_dict(saved)
    before = [dict(group) for group in optimizer.param_groups]
    exchanged = {**saved, "param_groups": [{**g} for g in saved["param_groups"]]}
    exchanged["param_groups"][0]["betas"] = (0.5, 0.5)
    with pytest.warns(
        UserWarning, match=r"betas is \(0.5, 0.5\) in the checkpoint, \(0.9, 0.999\) in the configuration"
    ):
        optimizer.load_state_dict(exchanged)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.5)
    assert optimizer.param_groups[2] == before[2]


@pytest.mark.parametrize("on_resume", ["checkpoint", "config", "error"])
def test_on_resume_decides_on_what_rules_set(on_resume: str) -> None:
    """The names of groups say what rules set: they are no other groups where only that differs."""

    def make(lr: float, betas: list[float], **config: Any) -> tuple[nn.Module, Any]:
        rules = [{"name": "*.bias", "optimizer": "sgdw", "lr": lr}, {"name": "3.weight", "betas": betas, "lr_mult": lr}]
        return pair(mask={"rules": rules}, **config)

    saved_names = ["decay", "no_decay", "no_decay_lr_0.05_sgdw", "decay_lr_x0.05_betas_0.8_0.9"]
    names = ["decay", "no_decay", "no_decay_lr_0.1_sgdw", "decay_lr_x0.1_betas_0.7_0.9"]
    model, optimizer = make(0.05, [0.8, 0.9])
    train(model, optimizer)
    assert [group["name"] for group in optimizer.param_groups] == saved_names
    twin, its = make(0.1, [0.7, 0.9], on_resume=on_resume)
    assert [group["name"] for group in its.param_groups] == names
    said = (
        r"'no_decay_lr_0.1_sgdw': lr \(base_lr\) is 0.05 in the checkpoint, 0.1 in the configuration.*"
        r"betas is \(0.8, 0.9\) in the checkpoint, \(0.7, 0.9\) in the configuration"
    )
    if on_resume == "error":
        with pytest.raises(wd.CheckpointMismatchError, match=said):
            its.load_state_dict(optimizer.state_dict())
        return
    with pytest.warns(UserWarning, match=f"(?s){said}"):
        its.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch loads tensors as they are
    won = [(g["name"], g["base_lr"], g.get("betas")) for g in its.param_groups[2:]]
    assert (
        won
        == {
            "checkpoint": [(names[2], 0.05, None), (names[3], 0.0005, (0.8, 0.9))],
            "config": [(names[2], 0.1, None), (names[3], 0.001, (0.7, 0.9))],
        }[on_resume]
    )
    twin.load_state_dict(model.state_dict())
    train(twin, its)
    if on_resume == "checkpoint":
        train(model, optimizer)
        assert equal(weights(model), weights(twin))


def test_other_settings_that_groups_do_not_hold_are_refused() -> None:
    def make(rank: int) -> Any:
        rule = {"name": "*.bias", "optimizer": "helpers.own_ways.Needs", "rank": rank}
        model, optimizer = pair(mask={"rules": [rule]})
        train(model, optimizer)
        return optimizer

    make(2).load_state_dict(make(2).state_dict())
    with pytest.raises(
        wd.CheckpointMismatchError, match="'no_decay_Needs_rank_3' had another name, by a rule's setting"
    ):
        make(3).load_state_dict(make(2).state_dict())


@pytest.mark.parametrize("style", ["decoupled", "constant"])
def test_distributed_checkpoints_fill_an_empty_optimizer(style: str) -> None:
    """They step it once at lr 0 to make its state: what the first stepper has made must not hide that from the next."""
    rule = {"name": "*.weight", "optimizer": "sgdw", "momentum": 0.9}

    def make() -> tuple[nn.Module, Any]:
        return pair(decay={"style": style}, mask={"rules": [rule]}, weight_decay=0.01)

    model, optimizer = make()
    train(model, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))  # torch loads tensors as they are
    twin, its = make()
    before = weights(twin)
    set_optimizer_state_dict(twin, its, saved)
    assert equal(weights(twin), before)
    twin.load_state_dict(model.state_dict())
    train(model, optimizer)
    train(twin, its)
    assert equal(weights(model), weights(twin))


# --- groups -------------------------------------------------------------------------------------------------------


def test_a_group_joins_its_optimizer_or_brings_one() -> None:
    a, b, c, d = (nn.Parameter(torch.ones(2)) for _ in range(4))
    optimizer = wd.MultiOptimizer([{"params": [a], "optimizer": "adamw"}], lr=0.1)
    optimizer.add_param_group({"params": [b], "optimizer": "adamw", "lr": 0.2})
    optimizer.add_param_group({"params": [c], "optimizer": "adamw", "betas": [0.5, 0.9]})
    optimizer.add_param_group({"params": [d], "optimizer": "sgdw"})
    held = [[len(group["params"]) for group in s.optimizer.param_groups] for s in optimizer._steppers]
    assert held == [[1, 1], [1], [1]]
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        optimizer.add_param_group({"params": [a], "optimizer": "radamw"})
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        optimizer.add_param_group({"params": [a], "optimizer": "sgdw"})
    assert [[len(group["params"]) for group in s.optimizer.param_groups] for s in optimizer._steppers] == held
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.01, 0.0]
    for p in (a, b, c, d):
        p.grad = torch.ones(2)
    optimizer.step()
    assert [round(1 - p[0].item(), 4) for p in (a, b, c, d)] == [0.101, 0.202, 0.101, 0.1]


def test_what_the_module_gains_later_joins_by_the_mask_or_its_group() -> None:
    model, optimizer = pair()
    for name, group in (("by_mask", {}), ("by_group", {"optimizer": "sgdw", "momentum": 0.3, "lr": 0.5})):
        model.add_module(name, nn.Linear(3, 3))
        optimizer.add_param_group({"params": [*model.get_submodule(name).parameters()], **group})
    said = {g["name"]: (g["optimizer"], g["lr"], g["weight_decay"], g.get("momentum")) for g in optimizer.param_groups}
    assert dict([*said.items()][3:]) == {
        "decay_late": ("adamw", 0.01, 0.1, None),
        "no_decay_lr_0.05_sgdw_momentum_0.9_late": ("sgdw", 0.05, 0.0, 0.9),
        "decay_sgdw_late_2": ("sgdw", 0.5, 0.1, 0.3),
        "no_decay_lr_0.05_sgdw_momentum_0.9_late_2": ("sgdw", 0.5, 0.0, 0.3),
    }
    rows = {row.name: (row.optimizer, row.group) for row in optimizer.decay_plan}
    assert rows["by_mask.weight"] == ("adamw", "decay_late")
    assert rows["by_group.weight"] == ("sgdw", "decay_sgdw_late_2")


def make(**group: Any) -> Any:
    return wd.MultiOptimizer([{"params": [nn.Parameter(torch.ones(2))], **group}], lr=0.1)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (
            {"optimiser": "adamw"},
            r"group 0 names no optimizer\.\n  found: keys params, optimiser\n  valid: adamw, sgdw, .*dotted path of "
            r"a class, as in timm.optim.Lion\n  fix: give a list of groups that each name theirs: \[\{'params': ",
        ),
        (
            {"optimizer": torch.optim.Rprop},
            r"optimizer of group 0 must be text.*\n  fix: write 'torch.optim.rprop.Rprop'",
        ),
        ({"optimizer": "sgdww", "name": "x"}, r"optimizer of group 'x' 'sgdww' is unknown.*\n  nearest: 'sgdw'"),
        ({"optimizer": "sgdw", "betas": (0.9, 0.9)}, r"group 0 has no key 'betas'"),
        ({"optimizer": "adamw", "momentum": 0.9}, r"group 0 has no key 'momentum'\..*\n  fix: remove momentum$"),
        ({"optimizer": "sgdw", "momentums": 0.9}, r"group 0 has no key 'momentums'.*\n  nearest: 'momentum'"),
        ({"optimizer": "muon", "style": "l2"}, r"Muon does not do style 'l2' of group 0"),
        ({"optimizer": "muon"}, r"a parameter of group 0 is not a real matrix"),
        ({"optimizer": "torch.optim.LBFGS"}, r"LBFGS cannot be decoupled: it evaluates the closure itself"),
        ({"optimizer": "helpers.own_ways.OwnLoad"}, r"OwnLoad of group 0 loads its state in a way of its own"),
        ({"optimizer": "adamw", "style": "independent"}, r"style 'independent' of group 0 needs a weight_decay"),
    ],
)
def test_groups_that_cannot_be_are_refused(group: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError, match=f"(?s){words}"):
        make(**group)


def test_hyperparameters_of_no_optimizer_are_refused() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "optimizer": "adamw"}]
    with pytest.raises(wd.ConfigError, match=r"hyperparameters 'sgdww' is unknown[\s\S]*nearest: 'sgdw'"):
        wd.MultiOptimizer(groups, hyperparameters={"sgdww": {"momentum": 0.9}})
    with pytest.raises(
        wd.ConfigError, match=r"hyperparameters of sgdw has no key 'momentums'[\s\S]*nearest: 'momentum'"
    ):
        wd.MultiOptimizer(groups, hyperparameters={"sgdw": {"momentums": 0.9}})


def test_a_plain_optimizer_refuses_the_key() -> None:
    with pytest.raises(wd.ConfigError, match="group 0 has no key 'optimizer'"):
        wd.AdamW([{"params": [nn.Parameter(torch.ones(2))], "optimizer": "sgdw"}])
