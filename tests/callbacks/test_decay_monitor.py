"""DecayMonitor: its numbers against float64 by hand, against theory, and in unusual training."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.ddp import needs_shards_on_cpu
from helpers.recipe import ROOT
from helpers.small_run import CrashAfter, CrashError, Net, TwoOptimizers, fit
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

import lightning_wd as wd
from lightning_wd import callbacks
from lightning_wd.callbacks import RestartSnapshot
from lightning_wd.callbacks.measures import Snapshot, _lost_decay
from lightning_wd.runs.folder import RunCSVLogger


class Copies(L.Callback):
    """Float64 copies of what each optimizer step read and wrote, by group."""

    def __init__(self) -> None:
        self.steps: list[list[dict[str, Any]]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.before = [[copy(p) for p in g["params"]] for g in optimizer.param_groups]
        self.grads = [[copy(p.grad) for p in g["params"]] for g in optimizer.param_groups]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.steps.append(
            [
                {
                    **{k: v for k, v in group.items() if k != "params"},
                    "old": old,
                    "g": g,
                    "new": [copy(p) for p in group["params"]],
                    "state": [
                        {k: copy(v) for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
                        for p in group["params"]
                    ],
                }
                for group, old, g in zip(optimizer.param_groups, self.before, self.grads, strict=True)
            ]
        )


def copy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().double().numpy().copy()


def norm(arrays: list[np.ndarray[Any, Any]]) -> float:
    return math.sqrt(sum(float((a * a).sum()) for a in arrays))


def angle(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    unit_a, unit_b = a / norm([a]), b / norm([b])
    return 2 * math.asin(min(1.0, norm([unit_a - unit_b]) / 2))  # accurate for small angles, where acos is not


def logged(tmp_path: Path) -> list[dict[str, float]]:
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if any(key.startswith("wd/") for key in row)]


def by_hand(group: dict[str, Any]) -> dict[str, float]:
    """Every quantity that holds for any optimizer."""
    moved = [new - old for new, old in zip(group["new"], group["old"], strict=True)]
    angles = [angle(o, n) for o, n in zip(group["old"], group["new"], strict=True) if o.ndim >= 2]
    weights = norm(group["new"])
    return {
        "weight_norm": weights,
        "weight_rms": weights / math.sqrt(sum(w.size for w in group["new"])),
        "grad_norm": norm(group["g"]),
        "grad_weight_ratio": norm(group["g"]) / weights,
        "relative_update": norm(moved) / norm(group["old"]),
        **({"angular_update": sum(angles) / len(angles)} if angles else {}),
    }


def predicted(optimizer: dict[str, Any], style: str, lr: float, lam: float, d: float | None) -> dict[str, float]:
    """The equilibria of science.md, for a full decay of one style."""
    if not lam or optimizer.get("decay", {}).get("cautious") or lr == 0:
        return {}
    if optimizer["name"] == "adamw" and d:
        a, b1 = 1 - d, optimizer.get("betas", [0.9])[0]
        square = lr**2 / (1 - a**2) * (1 - b1) / (1 + b1) * (1 + a * b1) / (1 - a * b1)
        angular = math.sqrt(2 * d * (1 - b1) / (1 + b1))
        return {"weight_rms_predicted": math.sqrt(square), "angular_update_predicted": angular}
    mu = optimizer.get("momentum")
    if mu is None:
        return {}
    ratio = math.sqrt(2 * lam * (1 - mu) / lr) if style == "l2" else (1 - mu) * math.sqrt(2 * (d or 0) / lr / lr)
    return {"grad_weight_ratio_predicted": ratio}


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adamw", "lr": 0.05, "weight_decay": 0.2, "betas": [0.8, 0.99]},
        {"name": "adamw", "lr": 0.05, "weight_decay": 0.01, "decay": {"style": "independent"}},
        {"name": "adamw", "lr": 0.05, "weight_decay": 0.2, "decay": {"style": "corrected"}},
        {"name": "sgdw", "lr": 0.1, "weight_decay": 0.02, "momentum": 0.9, "decay": {"style": "constant"}},
        {
            "name": "sgdw",
            "lr": 0.1,
            "weight_decay": 0.2,
            "momentum": 0.9,
            "nesterov": True,
            "decay": {"cautious": True},
        },
        {"name": "adam_l2", "lr": 0.05, "weight_decay": 0.1},
        {"name": "sgd_l2", "lr": 0.1, "weight_decay": 0.1, "momentum": 0.9},
    ],
    ids=lambda o: f"{o['name']} {o.get('decay', {})}",
)
def test_logged_values_equal_float64_by_hand(optimizer: dict[str, Any], tmp_path: Path) -> None:
    copies = Copies()
    schedule = {"name": "warmup_cosine", "warmup_steps": 3}
    monitor = wd.DecayMonitor(every_n_steps=1)
    fit(Net(optimizer, schedule), tmp_path, monitor, copies, logger=RunCSVLogger(tmp_path))
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == list(range(15))
    style = optimizer.get("decay", {}).get("style", "l2" if "l2" in optimizer["name"] else "decoupled")
    shrink = {"decay": 1.0, "no_decay": 1.0}
    for t, (row, groups) in enumerate(zip(rows, copies.steps, strict=True)):
        eta = (t + 1) / 4 if t < 3 else 0.5 * (1 + math.cos(math.pi * (t - 3) / 12))
        for group in groups[:2]:
            name, lam, lr0 = group["name"], group["weight_decay"], optimizer["lr"]
            expected = by_hand(group)
            rule = {"decoupled": lr0 * eta, "independent": eta, "constant": 1.0, "corrected": lr0 * eta**2}
            if style != "l2" and not (style == "corrected" and name == "decay_decoupled"):
                d = expected["d_t"] = rule[style] * lam
                shrink[name] *= 1 - d
                expected["shrink"] = shrink[name]
                if d:
                    expected.update(timescale_steps=1 / d, timescale_epochs=1 / d / 5, timescale_runs=1 / d / 15)
            expected.update(predicted(optimizer, style, lr0 * eta, lam, expected.get("d_t")))
            found = {key: row[f"wd/{name}/{key}"] for key in expected}
            rel = {"angular_update": 1e-4}  # a small angle in float32
            assert found == {k: pytest.approx(v, rel.get(k, 1e-5), 1e-9) for k, v in expected.items()}, (t, name)
            assert row[f"wd/{name}/nonfinite_weights"] == row[f"wd/{name}/nonfinite_grads"] == 0


def run_recorded(tmp_path: Path, optimizer: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the last measured row and the copies of group `decay` at that step."""
    copies = Copies()
    fit(Net(optimizer), tmp_path, wd.DecayMonitor(every_n_steps=1), copies, logger=RunCSVLogger(tmp_path))
    row = {k.removeprefix("wd/decay/"): v for k, v in logged(tmp_path)[-1].items() if k.startswith("wd/decay/")}
    return row, copies.steps[-1][0]


