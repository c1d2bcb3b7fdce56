"""decoupled(any): the optimizers of torch.optim and others, against the same optimizer with the decay done by hand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.planted import AtConstruction, Constant, Planted, Projected, TrustRatio

import lightning_wd as wd
from lightning_wd.optimizers.param_groups import fraction
from lightning_wd.styles import step_fraction

BASES = [
    getattr(torch.optim, n) for n in ("NAdam", "RAdam", "RMSprop", "Adagrad", "Adamax", "Adadelta", "ASGD", "Rprop")
]
BASES += [getattr(torch.optim, n) for n in ("Adafactor", "Muon") if hasattr(torch.optim, n)]


class Lion(torch.optim.Optimizer):
    """A third-party optimizer: no flags, no weight_decay of its own."""

    def __init__(self, params: Any, lr: float = 1e-3, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(torch.sign(m.lerp(p.grad, 0.1)), alpha=group["lr"])
                m.lerp_(p.grad, 1 - group["beta"])


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))


def gradient(t: int) -> torch.Tensor:
    return torch.cos(torch.arange(4, dtype=torch.float64) * (t + 1)).reshape(2, 2)


@pytest.mark.parametrize("style", ["decoupled", "independent", "constant", "corrected", "none"])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("base", [*BASES, Lion], ids=lambda c: c.__name__)
def test_equals_decay_by_hand_then_the_base(base: Any, style: str, cautious: bool) -> None:
    if base.__name__ == "Adafactor" and not cautious and style != "constant":
        pytest.skip("its own rule is kept, and scales the update by the weights before the decay")
    p, q = start(), start()
    ours = wd.decoupled(base)([p], lr=0.1, weight_decay=0.05, style=style, cautious_wd=cautious)
    plain = base([q], lr=0.1, **({"weight_decay": 0.0} if base is not Lion and base is not torch.optim.Rprop else {}))
    for t in range(4):
        lr = 0.1 / (t + 1)
        ours.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = lr
        p.grad, q.grad = gradient(t), gradient(t)
        ours.step()
        d = step_fraction(style, weight_decay=0.05, lr=lr, base_lr=0.1)
        old = q.detach().clone()
        if not cautious:
            q.data.sub_(d * old)
        plain.step()
        if cautious:
            agree = (old - q.detach()) * old.sign() >= 0
            q.data.sub_(d * old * agree)
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert ours.param_groups[0]["weight_decay"] == 0.05


@pytest.mark.parametrize("base", [b for b in BASES if b.__name__ not in ("Adafactor", "Muon", "Rprop")])
def test_style_l2_is_the_base_itself(base: Any) -> None:
    p, q = start(), start()
    ours = wd.decoupled(base)([p], lr=0.1, weight_decay=0.05, style="l2")
    plain = base([q], lr=0.1, weight_decay=0.05)
    for t in range(3):
        p.grad, q.grad = gradient(t), gradient(t)
        ours.step(), plain.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_an_own_decoupled_rule_is_kept(name: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    base = getattr(torch.optim, name)
    p, q = start(), start()
    ours, plain = wd.decoupled(base)([p], lr=0.1, weight_decay=0.05), base([q], lr=0.1, weight_decay=0.05)
    for t in range(3):
        p.grad, q.grad = gradient(t), gradient(t)
        ours.step(), plain.step()
    assert torch.equal(p, q)
    with pytest.raises(wd.ConfigError, match=f"{name}W cannot do style 'l2' of group 0"):
        wd.decoupled(base)([start()], lr=0.1, style="l2")


class Tenfold(Planted):
    decay = staticmethod(lambda lam, lr, lr0: 10 * lr * lam)


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("style", ["decoupled", "independent", "constant", "corrected", "none"])
@pytest.mark.parametrize("base", [Planted, Tenfold, Constant, AtConstruction, Projected])
def test_a_decay_of_its_own_happens_once(base: Any, style: str, cautious: bool) -> None:
    """Against float64 NumPy: the decay of the style, and the sign of the gradient."""
    p = start()
    w = p.detach().numpy().copy()
    optimizer = wd.decoupled(base)([p], lr=0.1, beta=0.0, weight_decay=0.05, style=style, cautious_wd=cautious)
    for t in range(4):
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (t + 1)
        p.grad = gradient(t)
        sign = np.sign(gradient(t).numpy())
        optimizer.step()
        d = step_fraction(style, weight_decay=0.05, lr=lr, base_lr=0.1)
        w -= lr * sign + d * w * (~np.bool_(cautious) | (sign * w >= 0))
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05


@pytest.mark.parametrize("base", [Planted, Constant, Projected])
def test_a_decay_of_its_own_is_no_penalty(base: Any) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        wd.decoupled(base)([start()], lr=0.1, weight_decay=0.05, style="l2")
    style = "constant" if base is Constant else "decoupled"
    assert f"cannot do style 'l2' of group 0: the weight_decay of {base.__name__} is no L2 penalty" in str(caught.value)
    assert f"identify({base.__name__}) says '{style}'." in str(caught.value)


@pytest.mark.parametrize("style", ["decoupled", "independent", "l2"])
def test_a_decay_that_is_unknown_is_kept_and_said(style: str) -> None:
    p, q = start(), start()
    with pytest.warns(UserWarning, match="TrustRatio keeps its own decay in group 0") as warned:
        ours = wd.decoupled(TrustRatio)([p], lr=0.1, weight_decay=0.05, style=style)
    (warning,) = warned
    assert f"weight_decay=0.05 is handed to it as it is, whatever style {style!r} means" in str(warning.message)
    plain = TrustRatio([q], lr=0.1, weight_decay=0.05)
    for t in range(3):
        p.grad, q.grad = gradient(t), gradient(t)
        ours.step(), plain.step()
    assert torch.equal(p, q)
    assert fraction(ours, ours.param_groups[0]) is None  # so the monitor logs no d_t of the style


def test_a_decay_that_is_unknown_can_be_switched_off() -> None:
    p, q = start(), start()
    ours = wd.decoupled(TrustRatio)([p], lr=0.1, weight_decay=0.05, style="none")
    plain = TrustRatio([q], lr=0.1, weight_decay=0.0)
    p.grad, q.grad = gradient(0), gradient(0)
    ours.step(), plain.step()
    assert torch.equal(p, q)
    with pytest.raises(wd.ConfigError, match="TrustRatioW cannot do cautious_wd of group 0"):
        wd.decoupled(TrustRatio)([start()], lr=0.1, weight_decay=0.05, cautious_wd=True)


class Switched(torch.optim.SGD):
    """SGD with momentum whose decay is a penalty or decoupled, as a keyword says."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, weight_decouple: bool = True) -> None:
        super().__init__(params, lr=lr, momentum=0.9, weight_decay=weight_decay)
        self.weight_decouple = weight_decouple

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        amounts = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups if self.weight_decouple else []:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0.0
        super().step()
        for group, amount in zip(self.param_groups, amounts, strict=True):
            group["weight_decay"] = amount


