"""Optimizers by name: the pack's own, and any class by its dotted path."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.lit import Lit
from helpers.small_run import CrashAfter, CrashError, Net, fit

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2
from lightning_wd.optimizers.by_name import OPTIMIZERS, REQUIRED, entry, hyperparameters_of, optimizer_class
from lightning_wd.styles import step_fraction


class Sized(torch.optim.SGD):
    def __init__(self, params: Any, lr: float, size: int, beta: float = 0.5) -> None:
        super().__init__(params, lr)


class OfModel(torch.optim.SGD):
    def __init__(self, model: Any, lr: float = 0.1) -> None:
        super().__init__(model.parameters(), lr)


class Rateless(torch.optim.Optimizer):
    def __init__(self, params: Any, max_lr: float = 0.1) -> None:
        super().__init__(params, {"max_lr": max_lr})


class Sign(torch.optim.Optimizer):
    """Decoupled of its own unless told otherwise; it takes any keyword and reads ``scale``."""

    def __init__(self, params: Any, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.99), **kwargs: Any) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0, **kwargs})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * group.get("scale", 1.0) * p.grad.sign())
        return loss


class Tiger(Sign):
    """Another class with the same settings and states."""


HERE = __name__


def test_torchs_own_give_the_fast_classes() -> None:
    for path, cls, l2, lr in (
        ("torch.optim.Adam", wd.AdamW, AdamL2, 1e-3),
        ("torch.optim.adamw.AdamW", wd.AdamW, AdamL2, 1e-3),
        ("torch.optim.SGD", wd.SGDW, SGDL2, 1e-3),
    ):
        assert entry(path)[:4] == (cls, l2, lr, "adam")
    assert optimizer_class("torch.optim.SGD", "l2") is SGDL2
    assert optimizer_class("torch.optim.NAdam", "l2") is optimizer_class("nadamw", "decoupled")
    assert entry("torch.optim.NAdam").lr == 2e-3  # the class's own default


def test_the_keywords_are_the_classs_own() -> None:
    assert hyperparameters_of(optimizer_class(f"{HERE}.Sized", "none")) == {
        "size": REQUIRED,
        "beta": 0.5,
        "anchor_dtype": None,  # of decoupled()
    }
    assert entry(f"{HERE}.Sized").lr is None
    assert hyperparameters_of(wd.SGDW).keys() == hyperparameters_of(optimizer_class("torch.optim.SGD", "l2")).keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamww", ["optimizer.name 'adamww' is unknown", "nearest: 'adamw'"]),
        (None, ["optimizer.name None is unknown"]),
        (
            "Lion",
            ["muon, the dotted path of a class, as in timm.optim.Lion\n  fix: write one of the valid names, or the d"],
        ),
        (
            torch.optim.Rprop,
            [
                "optimizer.name must be text but got the class Rprop.",
                "fix: write 'torch.optim.rprop.Rprop', and its se",
            ],
        ),
        (torch.optim.SGD([torch.zeros(1)]), ["optimizer.name must be text but got an instance of SGD."]),
        ("torch.optim.Adamm", ["torch.optim has no 'Adamm'", "fix: write torch.optim.Adam"]),
        ("torch.nn.Linear", ["is no torch.optim.Optimizer class"]),
        ("torch.optim.LBFGS", ["LBFGS cannot be decoupled: it evaluates the closure itself, more than once in a step"]),
        ("lightning_wd.AdamW", ["has a name of its own here", "fix: write adamw"]),
        (f"{HERE}.OfModel", ["OfModel takes 'model' first, not groups of parameters"]),
        (f"{HERE}.Rateless", ["Rateless takes no lr", "found: keywords max_lr"]),
    ],
)
def test_what_is_wrong_is_said(name: Any, words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        entry(name)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_setting_is_called_as_its_place_is() -> None:
    found = r"rules\[0\].optimizer 'adamx' is unknown(?s:.*)set rules\[0\].optimizer to adamaxw"
    with pytest.raises(wd.ConfigError, match=found):
        entry("adamx", "rules[0].optimizer")


def test_every_name_has_both_forms() -> None:
    for name in OPTIMIZERS:
        for style in ("l2", "decoupled"):
            assert "lr" not in hyperparameters_of(optimizer_class(name, style))


STYLES = ["decoupled", "independent", "constant", "corrected", "none"]


@pytest.mark.parametrize("style", STYLES)
def test_a_class_from_a_config_decays_as_its_style_says(style: str) -> None:
    """Against float64 NumPy; biases and norm layers do not decay, and ``corrected`` spares the output layer."""
    net = Lit().net.double()
    weights = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    config = {"weight_decay": 0.05, "decay": {"style": style}, "scale": 0.5, "betas": [0.8, 0.9]}
    optimizer = wd.configure_optimizers(net, {"name": f"{HERE}.Sign", **config})["optimizer"]
    assert (type(optimizer).__name__, optimizer.param_groups[0]["lr"]) == ("SignW", 0.1)
    assert (optimizer.param_groups[0]["betas"], optimizer.param_groups[0]["scale"]) == ((0.8, 0.9), 0.5)
    for t in range(4):
        lr = 0.1 / (t + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, p in enumerate(net.parameters()):
            p.grad = torch.cos(torch.arange(p.numel(), dtype=torch.float64) * (t + i + 1)).view_as(p)
        optimizer.step()
        d = {"0.weight": step_fraction(style, weight_decay=0.05, lr=lr, base_lr=0.1)}
        d["2.weight"] = lr * 0.05 if style == "corrected" else d["0.weight"]
        for i, (name, w) in enumerate(weights.items()):
            sign = np.sign(np.cos(np.arange(w.size) * (t + i + 1.0))).reshape(w.shape)
            w -= lr * 0.5 * sign + d.get(name, 0.0) * w
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), weights[name], rtol=1e-12)


def test_the_amount_is_the_styles_unless_it_is_given() -> None:
    """Most classes have 0; adamw's typical amount is in the unit of the style."""
    for style, amount in {"decoupled": 1e-2, "independent": 1e-5}.items():
        assert wd.OptimizerConfig(name=f"{HERE}.Sign", decay={"style": style})["weight_decay"] == amount


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"scael": 2},
            ["Sign has no key 'scael'", "nearest: 'scale'", "fix: write optimizer.scale, or remove optimizer.scael"],
        ),
        ({"momentum": 0.9}, ["optimizer.momentum is not a setting of", "'momentum' belongs to sgdw, sgd_l2, rmspropw"]),
        ({"amsgrad": True}, [f"`optimizer=custom optimizer.name={HERE}.Sign` without `+`", "/optimizer: custom`"]),
        ({"betas": [0.9]}, ["optimizer.betas must be 2 numbers but got [0.9]"]),
        (
            {"decay": {"style": "l2"}},
            ["Sign does not do optimizer.decay.style 'l2'", "found: its own weight_decay is 'decoupled'."],
        ),
        ({"name": f"{HERE}.Sized", "size": 3}, ["Sized has no lr of its own", "fix: write optimizer.lr=1e-3"]),
        ({"name": f"{HERE}.Sized", "lr": 0.1}, ["Sized needs size", "fix: write optimizer.size=<value>"]),
        ({"name": f"{HERE}.Sized", "lr": 0.1, "size": 3, "beta": "x"}, ["optimizer.beta must be a number"]),
        ({"name": None}, ["optimizer.name is not given", "fix: write optimizer.name=timm.optim.Lion"]),
        ({"name": "torch.optim.LBFGS"}, ["it evaluates the closure itself, more than once in a step"]),
        ({"name": "torch.optim.Muon"}, ["optimizer torch.optim.Muon cannot be built: Muon only supports 2D"]),
        ({"name": f"{HERE}.NoRate"}, ["NoRate keeps no lr in its groups"]),
    ],
)
def test_what_a_class_cannot_have_is_refused_before_training(config: dict[str, Any], words: list[str]) -> None:
    if config.get("name") == "torch.optim.Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    with pytest.raises(wd.ConfigError) as caught:
        wd.configure_optimizers(Lit().net, {"name": f"{HERE}.Sign", **config})
    assert [word for word in words if word not in str(caught.value)] == []