def test_lost_decay_of_adam_with_l2(tmp_path: Path) -> None:
    row, group = run_recorded(tmp_path, {"name": "adam_l2", "lr": 0.01, "weight_decay": 0.1})
    v_hat = np.concatenate([s["exp_avg_sq"].ravel() for s in group["state"]]) / (1 - 0.999**15)
    d = 0.01 * 0.1 / (np.sqrt(v_hat) + 1e-8)
    p5, p50, p95 = np.quantile(d, [0.05, 0.5, 0.95])
    assert [row[f"lost_decay_{key}"] for key in ("mean", "p5", "p50", "p95", "spread")] == pytest.approx(
        [d.mean(), p5, p50, p95, p95 / p5], rel=1e-5
    )
    assert row["lost_decay_spread"] > 2
    assert "d_t" not in row


@pytest.mark.parametrize("settings", [{"name": "adamw"}, {"name": "sgdw"}, {"name": "sgdw", "nesterov": True}])
def test_cautious_fraction(settings: dict[str, Any], tmp_path: Path) -> None:
    momentum = {} if settings["name"] == "adamw" else {"momentum": 0.9}
    config = {"lr": 0.01, "weight_decay": 0.1, "decay": {"cautious": True}, **momentum, **settings}
    row, group = run_recorded(tmp_path, config)
    agree = total = 0
    for old, g, state in zip(group["old"], group["g"], group["state"], strict=True):
        u = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
        u = g + 0.9 * u if settings.get("nesterov") else u
        agree, total = agree + int((u * old >= 0).sum()), total + old.size
    assert row["cautious_fraction"] == pytest.approx(agree / total)
    assert 0.1 < row["cautious_fraction"] < 0.9
    assert "weight_rms_predicted" not in row  # the theory is of full decay