def test_the_keywords_decide_and_survive_a_pickle() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = wd.decoupled(Switched)([layer.weight], style="l2", weight_decouple=False)
    copied = pickle.loads(pickle.dumps(optimizer))
    copied.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert [group["style"] for group in copied.param_groups] == ["l2", "l2"]
    other = wd.decoupled(Switched)([layer.weight])
    with pytest.raises(wd.ConfigError, match=r"SwitchedW cannot do style 'l2' of group 1"):
        other.add_param_group({"params": [layer.bias], "style": "l2"})


def test_plain_sgd_is_both() -> None:
    """Without momentum a penalty and decoupled decay are the same steps, so l2 is not refused."""

    class Descent(Planted):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - self.fraction(group)).sub_(group["lr"] * p.grad)

    weights = [start(), start()]
    for weight, style in zip(weights, ["l2", "decoupled"], strict=True):
        optimizer = wd.decoupled(Descent)([weight], lr=0.1, weight_decay=0.05, style=style)
        weight.grad = gradient(0)
        optimizer.step()
    assert torch.equal(*weights)


class OwnNAdam(wd.decoupled(torch.optim.NAdam)):  # type: ignore[misc]
    """A user's subclass: it pickles as itself, not as the class it comes from."""


def test_classes() -> None:
    assert wd.decoupled(torch.optim.Adam) is wd.AdamW
    assert wd.decoupled(torch.optim.AdamW) is wd.AdamW
    assert wd.decoupled(torch.optim.SGD) is wd.SGDW
    nadamw = wd.decoupled(torch.optim.NAdam)
    assert wd.decoupled(torch.optim.NAdam) is nadamw
    assert wd.decoupled(nadamw) is nadamw
    assert nadamw.__name__ == "NAdamW"
    assert issubclass(nadamw, torch.optim.NAdam)
    assert pickle.loads(pickle.dumps(nadamw)) is nadamw
    assert pickle.loads(pickle.dumps(OwnNAdam)) is OwnNAdam
    assert type(pickle.loads(pickle.dumps(OwnNAdam([start()], lr=0.1)))) is OwnNAdam
    assert copy.deepcopy(nadamw) is nadamw