class NoRate(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"rate": lr})


class Switched(Sign):
    """A penalty where it is not decoupled."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, weight_decouple: bool = True) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        self.decoupled = weight_decouple

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        amounts = [group["weight_decay"] for group in self.param_groups]
        for group in [] if self.decoupled else self.param_groups:
            for p in group["params"]:
                p.grad.add_(p, alpha=group["weight_decay"])
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, amount in zip(self.param_groups, amounts, strict=True):
            group["weight_decay"] = amount


def test_keywords_decide_whether_a_class_has_l2() -> None:
    config = {"name": f"{HERE}.Switched", "decay": {"style": "l2"}, "weight_decay": 0.1}
    with pytest.raises(wd.ConfigError, match=r"Switched does not do optimizer\.decay\.style 'l2'"):
        wd.OptimizerConfig(**config)
    assert wd.OptimizerConfig(**config, weight_decouple=False).decay.style == "l2"


def test_a_resumed_run_is_exact_and_its_checkpoint_names_no_class_to_import(tmp_path: Path) -> None:
    saved = tmp_path / "c.ckpt"

    def run(*callbacks: L.Callback, name: str = "Sign", **resume: Any) -> list[torch.Tensor]:
        module = Net({"name": f"{HERE}.{name}", "lr": 0.01, "weight_decay": 0.1, "scale": 0.5}, "warmup_cosine")
        fit(module, tmp_path, *callbacks, **resume)
        return list(module.parameters())

    whole = run()
    with pytest.raises(CrashError):
        run(CrashAfter(7, saved))
    assert all(map(torch.equal, whole, run(ckpt_path=saved)))
    groups = torch.load(saved, weights_only=True)["optimizer_states"][0]["param_groups"]
    package = HERE.partition(".")[0]
    assert {group["optimizer"] for group in groups} == {f"{package}.Sign"}
    with pytest.raises(wd.CheckpointMismatchError) as caught:
        run(name="Tiger", ckpt_path=saved)
    assert "does not fit this TigerW: group 'decay' is of another optimizer." in str(caught.value)
    assert f"found: optimizer '{package}.Sign'\n  valid: optimizer '{package}.Tiger'" in str(caught.value)


class OwnRanges(Sign):
    """With settings outside the ranges of torch's, as the alpha of AdEMAMix, and a default that is a list."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        betas: Any = [0.9, 0.99],  # noqa: B006
        alpha: float = 5.0,
        momentum: float = 1.0,
    ) -> None:
        super().__init__(params, lr, betas, alpha=alpha, momentum=momentum)