@pytest.mark.parametrize("name", ["nadamw", "radamw", "rmspropw", "adagradw", "adamaxw", "adafactor", "muon"])
def test_cautious_fraction_of_every_optimizer(name: str) -> None:
    """Against a twin without decay, whose step is the update u: decayed is where ``u * w_old >= 0``."""
    torch.manual_seed(0)
    weight = torch.randn(64, 32)
    twins = [nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 4, bias=False)) for _ in range(2)]
    settings = {"name": name, "lr": 0.01, "decay": {"cautious": True}, "mask": "all"}
    twins[0][0].weight.data, twins[1][0].weight.data = weight.clone(), weight.clone()
    twins[1][1].load_state_dict(twins[0][1].state_dict())
    optimizer, plain = (
        wd.configure_optimizers(twin, {**settings, "weight_decay": lam})["optimizer"]
        for twin, lam in zip(twins, (0.5, 0.0), strict=True)
    )
    for step in range(3):
        for twin in twins:
            torch.manual_seed(step)
            for p in twin.parameters():
                p.grad = torch.randn_like(p)
        twins[1].load_state_dict(twins[0].state_dict())
        old = [p.detach().clone() for p in twins[1].parameters()]
        snapshot = Snapshot(optimizer)
        optimizer.step()
        plain.step()
    groups = optimizer.param_groups
    found = sum(
        n["cautious_fraction"] * sum(p.numel() for p in group["params"])
        for n, group in zip(snapshot.measure(optimizer, [0.005] * len(groups)), groups, strict=True)
    )
    toward_zero = [(w - p) * w >= 0 for w, p in zip(old, twins[1].parameters(), strict=True)]
    assert found == sum(int(t.sum()) for t in toward_zero)
    assert 0.1 < found / sum(t.numel() for t in toward_zero) < 0.9


# Pure noise: theory and what is measured within 5 %.


def noise_run(optimizer: torch.optim.Optimizer, steps: int, measured: int) -> dict[str, float]:
    """Step on gradients of pure noise; return the mean of each quantity over the last steps."""
    (group,) = optimizer.param_groups
    generator, rows = torch.Generator().manual_seed(0), []
    for t in range(steps):
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)
        snapshot = Snapshot(optimizer) if t >= steps - measured else None
        optimizer.step()
        if snapshot is not None:
            rows += snapshot.measure(optimizer, [group["lr"] * group["weight_decay"]])
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


@pytest.mark.parametrize(("lr", "lam", "beta1"), [(1e-2, 1.0, 0.9), (3e-2, 1.0, 0.9), (1e-2, 2.0, 0.5)])
def test_adamw_settles_where_theory_says(lr: float, lam: float, beta1: float) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(0.05 * torch.randn(64, 64))
    row = noise_run(wd.AdamW([weight], lr=lr, weight_decay=lam, betas=(beta1, 0.99)), 900, 100)
    assert row["weight_rms"] == pytest.approx(row["weight_rms_predicted"], rel=0.05)
    assert row["angular_update"] == pytest.approx(row["angular_update_predicted"], rel=0.05)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["SGDW", "SGDL2"])
def test_sgd_on_normalized_layers_settles_where_theory_says(name: str, momentum: float) -> None:
    """A scale-free loss: the gradient is orthogonal to w and goes as 1 / ||w||."""
    from lightning_wd.optimizers import SGDL2

    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 64))
    cls = wd.SGDW if name == "SGDW" else SGDL2
    optimizer = cls([weight], lr=0.1, momentum=momentum, weight_decay=0.05 if momentum == 0 else 0.02)
    rows = []
    for t in range(3000):
        noise, w = torch.randn(64, 64), weight.detach()
        noise -= w * (noise * w).sum() / w.square().sum()
        weight.grad = noise / w.norm()
        snapshot = Snapshot(optimizer) if t >= 2900 else None
        optimizer.step()
        if snapshot is not None:
            d = 0.1 * optimizer.param_groups[0]["weight_decay"]
            rows += snapshot.measure(optimizer, [None if name == "SGDL2" else d])
    measured, predicted = (
        sum(row[key] for row in rows) / len(rows) for key in ("grad_weight_ratio", "grad_weight_ratio_predicted")
    )
    assert measured == pytest.approx(predicted, rel=0.05)


