"""Groups: their keys, what is refused and in which words; copies, pickles, hooks, closures."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch

import lightning_wd as wd
from lightning_wd.errors import number
from lightning_wd.optimizers import SGDL2, AdamL2


def weight(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(shape or (2,)))


def stepped(optimizer: Any) -> Any:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    return optimizer


def test_group_keys_are_plain() -> None:
    named = [{"params": [("w", weight())], "name": "decay", "style": "independent", "weight_decay": 1e-4, "lr": 0.2}]
    for optimizer in (
        wd.AdamW(named, lr=0.1),
        wd.SGDW([weight()], lr=torch.tensor(0.1), weight_decay=np.float64(1e-4)),
    ):
        group = optimizer.state_dict()["param_groups"][0]
        assert type(group["weight_decay"]) is float
        assert type(group["base_lr"]) is float
        assert type(group["style"]) is str
        assert type(group["cautious_wd"]) is bool
    group = wd.AdamW([{**named[0], "params": [("w", weight())]}], lr=0.1).param_groups[0]
    assert (group["style"], group["base_lr"], group["name"], group["param_names"]) == (
        "independent",
        0.2,
        "decay",
        ["w"],
    )


def test_base_lr_is_the_groups_own_and_does_not_alias() -> None:
    lr = torch.tensor(0.1)
    groups: list[dict[str, Any]] = [{"params": [weight()]}, {"params": [weight()], "lr": 0.3}]
    optimizer = wd.SGDW(groups, lr=lr)
    optimizer.add_param_group({"params": [weight()], "lr": 0.05})
    optimizer.add_param_group({"params": [weight()], "lr": 0.05, "base_lr": 0.7})
    lr.fill_(9.0)
    assert [g["base_lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.3, 0.05, 0.7])


def test_every_group_l2_gives_the_l2_classes() -> None:
    cases = [
        wd.AdamW([weight()], style="l2"),
        wd.AdamW(iter([weight()]), style="l2"),
        wd.AdamW([{"params": [weight()], "style": "l2"}]),
    ]
    for optimizer in cases:
        assert type(optimizer) is AdamL2
        assert isinstance(optimizer, torch.optim.Adam)
        assert not isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.param_groups[0]["style"] == "l2"
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is False
    assert type(wd.SGDW([weight()], lr=0.1, style="l2", weight_decay=1e-4)) is SGDL2
    mixed = wd.AdamW([{"params": [weight()], "style": "l2"}, {"params": [weight()]}])
    assert type(mixed) is wd.AdamW
    assert [g["decoupled_weight_decay"] for g in mixed.param_groups] == [False, True]


def test_mixed_styles_step_as_each_alone() -> None:
    styles = ["l2", "decoupled", "independent", "constant", "corrected", "none"]
    for cls in (wd.AdamW, wd.SGDW):
        together = [weight() for _ in styles]
        groups = [{"params": [p], "style": s, "weight_decay": 0.1} for p, s in zip(together, styles, strict=True)]
        stepped(cls(groups, lr=0.1))
        for p, style in zip(together, styles, strict=True):
            alone = weight()
            stepped(cls([alone], lr=0.1, style=style, weight_decay=0.1))
            assert torch.equal(p, alone), style


def test_defaults_of_weight_decay() -> None:
    assert wd.AdamW([weight()]).param_groups[0]["weight_decay"] == 1e-2
    assert wd.SGDW([weight()]).param_groups[0]["weight_decay"] == 0.0
    assert wd.AdamW([weight()]).defaults["weight_decay"] == 1e-2
    assert wd.AdamW([weight()], style="none", weight_decay=0.5).param_groups[0]["weight_decay"] == 0.5
    given = wd.AdamW([{"params": [weight()], "weight_decay": 1e-5}], style="independent")
    assert given.param_groups[0]["weight_decay"] == 1e-5


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
@pytest.mark.parametrize("style", ["independent", "constant"])
def test_styles_in_another_unit_need_an_amount(cls: Any, style: str) -> None:
    with pytest.raises(wd.ConfigError, match=rf"style '{style}' of group 0 needs a weight_decay of its own"):
        cls([weight()], style=style)
    optimizer = cls([weight()])
    with pytest.raises(wd.ConfigError, match=r"of group 'late' needs a weight_decay of its own"):
        optimizer.add_param_group({"params": [weight()], "style": style, "name": "late"})


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW, AdamL2, SGDL2])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_decay": -5}, "weight_decay of group 'decay' must be a number >= 0 but got -5."),
        ({"weight_decay": float("inf")}, "weight_decay of group 'decay' must be a number >= 0 but got inf."),
        ({"weight_decay": float("nan")}, "weight_decay of group 'decay' must be a number >= 0 but got nan."),
        ({"weight_decay": True}, "weight_decay of group 'decay' must be a number >= 0 but got True."),
        ({"weight_decay": "1e-4"}, "weight_decay of group 'decay' must be a number >= 0 but got '1e-4'."),
        ({"lr": float("nan")}, "lr of group 'decay' must be a number >= 0 but got nan."),
        ({"base_lr": -1.0}, "base_lr of group 'decay' must be a number >= 0 but got -1.0."),
        ({"cautious_wd": 1}, "cautious_wd of group 'decay' must be true or false but got 1."),
        ({"weigth_decay": 0.1}, "group 'decay' has no key 'weigth_decay'."),
        ({"weigth_decay": 0.1}, "nearest: 'weight_decay'"),
        ({"style": "decopled"}, "style of group 'decay' 'decopled' is unknown."),
        ({"style": "decopled"}, "nearest: 'decoupled'"),
        ({"params": []}, "group 'decay' has no parameters."),
    ],
)
def test_bad_groups_are_refused_in_words(cls: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError) as error:
        cls([{"params": [weight()], "name": "decay", **settings}], lr=0.1)
    assert words in str(error.value)
    assert "fix: " in str(error.value)


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW, AdamL2, SGDL2, wd.decoupled(torch.optim.NAdam)])
def test_an_old_name_is_an_error_that_says_the_new_one(cls: Any) -> None:
    words = "has no key 'cautious'[\\s\\S]*nearest: 'cautious_wd'[\\s\\S]*fix: write cautious_wd"
    with pytest.raises(wd.ConfigError, match=f"{cls.__name__} {words}"):
        cls([weight()], cautious=True)
    with pytest.raises(wd.ConfigError, match=f"group 0 {words}"):
        cls([{"params": [weight()], "cautious": True}])


def test_another_librarys_keyword_of_an_old_name_is_its_own() -> None:
    class Cautious(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, *, cautious: bool = False) -> None:
            super().__init__(params, lr, weight_decay=weight_decay)
            self.given = cautious

    assert wd.decoupled(Cautious)([weight()], cautious=True).given


def test_a_value_is_checked_once() -> None:
    """A group's own value is checked where it differs from the constructor's, which was checked already."""
    seen: list[Any] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is number.__code__:
            seen.append(frame.f_locals["value"])

    def values(groups: list[dict[str, Any]]) -> list[Any]:
        seen.clear()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            wd.AdamW(groups, lr=1e-3, weight_decay=0.1)
        finally:
            sys.setprofile(before)
        return sorted(seen)

    same = {"lr": 1e-3, "base_lr": 1e-3, "weight_decay": 0.1}
    assert values([{"params": [weight()], **same}, {"params": [weight()], **same}]) == [1e-8, 1e-3, 0.1]
    assert values([{"params": [weight()]}, {"params": [weight()], **same, "lr": 0.5}]) == [1e-8, 1e-3, 0.1, 0.5]


def test_signatures_are_the_constructors() -> None:
    adamw, adam = inspect.signature(wd.AdamW).parameters, inspect.signature(AdamL2).parameters
    assert list(adamw) == [
        *("params", "lr", "betas", "eps", "weight_decay", "amsgrad", "style", "cautious_wd", "toward"),
        *("anchor_dtype", "kahan", "maximize", "foreach", "capturable", "differentiable", "fused", "compile"),
    ]
    assert list(adam) == [name for name in adamw if name != "style"]
    assert adamw["style"].default == "decoupled"
    sgdw, sgd = inspect.signature(wd.SGDW).parameters, inspect.signature(SGDL2).parameters
    assert list(sgdw) == [
        *("params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "style", "cautious_wd", "toward"),
        *("anchor_dtype", "kahan", "maximize", "foreach", "differentiable", "fused", "compile"),
    ]
    assert list(sgd) == [name for name in sgdw if name != "style"]


def test_a_subclass_has_the_signature_of_its_own_constructor() -> None:
    class Mine(wd.decoupled(torch.optim.NAdam)):  # type: ignore[misc]
        def __init__(self, params: Any, rate: float = 0.1) -> None:
            super().__init__(params, lr=rate)

    assert list(inspect.signature(Mine).parameters) == ["params", "rate"]
    assert Mine([weight()], rate=0.5).defaults["lr"] == 0.5
    with pytest.raises(wd.ConfigError, match="Mine has no key 'lr'"):
        Mine([weight()], lr=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True])
def test_bad_constructor_amounts_are_refused(value: Any) -> None:
    for cls in (wd.AdamW, wd.SGDW):
        with pytest.raises(ValueError, match="weight_decay"):
            cls([weight()], lr=0.1, weight_decay=value)


def test_other_words() -> None:
    with pytest.raises(wd.ConfigError, match="AdamL2 does not do style 'decoupled' of group 0"):
        AdamL2([{"params": [weight()], "style": "decoupled"}])
    with pytest.raises(wd.ConfigError, match="SGDL2 does not do style 'decoupled' of group 0"):
        SGDL2([weight()], style="decoupled")
    with pytest.raises(wd.ConfigError, match="cautious_wd has no meaning with style 'l2' of group 0"):
        wd.AdamW([weight()], style="l2", cautious_wd=True)
    with pytest.raises(wd.ConfigError, match="decoupled_weight_decay=False of group 0 contradicts style 'decoupled'"):
        wd.AdamW([{"params": [weight()], "decoupled_weight_decay": False}])
    with pytest.raises(wd.ConfigError, match="on_resume 'chekpoint' is unknown") as error:
        wd.AdamW([weight()]).on_resume = "chekpoint"
    assert "nearest: 'checkpoint'" in str(error.value)
    for key in ("fused", "foreach", "differentiable", "kahan"):
        settings: dict[str, Any] = {"compile": True, key: True}
        with pytest.raises(wd.ConfigError, match=f"compile=True does not go with {key}=True of group 0"):
            wd.SGDW([weight()], lr=0.1, **settings)


def test_a_step_that_erases_the_weights_warns() -> None:
    with pytest.warns(UserWarning, match=r"a step of group 0 decays weights by d_t = 2 of themselves"):
        wd.SGDW([weight()], lr=1.0, weight_decay=2.0)
    with pytest.warns(UserWarning, match=r"style=constant, weight_decay=1.0"):
        wd.AdamW([weight()], lr=1e-3, weight_decay=1.0, style="constant")


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: wd.AdamW(p, lr=0.1, fused=True, style="corrected", cautious_wd=True),
        lambda p: wd.SGDW(p, lr=0.1, momentum=0.9, kahan=True),
        lambda p: AdamL2(p, lr=0.1, weight_decay=0.1),
        lambda p: wd.decoupled(torch.optim.NAdam)(p, lr=0.1, weight_decay=0.1, style="independent"),
        lambda p: wd.decoupled(torch.optim.Adagrad)(p, lr=0.1, weight_decay=0.1, fused=True),
    ],
)
def test_copies_go_on_as_the_original(make: Any, copier: Any) -> None:
    original = stepped(make([weight(3)]))
    original.on_resume = "error"
    twin = copier(original)
    assert type(twin) is type(original)
    assert twin.on_resume == "error"
    amp = "_step_supports_amp_scaling"
    fused = bool(original.param_groups[0].get("fused"))
    if "Adagrad" in type(original).__name__:  # torch 2.6's leaves the scale to GradScaler, fused or not
        fused = getattr(torch.optim.Adagrad([weight()], fused=True), amp, False)
    assert getattr(twin, amp, False) == getattr(original, amp, False) == fused
    stepped(original), stepped(twin)
    assert torch.equal(original.param_groups[0]["params"][0], twin.param_groups[0]["params"][0])
    with pytest.raises(wd.ConfigError, match="needs a weight_decay of its own"):
        copier(wd.AdamW([weight()])).add_param_group({"params": [weight()], "style": "constant"})


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW, AdamL2, SGDL2, wd.decoupled(torch.optim.RMSprop)])
def test_hooks_run_once_and_the_closure_first(cls: Any) -> None:
    base = {wd.SGDW: torch.optim.SGD, SGDL2: torch.optim.SGD}.get(cls, torch.optim.AdamW)
    stepped(base([weight()], lr=0.1))  # an instance of the base class: its step now runs hooks by itself
    torch.optim.RMSprop([weight()])
    p = weight()
    optimizer = cls([p], lr=0.1, weight_decay=0.5)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure() -> torch.Tensor:
        calls.append("closure")
        assert torch.equal(p, torch.ones(2)), "the closure sees the weights before any decay"
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() == 2.0
    assert calls == ["pre", "closure", "post"]


def test_lists_from_a_config_do_not_reach_the_checkpoint() -> None:
    from omegaconf import OmegaConf

    optimizer = stepped(wd.AdamW([{"params": [weight()], "betas": OmegaConf.create([0.8, 0.9])}], lr=0.1))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded["param_groups"][0]["betas"] == (0.8, 0.9)
    cases: list[tuple[Any, str, list[float]]] = [
        (wd.AdamW, "betas", [0.8, 0.9]),
        (AdamL2, "betas", [0.8, 0.9]),
        (wd.decoupled(torch.optim.NAdam), "betas", [0.8, 0.9]),
        (wd.decoupled(torch.optim.Adafactor), "eps", [1e-30, 1e-3]),
        (wd.decoupled(torch.optim.Rprop), "etas", [0.5, 1.2]),
    ]
    for cls, key, values in cases:
        optimizer = cls([weight()], **{key: OmegaConf.create(values)})
        assert type(optimizer.param_groups[0][key]) is tuple
        assert optimizer.param_groups[0][key] == tuple(values)


def test_differentiable_step_has_the_right_gradient() -> None:
    for cls, extra in ((wd.SGDW, {"momentum": 0.9}), (wd.AdamW, {"eps": 1e-2})):
        for style, cautious in (("decoupled", False), ("constant", False), ("independent", True)):

            def after(
                w: torch.Tensor, cls: Any = cls, style: str = style, cautious: bool = cautious, extra: Any = extra
            ) -> Any:
                p = w.clone()
                p.grad = torch.ones(2, dtype=torch.float64)
                settings = {"style": style, "weight_decay": 0.1, "cautious_wd": cautious, **extra}
                optimizer = cls([p], lr=0.1, differentiable=True, **settings)
                optimizer.step()
                return p

            w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(after, (w,))


@pytest.mark.parametrize(
    ("cls", "settings", "words"),
    [
        (wd.SGDW, {"momentum": 1.5}, "momentum must be a number >= 0 and < 1 but got 1.5"),
        (wd.SGDW, {"momentum": 0.9, "nesterov": "no"}, "nesterov must be true or false but got 'no'"),
        (wd.AdamW, {"amsgrad": 1}, "amsgrad must be true or false but got 1"),
        (wd.AdamW, {"fixed_decay": True}, "AdamW has no key 'fixed_decay'(?s:.*)style 'constant'"),
        (wd.AdamW, {"weigth_decay": 0.1}, "AdamW has no key 'weigth_decay'(?s:.*)write weight_decay, or"),
        (wd.SGDW, {"style": "PALM"}, "style 'PALM' is unknown(?s:.*)PaLM's"),
    ],
)
def test_the_constructor_refuses_what_it_cannot_honour(cls: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError, match=words):
        cls([weight()], **settings)