def test_the_ranges_of_settings_are_the_classs_own() -> None:
    config = {"name": f"{HERE}.OwnRanges", "alpha": 8, "betas": [0.8, 0.9]}
    rule = {"name": "1.*", "alpha": -2, "momentum": 3}
    optimizer = wd.configure_optimizers(wide(), {**config, "mask": {"rules": [rule]}})["optimizer"]
    said = {(g["alpha"], g["momentum"], g["betas"]) for g in optimizer.param_groups}
    assert said == {(8, 1.0, (0.8, 0.9)), (-2, 3, (0.8, 0.9))}
    with pytest.raises(wd.ConfigError, match=r"optimizer\.betas must be 2 numbers but got 'x'"):
        wd.configure_optimizers(wide(), {**config, "betas": "x"})
    with pytest.raises(
        wd.ConfigError, match=r"optimizer\.alpha must be a number but got 'x'\.\n.*\n  valid: a finite number\n"
    ):
        wd.configure_optimizers(wide(), {**config, "alpha": "x"})


def test_the_override_takes_a_class(tmp_path: Path) -> None:
    override = wd.OptimizerOverride({"name": f"{HERE}.Sign", "lr": 0.01, "scale": 0.5})
    made = fit(Net("adamw"), tmp_path, override, max_steps=1)
    assert (type(made.optimizers[0]).__name__, made.optimizers[0].param_groups[0]["scale"]) == ("SignW", 0.5)