# Where training is not plain.


def test_each_group_is_measured_by_what_steps_it(tmp_path: Path) -> None:
    rules = [
        {"name": "head.weight", "optimizer": "sgdw", "lr": 0.05, "momentum": 0.9, "nesterov": True},
        {"name": "backbone.4.weight", "optimizer": "adam_l2", "style": "l2", "weight_decay": 0.2},
    ]
    config = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "mask": {"rules": rules}}
    trainer = fit(Net(config), tmp_path, wd.DecayMonitor(1))
    seen: dict[str, set[str]] = {}
    for key in trainer.callback_metrics:
        if key.startswith("wd/"):
            seen.setdefault(key.split("/")[1], set()).add(key.split("/")[2])
    theory = {"weight_rms_predicted", "grad_weight_ratio_predicted", "lost_decay_spread", "d_t"}
    assert {name: sorted(quantities & theory) for name, quantities in seen.items()} == {
        "decay": ["d_t", "weight_rms_predicted"],
        "no_decay": ["d_t"],
        "decay_lr_0.05_sgdw_momentum_0.9_nesterov_True": ["d_t", "grad_weight_ratio_predicted"],
        "decay_0.2_l2_adam_l2": ["lost_decay_spread"],
    }


def test_groups_without_weights_are_left_out(tmp_path: Path) -> None:
    """torch accepts an empty group and a tensor without elements."""

    class Own(Net):
        def configure_optimizers(self) -> Any:
            nothing = nn.Parameter(torch.empty(0, 3))
            groups: list[dict[str, Any]] = [{"params": [*self.parameters()]}, {"params": []}, {"params": [nothing]}]
            return torch.optim.AdamW(groups)

    trainer = fit(Own(), tmp_path, wd.DecayMonitor(1), wd.DecayPlanSummary())
    assert {key.split("/")[1] for key in trainer.callback_metrics if key.startswith("wd/")} == {"group_0"}


def test_an_empty_shard_has_no_lost_decay() -> None:
    """FSDP2 may leave a rank without any row of a group; torch.quantile raises on an empty tensor."""
    weight = nn.Parameter(torch.empty(0, 3))
    optimizer = torch.optim.Adam([weight], weight_decay=0.1)
    weight.grad = torch.empty(0, 3)
    optimizer.step()
    assert "exp_avg_sq" in optimizer.state[weight]
    assert _lost_decay(optimizer, optimizer.param_groups[0]) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device beside the CPU")
def test_a_group_may_span_two_devices() -> None:
    weights = [nn.Parameter(torch.ones(4, 3, device=device)) for device in ("cpu", "cuda")]
    optimizer = torch.optim.Adam(weights, weight_decay=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
        weight.grad[0, 0] = torch.nan if weight.is_cuda else 1.0
    snapshot = Snapshot(optimizer)
    optimizer.step()
    (numbers,) = snapshot.measure(optimizer, [None])
    assert (numbers["nonfinite_weights"], numbers["nonfinite_grads"]) == (1, 1)
    assert numbers["lost_decay_spread"] == pytest.approx(1, rel=1e-5)


def test_the_fraction_that_decays_only_as_a_learning_rate() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, eps=1e-9), nn.Linear(5, 3), nn.Linear(2, 2)
    )  # the last unused
    nn.init.ones_(net[1].bias)  # type: ignore[arg-type]
    optimizer = wd.configure_optimizers(net, {"name": "adamw", "lr": 0.1, "weight_decay": 0.5})["optimizer"]
    net[:3](torch.randn(16, 6)).square().mean().backward()
    snapshot = Snapshot(optimizer)
    optimizer.step()
    decay, no_decay = snapshot.measure(optimizer, [0.05, 0.0])
    assert decay["scale_invariant_fraction"] == 30 / 45
    assert no_decay["scale_invariant_fraction"] == 0.0