def test_the_flag_of_nadam_and_radam_is_absorbed() -> None:
    for base in (torch.optim.NAdam, torch.optim.RAdam):
        optimizer = wd.decoupled(base)([start()], lr=0.1, weight_decay=0.1, decoupled_weight_decay=True)
        assert optimizer.param_groups[0]["style"] == "decoupled"
        with pytest.raises(wd.ConfigError, match="decoupled_weight_decay=False contradicts style 'decoupled'"):
            wd.decoupled(base)([start()], lr=0.1, weight_decay=0.1, decoupled_weight_decay=False)


def test_a_load_changes_no_group() -> None:
    a = wd.decoupled(torch.optim.NAdam)([start()], lr=0.1, weight_decay=0.1, style="independent")
    a.param_groups[0]["params"][0].grad = gradient(0)
    a.step()
    b = wd.decoupled(torch.optim.NAdam)([start()], lr=0.1, weight_decay=0.1, style="independent")
    before = {k: v for k, v in b.param_groups[0].items() if k != "params"}
    b.load_state_dict(a.state_dict())
    assert {k: v for k, v in b.param_groups[0].items() if k != "params"} == before
    with pytest.raises(wd.CheckpointMismatchError, match="another decay style"):
        wd.decoupled(torch.optim.NAdam)([start()], lr=0.1).load_state_dict(a.state_dict())


class SAM(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def second_step(self) -> None: ...

    def step(self, closure: Any = None) -> Any: ...


class Twice(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        closure()
        return closure()


class TwiceIfGiven(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        return super().step(closure)


class Ahead(torch.optim.SGD):
    """As the closure forms of schedulefree: the gradient is taken on other weights than those between steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.mul_(0.5)
        return super().step(closure)


def test_what_cannot_be_decoupled_says_why() -> None:
    for base in (torch.optim.LBFGS, SAM):
        with pytest.raises(
            wd.ConfigError, match=f"{base.__name__} cannot be decoupled: it evaluates the closure itself"
        ):
            wd.decoupled(base)
    with pytest.raises(wd.ConfigError, match=r"decoupled\(\) takes a torch\.optim.Optimizer class but got 'NAdam'"):
        wd.decoupled("NAdam")  # type: ignore[arg-type]
    for cls, how in ((Twice, "more than once"), (TwiceIfGiven, "more than once"), (Ahead, "on other weights")):
        words = f"{cls.__name__} cannot be decoupled: it evaluates the closure itself, {how}"
        with pytest.raises(wd.ConfigError, match=words):
            wd.decoupled(cls)([start()], lr=0.1)
        with pytest.raises(wd.ConfigError, match=words):
            wd.configure_optimizers(torch.nn.Linear(2, 2), {"name": f"{__name__}.{cls.__name__}"})
    with pytest.raises(wd.ConfigError, match=r"ASGDW has no key 'lambd_'(?s:.*)write lambd, or"):
        wd.decoupled(torch.optim.ASGD)([start()], lambd_=1.0)


class Regression(L.LightningModule):
    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.net = torch.nn.Linear(4, 1).double()
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.net.weight.detach().clone())
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return wd.decoupled(self.base)(self.parameters(), lr=0.1, weight_decay=0.5)


@pytest.mark.filterwarnings("ignore")  # of Lightning: workers of a data loader, loggers, devices
@pytest.mark.parametrize("base", [torch.optim.RMSprop, torch.optim.Adam, torch.optim.SGD])
def test_inside_a_trainer_the_closure_sees_the_undecayed_weights(base: Any) -> None:
    L.seed_everything(0, verbose=False)
    module = Regression(base)
    first = module.net.weight.detach().clone()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 4).double()), batch_size=2)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    assert torch.equal(module.seen[0], first)
    torch.testing.assert_close(module.seen[1], first * 0.95)
    torch.testing.assert_close(module.net.weight.detach(), first * 0.95**2)