# --- of other libraries, where they are installed -------------------------------------------------------------------


def wide() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 96), torch.nn.LayerNorm(96), torch.nn.Linear(96, 64))


def steps(net: torch.nn.Sequential, optimizer: torch.optim.Optimizer, *times: int) -> None:
    for t in times:
        optimizer.zero_grad()
        net(torch.randn(16, 96, generator=torch.Generator().manual_seed(t))).square().mean().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("timm.optim.Lion", {"betas": [0.9, 0.98]}),
        ("timm.optim.AdafactorBigVision", {}),  # its eps is None
        ("timm.optim.SGDP", {"momentum": 0.9}),  # ten times the decay
        ("pytorch_optimizer.AdaBelief", {"adanorm": True}),
        ("pytorch_optimizer.AdaPNM", {}),  # its third beta is 1
        ("optimi.AdamW", {}),
        ("lion_pytorch.Lion", {}),
        ("came_pytorch.CAME", {"betas": [0.9, 0.99, 0.999]}),
        ("bitsandbytes.optim.AdamW8bit", {}),
        ("bitsandbytes.optim.Lion8bit", {}),
        ("bitsandbytes.optim.Adam", {}),  # decoupled, whatever its name says
        ("torchao.optim.Adam8bit", {}),  # an L2 penalty
        ("torchao.optim.AdamW8bit", {}),
    ],
)
def test_classes_of_others_decay_exactly_and_resume(path: str, settings: dict[str, Any]) -> None:
    package = path.partition(".")[0]
    pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    with torch.compiler.set_stance("force_eager"):

        def built(net: torch.nn.Sequential, amount: float, style: str) -> torch.optim.Optimizer:
            config = {"name": path, "lr": 2.0**-6, "weight_decay": amount, "decay": {"style": style}, **settings}
            made: torch.optim.Optimizer = wd.configure_optimizers(net, config)["optimizer"]
            return made

        for style, d in {"decoupled": 2.0**-6 * 0.25, "constant": 0.25}.items():
            start, decayed, plain = wide(), wide(), wide()
            steps(decayed, built(decayed, 0.25, style), 0)
            steps(plain, built(plain, 0.0, style), 0)
            for name, w in start.named_parameters():
                share = d if name in ("0.weight", "2.weight") else 0.0
                removed = plain.get_parameter(name) - decayed.get_parameter(name)
                torch.testing.assert_close(removed, share * w, rtol=1e-4, atol=2e-7)
        whole, first, second = wide(), wide(), wide()
        steps(whole, built(whole, 0.25, "decoupled"), *range(6))
        optimizer = built(first, 0.25, "decoupled")
        steps(first, optimizer, *range(3))
        torch.save([first.state_dict(), optimizer.state_dict()], file := io.BytesIO())
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        second.load_state_dict(weights)
        resumed = built(second, 0.25, "decoupled")
        resumed.load_state_dict(state)
        steps(second, resumed, *range(3, 6))
        assert all(map(torch.equal, whole.parameters(), second.parameters()))
        with pytest.raises(wd.CheckpointMismatchError, match="group 'decay' was trained with another decay style"):
            built(wide(), 0.25, "independent").load_state_dict(state)


@pytest.mark.filterwarnings("ignore")
def test_a_rate_that_a_class_adapts_itself_is_kept() -> None:
    pytest.importorskip("prodigyopt", reason="prodigyopt is not installed")
    with pytest.warns(UserWarning, match="Prodigy keeps its own decay in group 'decay'"):
        optimizer = wd.configure_optimizers(Lit().net, {"name": "prodigyopt.Prodigy"})["optimizer"]
    assert optimizer.param_groups[0]["growth_rate"] == float("inf")
    optimizer.load_state_dict(optimizer.state_dict())