def test_only_measured_steps_are_logged_and_counted_by_optimizer_steps(tmp_path: Path) -> None:
    logger = RunCSVLogger(tmp_path)
    settings = {"accumulate_grad_batches": 2, "logger": logger, "max_epochs": 4}
    trainer = fit(Net({"name": "adamw"}), tmp_path, wd.DecayMonitor(every_n_steps=5), **settings)
    assert trainer.global_step == 12
    assert [row["step"] for row in logged(tmp_path)] == [0, 5, 10]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "adamw"},
        {"name": "sgdw", "momentum": 0.9, "nesterov": True},
        {"name": "sgdw", "momentum": 0.9, "nesterov": True, "foreach": True, "decay": {"cautious": True}},
        {"name": "sgdw", "momentum": 0.9, "nesterov": True, "fused": True},
        {"name": "sgd_l2", "momentum": 0.9, "nesterov": True, "foreach": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_clipped_gradients_are_those_the_optimizer_saw(settings: dict[str, Any], tmp_path: Path) -> None:
    """Lightning clips after the hook in which the monitor runs; Nesterov's foreach kernel overwrites the gradients."""
    trainer = fit(Net(settings), tmp_path, wd.DecayMonitor(1), gradient_clip_val=0.01)
    norms = [float(trainer.callback_metrics[f"wd/{name}/grad_norm"]) for name in ("decay", "no_decay")]
    assert math.hypot(*norms) == pytest.approx(0.01, rel=1e-3)


class Overflow(Net):
    """Its gradients are infinite at some steps."""

    def __init__(self, config: dict[str, Any], *steps: int) -> None:
        super().__init__(config)
        self.steps = steps

    def on_after_backward(self) -> None:
        if self.trainer.global_step in self.steps:
            self.head.weight.grad = torch.full_like(self.head.weight, torch.inf)


def test_a_step_that_gradscaler_skips_is_neither_measured_nor_counted(tmp_path: Path) -> None:
    for fused in (False, True):
        folder = tmp_path / str(fused)
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
        config = {"name": "adamw", "lr": 0.1, "weight_decay": 1.0, "fused": fused}
        monitor, logger = wd.DecayMonitor(1), RunCSVLogger(folder)
        fit(Overflow(config, 0, 2), folder, monitor, plugins=[plugin], max_epochs=1, logger=logger)
        rows = logged(folder)
        assert [row["step"] for row in rows] == [1, 3, 4]
        assert [row["wd/decay/shrink"] for row in rows] == pytest.approx([0.9, 0.81, 0.729], rel=1e-5)
        assert all(row["wd/decay/nonfinite_grads"] == 0 for row in rows)


@pytest.mark.parametrize("skipped", [0, 2, 3])
def test_a_fused_step_keeps_the_same_clock_when_gradscaler_skips(skipped: int, tmp_path: Path) -> None:
    """Step 3 is due: if it is skipped, step 4 is measured. Skipping another step changes nothing."""
    for fused in (False, True):
        folder = tmp_path / str(fused)
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
        config = {"name": "adamw", "lr": 0.1, "weight_decay": 1.0, "fused": fused}
        fit(
            Overflow(config, skipped),
            folder,
            wd.DecayMonitor(3),
            plugins=[plugin],
            max_epochs=2,
            logger=RunCSVLogger(folder),
        )
        due = [0, 3, 6, 9]
        assert [row["step"] for row in logged(folder)] == [step + (step == skipped) for step in due]


def test_gradients_kept_for_nesterov_are_unscaled(tmp_path: Path) -> None:
    """They are kept before the step, and a fused step unscales by itself."""
    seen = []
    for scale in (1.0, 1024.0):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        config = {"name": "sgdw", "weight_decay": 0.1, "nesterov": True, "fused": True, "decay": {"cautious": True}}
        row = fit(Net(config), tmp_path, wd.DecayMonitor(1), plugins=[plugin], max_epochs=1).callback_metrics
        seen.append([float(row[f"wd/decay/{key}"]) for key in ("grad_norm", "grad_weight_ratio", "cautious_fraction")])
    assert seen[1] == pytest.approx(seen[0], rel=0.03)  # the scaled gradients are less rounded in float16


def test_nonfinite_elements_are_counted(tmp_path: Path) -> None:
    class Poisoned(Net):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 14:
                gradient = self.head.weight.grad
                assert gradient is not None
                gradient[0, :2] = torch.nan

    trainer = fit(Poisoned({"name": "adamw"}), tmp_path, wd.DecayMonitor(1))
    found = {key: float(trainer.callback_metrics[f"wd/decay/nonfinite_{key}"]) for key in ("grads", "weights")}
    assert found == {"grads": 2, "weights": 2}


def test_decay_that_bfloat16_rounds_away_is_seen() -> None:
    weight = nn.Parameter(torch.linspace(1.0, 1.99, 100).bfloat16())
    optimizer = wd.SGDW([weight], lr=1.0, weight_decay=0.003)
    weight.grad = torch.zeros_like(weight)
    snapshot = Snapshot(optimizer)
    optimizer.step()
    (numbers,) = snapshot.measure(optimizer, [0.003])
    old = torch.linspace(1.0, 1.99, 100).bfloat16().double()
    lost = float(((old - 0.003 * old).bfloat16().double() == old).double().mean())
    assert 0 < lost < 1
    assert numbers["rounded_away"] == pytest.approx(lost, abs=0.03)  # d * w is rounded first
    (none,) = Snapshot(optimizer).measure(optimizer, [0.1])
    assert none["rounded_away"] == 0.0


def test_the_update_of_a_large_tensor_is_measured_on_some_rows() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3000, 300))
    optimizer = wd.AdamW([weight], lr=0.01)
    weight.grad = torch.randn(3000, 300)
    old = weight.detach().clone()
    snapshot = Snapshot(optimizer)
    assert snapshot.old[weight].numel() <= 2**16
    optimizer.step()
    (numbers,) = snapshot.measure(optimizer, [1e-4])
    assert numbers["relative_update"] == pytest.approx(float((weight.detach() - old).norm() / old.norm()), rel=0.01)
    assert numbers["weight_norm"] == pytest.approx(float(weight.detach().double().norm()), rel=1e-6)


def test_no_equilibrium_is_predicted_for_amsgrad() -> None:
    """Its second moment never falls, so its steps keep shrinking."""
    weight = nn.Parameter(torch.ones(4, 4))
    for amsgrad in (False, True):
        optimizer = wd.AdamW([weight], amsgrad=amsgrad)
        weight.grad = torch.ones(4, 4)
        snapshot = Snapshot(optimizer)
        optimizer.step()
        (numbers,) = snapshot.measure(optimizer, [1e-5])
        assert ("weight_rms_predicted" in numbers) is not amsgrad


def test_measuring_leaves_weights_bit_equal(tmp_path: Path) -> None:
    with_it, without = Net({"name": "sgdw", "momentum": 0.9}), Net({"name": "sgdw", "momentum": 0.9})
    fit(with_it, tmp_path, wd.DecayMonitor(1))
    fit(without, tmp_path)
    assert all(map(torch.equal, with_it.parameters(), without.parameters()))


def test_the_picture_is_drawn_and_says_which_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    titles, saved = [], Figure.savefig
    labels: set[str] = set()

    def savefig(figure: Figure, *args: Any, **kwargs: Any) -> None:
        labels.update(text.get_text() for text in figure.findobj(Text))
        saved(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "suptitle", lambda self, text: titles.append(text))
    monkeypatch.setattr(Figure, "savefig", savefig)
    module = Net({"name": "adamw"})
    built = module.configure_optimizers()["optimizer"]
    built.param_groups[0]["name"] = "backbone/decay"
    module.configure_optimizers = lambda: built  # type: ignore[method-assign]
    fit(module, tmp_path / "plain", wd.DecayMonitor(5))
    assert "backbone/decay" in labels
    fit(Net({"name": "adam_l2"}), tmp_path / "averaged", wd.DecayMonitor(5), EMAWeightAveraging())
    assert titles == ["AdamW: weights", "AdamL2: weights in training, not their average"]
    for folder in ("plain", "averaged"):
        assert (tmp_path / folder / "wd_monitor.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_monitor_continues_its_count(tmp_path: Path) -> None:
    config = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}
    fit(Net(config), tmp_path / "whole", wd.DecayMonitor(4), logger=RunCSVLogger(tmp_path / "whole"))
    folder = tmp_path / "parts"
    monitor = wd.DecayMonitor(4)
    with pytest.raises(CrashError):
        fit(Net(config), folder, monitor, CrashAfter(7, folder / "c.ckpt"), logger=RunCSVLogger(folder, "", 1))
    resumed = wd.DecayMonitor(4)
    fit(Net(config), folder, resumed, ckpt_path=folder / "c.ckpt", logger=RunCSVLogger(folder, "", 1))
    assert logged(folder) == logged(tmp_path / "whole")
    assert [row["step"] for row in resumed.state_dict()["history"]] == [0, 4, 8, 12]


def test_history_is_thinned_when_it_grows_long(tmp_path: Path) -> None:
    monitor = wd.DecayMonitor(1)
    fit(Net({"name": "sgdw"}), tmp_path, monitor, max_epochs=90)
    steps = [row["step"] for row in monitor.state_dict()["history"]]
    assert len(steps) <= 400
    assert steps[:3] == [0, 2, 4]
    assert steps[-1] == 449


def test_two_optimizers_have_different_names(tmp_path: Path) -> None:
    trainer = fit(TwoOptimizers(), tmp_path, wd.DecayMonitor(1), max_epochs=1)
    names = {key.split("/")[1] for key in trainer.callback_metrics if key.startswith("wd/")}
    assert names == {f"optimizer_{i}_{group}" for i in (0, 1) for group in ("decay", "no_decay")}


SHARDED = """
import json, os, torch
from torch import distributed as dist, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import lightning_wd as wd
from lightning_wd.callbacks.measures import Snapshot

def measured(mesh):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.LayerNorm(5, eps=0), nn.Linear(5, 3))
    if mesh is not None:
        fully_shard(net, mesh=mesh)
    optimizer = wd.configure_optimizers(net, {"name": "adamw", "lr": 0.1, "weight_decay": 0.5})["optimizer"]
    net(torch.ones(4, 6)).square().mean().backward()
    snapshot = Snapshot(optimizer)
    optimizer.step()
    numbers = snapshot.measure(optimizer, [0.05, 0.0])
    snapshot = Snapshot(optimizer)
    if mesh is None or dist.get_rank() == 1:  # the last rows, which are rank one's
        for tensor in (net[0].weight.detach(), net[2].weight.grad):
            (tensor if mesh is None else tensor.to_local())[-1, :2] = torch.nan
    poisoned = snapshot.measure(optimizer, [0.05, 0.0])
    return numbers + [{key: group[key] for key in ("nonfinite_weights", "nonfinite_grads")} for group in poisoned]

numbers = [measured(None), measured(init_device_mesh("cpu", (2,)))]  # before there is a process group, and with it
if dist.get_rank() == 0:
    print("numbers:" + json.dumps(numbers), flush=True)
dist.barrier()
os._exit(0)  # under load, a thread of gloo that outlives the interpreter would abort it
"""


@pytest.mark.slow
@needs_shards_on_cpu
def test_sharded_parameters_give_global_numbers(tmp_path: Path) -> None:
    """FSDP2 on two processes against one process: 5 rows do not divide by 2, so shards differ in size."""
    script = tmp_path / "run.py"
    script.write_text(SHARDED)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("numbers:")[2].splitlines()[0])
    for whole, shards in zip(*found, strict=True):
        assert shards == pytest.approx(whole, rel=1e-5)
    assert found[0][0]["weight_norm"] > 1
    assert found[0][0]["scale_invariant_fraction"] == 30 / 45
    assert found[0][2] == {"nonfinite_weights": 2, "nonfinite_grads": 2}


def test_bad_intervals_are_refused() -> None:
    with pytest.raises(wd.ConfigError, match="every_n_steps must be a whole number >= 1 but got 0"):
        wd.DecayMonitor(0)
    with pytest.raises(wd.ConfigError, match=r"every_n_steps must be a whole number >= 1 but got 2\.5"):
        wd.DecayMonitor(2.5)  # type: ignore[arg-type]


def test_no_callback_has_an_attribute_that_lightning_overwrites() -> None:
    """Lightning puts `log` and `log_dict` on every callback."""
    override, finetuning = wd.OptimizerOverride("adamw"), wd.MaskedFinetuning(["*"])
    plain = [wd.DecayMonitor(), wd.DecaySchedule(), wd.DecayPlanSummary(), RestartSnapshot(), override, finetuning]
    plain += [callbacks.RateMonitor(), callbacks.ScheduleFreeMode()]
    assert {type(callback).__name__ for callback in plain} == {*callbacks.__all__}
    for callback in plain:
        assert {"log", "log_dict"}.isdisjoint([*vars(callback), *vars(type(callback))])
