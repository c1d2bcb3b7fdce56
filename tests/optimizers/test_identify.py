"""What an optimizer's own ``weight_decay`` means, found by stepping it."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted import AtConstruction, Constant, Planted, Projected, TrustRatio
from torch.optim.optimizer import register_optimizer_step_post_hook

import lightning_wd as wd
from lightning_wd.cli import main
from lightning_wd.optimizers import Identification, identify_twins
from lightning_wd.optimizers.identify import _find_out


class Independent(Planted):
    decay = staticmethod(lambda lam, lr, lr0: lr / lr0 * lam)


class Corrected(Planted):
    decay = staticmethod(lambda lam, lr, lr0: lr**2 / lr0 * lam)


class Half(Planted):
    decay = staticmethod(lambda lam, lr, lr0: 0.5 * lr * lam)


class Thrice(Planted):
    decay = staticmethod(lambda lam, lr, lr0: 3 * lr / lr0 * lam)


class Ignores(Planted):
    decay = staticmethod(lambda lam, lr, lr0: 0.0)


class DecoupledByName(Ignores):
    """Its name lies: the decay is an L2 penalty."""

    def gradient(self, p: Any, group: dict[str, Any]) -> torch.Tensor:
        return p.grad + group["weight_decay"] * p


class HalfPenalty(Ignores):
    def gradient(self, p: Any, group: dict[str, Any]) -> torch.Tensor:
        return p.grad + 0.5 * group["weight_decay"] * p


class Palm(Planted):
    decay = staticmethod(lambda lam, lr, lr0: lr**2 * lam)


class Squared(Planted):
    decay = staticmethod(lambda lam, lr, lr0: lr * lam**2)


class ByGradient(Planted):
    """AdamS's: the decay is divided by the size of the gradient."""

    def fraction(self, group: dict[str, Any]) -> float:
        size = sum(float(p.grad.abs().mean()) for p in group["params"])
        return super().fraction(group) / (size + 1e-8)


class AfterTheUpdate(Planted):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign()).mul_(1 - group["lr"] * group["weight_decay"])


class Proximal(Planted):
    """It decays the new weights by division, as Adan."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign()).div_(1 + group["lr"] / self.lr0 * group["weight_decay"])


class OwnRate(Planted):
    """It has a rate of its own, as Prodigy: the first is no measure of the others."""

    decay = staticmethod(lambda lam, lr, lr0: 1e-6 * lr * lam)


class Crawls(Planted):
    """It hardly moves, so that steps with decay all but equal those with a penalty."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(1e-8 * group["lr"] * (p.grad.sign() + group["weight_decay"] * p.sign()))


class Noisy(Planted):
    """It needs the same noise on both sides, from any source."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.randn_like(p) * random.random(), alpha=1e-3)


class Float32(Planted):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.dtype != torch.float32:
                    raise RuntimeError("float32 only")
        return super().step()


class OnAccelerator(Planted):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("on an accelerator only")


class Closure(Planted):
    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Twice(Planted):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        closure()
        return closure()


class Swallows(torch.optim.SGD):
    """It takes any keyword and does nothing with it."""

    def __init__(self, params: Any, lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(params, lr=lr)


class Exits(torch.optim.SGD):
    """As lion_pytorch's Lion does where triton is missing."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, use_triton: bool = False) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        if use_triton:
            print("triton is not installed\n")
            raise SystemExit


class Passes(torch.optim.AdamW):
    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)


class Needs(Planted):
    def __init__(self, params: Any, steps: int, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


def fitted(found: Identification) -> tuple[Any, ...]:
    return found.style, found.multiple, found.lr_exponent, found.base_lr_exponent, found.amount_exponent


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Planted, ("decoupled", 1, 1, 0, 1)),
        (Constant, ("constant", 1, 0, 0, 1)),
        (Independent, ("independent", 1, 1, -1, 1)),
        (Corrected, ("corrected", 1, 2, -1, 1)),
        (Half, ("decoupled", 0.5, 1, 0, 1)),
        (Thrice, ("independent", 3, 1, -1, 1)),
        (Ignores, ("none", 0, None, None, None)),
        (DecoupledByName, ("l2", 1, None, None, None)),
        (HalfPenalty, ("l2", 0.5, None, None, None)),
        (Palm, ("unknown", 1, 2, 0, 1)),
        (Squared, ("unknown", 1, 1, 0, 2)),
        (AtConstruction, ("decoupled", 1, 1, 0, 1)),
        (Projected, ("decoupled", 10, 1, 0, 1)),
        (TrustRatio, ("unknown", None, None, None, None)),
        (ByGradient, ("unknown", None, None, None, None)),
        (AfterTheUpdate, ("decoupled", 1, 1, 0, 1)),
        (Proximal, ("independent", 1, 1, -1, 1)),
        (OwnRate, ("unknown", 1e-6, 1, 0, 1)),
        (Crawls, ("unknown", None, None, None, None)),
        (Noisy, ("decoupled", 1, 1, 0, 1)),
        (Float32, ("decoupled", 1, 1, 0, 1)),
        (Closure, ("decoupled", 1, 1, 0, 1)),
        (Twice, ("unknown", None, None, None, None)),
        (OnAccelerator, ("unknown", None, None, None, None)),
        (Swallows, ("none", 0, None, None, None)),
        (Passes, ("decoupled", 1, 1, 0, 1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_classes(cls: Any, expected: tuple[Any, ...]) -> None:
    assert fitted(wd.identify(cls)) == expected


class TwoKernels(Planted):
    """In float32, in which an accelerator is tried, a penalty; else decoupled."""

    def fraction(self, group: dict[str, Any]) -> float:
        single = group["params"][0].dtype == torch.float32
        return 0.0 if single else super().fraction(group)

    def gradient(self, p: Any, group: dict[str, Any]) -> torch.Tensor:
        return p.grad + (group["weight_decay"] * p if p.dtype == torch.float32 else 0.0)


def test_another_decay_on_an_accelerator_is_the_one_that_counts() -> None:
    """bitsandbytes#1992: one Lion, two kernels. The CPU stands for the accelerator here."""
    alone, there = (_find_out(TwoKernels, {}, accelerator) for accelerator in (None, "cpu"))
    assert (alone.style, alone.own_rule) == ("decoupled", True)
    assert (there.style, there.own_rule, there.evidence[-1]) == (
        "l2",
        False,
        "That is on cpu; on the CPU it is decoupled.",
    )
    assert _find_out(Planted, {}, "cpu") == _find_out(Planted, {}, None)


@pytest.mark.parametrize("style", ["l2", "decoupled", "independent", "constant", "corrected", "none"])
@pytest.mark.parametrize(
    "cls", [wd.AdamW, wd.SGDW, wd.decoupled(torch.optim.NAdam), wd.decoupled(Planted)], ids=lambda cls: cls.__name__
)
def test_every_style_of_ours(cls: Any, style: str) -> None:
    if cls is wd.decoupled(Planted) and style == "l2":
        pytest.skip("refused: its own decay is decoupled")
    found = wd.identify(cls, style=style)
    assert (found.style, found.multiple) == (style, 0 if style == "none" else 1)


@pytest.mark.parametrize(
    ("name", "keywords", "style"),
    [
        ("Adadelta", {}, "l2"),
        ("Adafactor", {}, "decoupled"),
        ("Adagrad", {}, "l2"),
        ("Adam", {}, "l2"),
        ("Adam", {"maximize": True, "amsgrad": True}, "l2"),
        ("AdamW", {}, "decoupled"),
        ("AdamW", {"maximize": True}, "decoupled"),
        ("Adamax", {}, "l2"),
        ("ASGD", {}, "l2"),
        ("LBFGS", {}, "none"),
        ("Muon", {}, "decoupled"),
        ("NAdam", {}, "l2"),
        ("NAdam", {"decoupled_weight_decay": True}, "decoupled"),
        ("RAdam", {}, "l2"),
        ("RAdam", {"decoupled_weight_decay": True}, "decoupled"),
        ("RMSprop", {"momentum": 0.9, "centered": True}, "l2"),
        ("Rprop", {}, "none"),
        ("SGD", {}, "l2"),
        ("SGD", {"momentum": 0.9, "nesterov": True}, "l2"),
    ],
)
def test_torchs_own(name: str, keywords: dict[str, Any], style: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    found = wd.identify(getattr(torch.optim, name), **keywords)
    assert (found.style, found.multiple) == (style, 0 if style == "none" else 1)


def test_evidence_in_words() -> None:
    assert str(wd.identify(Half)) == (
        "Half: decoupled\n"
        "  A step removes the same fraction d of all old weights: p95/p5 = 1.\n"
        "  d = 0.5 * lr_t * weight_decay: 6.1e-05 at lr_t=0.015625, 3.05e-05 at lr_t=0.0078125, 1.53e-05 at "
        "lr_t=0.00390625 with lr0=0.015625 and weight_decay=0.0078125; 6.1e-05 with lr0=0.03125, 0.000122 with "
        "weight_decay=0.015625, at lr_t=0.015625."
    )
    penalty, spread = wd.identify(torch.optim.Adam).evidence
    assert penalty == "Steps with weight_decay equal those with 0 on the gradients g + weight_decay * w: an L2 penalty."
    assert spread.startswith("The fraction of a weight that a step removes varies over coordinates: p95/p5 = ")


@pytest.mark.parametrize(
    ("cls", "line"),
    [
        (Ignores, "Steps with weight_decay equal those with 0: it has no effect."),
        (Swallows, "Steps with weight_decay equal those with 0: it has no effect; any keyword is accepted."),
        (torch.optim.Rprop, "Its constructor takes no weight_decay."),
        (torch.optim.SGD, "Without momentum an L2 penalty and decoupled decay are the same steps; with momentum=0.5"),
        (AfterTheUpdate, "It decays the new weights, after the update; decoupled decay here takes the old ones."),
        (Proximal, "It decays the new weights, after the update, and divides by 1 + d; decoupled decay here takes the"),
        (OwnRate, "That is no multiple of ours: it has a rate of its own, which may be another later."),
        (AtConstruction, "It does not read weight_decay from its group at each step: a schedule of it changes nothing"),
        (Projected, "It depends on the gradient: with zero gradients d is 0.0001221, 0.1 times as much."),
        (Palm, "No style has this d."),
        (TrustRatio, "At lr_t=0.015625 and weight_decay=0.0078125 a step removes "),
        (Twice, "float64 on cpu: RuntimeError: it evaluates the closure more than once in a step"),
        (OnAccelerator, "float32 on cpu: RuntimeError: on an accelerator only"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_odd_is_said(cls: Any, line: str) -> None:
    assert any(each.startswith(line) for each in wd.identify(cls).evidence), wd.identify(cls)


def test_cautious_decay_is_unknown_and_says_why() -> None:
    found = wd.identify(wd.AdamW, cautious_wd=True)
    assert found.style == "unknown"
    assert found.evidence[1].endswith("those where decay and update agree in sign: cautious decay.")


def test_a_class_of_slow_steps_is_stepped_on_a_smaller_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytorch_optimizer's Kron, half a second a step where opt_einsum is missing: the answer does not change."""
    monkeypatch.setattr(identify_twins, "_SECONDS", 0.0)
    slow, known = _find_out(Half, {}, None), wd.identify(Half)
    line = "A trial with a matrix of 64 x 64 takes more than 0 s of processor time; this is one with 16 x 16."
    assert (fitted(slow), slow.evidence) == (fitted(known), (*known.evidence, line))


def test_spread() -> None:
    assert wd.identify(torch.optim.AdamW).spread == pytest.approx(1, abs=1e-9)
    spread = wd.identify(torch.optim.Adam).spread
    assert spread is not None
    assert spread > 100


@pytest.mark.parametrize(
    ("cls", "style", "amount"),
    [
        (torch.optim.AdamW, "decoupled", 0.1),
        (torch.optim.AdamW, "independent", 100.0),
        (torch.optim.AdamW, "none", 0.0),
        (torch.optim.AdamW, "l2", None),
        (Half, "decoupled", 0.2),
        (Constant, "constant", 0.1),
        (Constant, "decoupled", 1e-4),
        (Independent, "decoupled", 1e-4),
        (Corrected, "corrected", 0.1),
        (torch.optim.Adam, "decoupled", None),
        (TrustRatio, "decoupled", None),
        (Ignores, "decoupled", None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_amount_for(cls: Any, style: str, amount: float | None) -> None:
    given = wd.identify(cls).amount_for(style, weight_decay=0.1, lr=1e-3)
    assert given == (None if amount is None else pytest.approx(amount))


@pytest.mark.parametrize("base", [torch.optim.AdamW, Half, Independent], ids=lambda cls: cls.__name__)
def test_amount_for_decays_as_ours(base: Any) -> None:
    """Under a schedule, against the fraction by hand."""
    given = wd.identify(base).amount_for("independent", weight_decay=0.01, lr=0.1)
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = base([weight], lr=0.1, weight_decay=given)
    expected = 1.0
    for factor in (1.0, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        expected *= 1 - factor * 0.01
    assert weight.tolist() == pytest.approx([expected] * 3, rel=1e-12)


def test_random_state_is_left_as_it_was_and_little_time_taken() -> None:
    import numpy as np

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    begin = time.process_time()
    assert wd.identify(Noisy, beta=0.5).style == "decoupled"
    assert time.process_time() - begin < 5
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]


def test_it_works_where_torch_is_set_otherwise() -> None:
    with torch.inference_mode(), torch.device("meta"):
        assert wd.identify(Half, beta=0.25).style == "decoupled"
    calls: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: calls.append(1))
    try:
        assert wd.identify(Half, beta=0.75).style == "decoupled"
    finally:
        handle.remove()
    assert calls == []  # the user's hooks see no step of a trial


def test_an_answer_is_remembered_for_each_set_of_keywords() -> None:
    first = wd.identify(torch.optim.NAdam, decoupled_weight_decay=True)
    assert wd.identify(torch.optim.NAdam, decoupled_weight_decay=True, lr=0.5, weight_decay=3.0) is first
    assert wd.identify(torch.optim.NAdam) is not first


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wd.identify("Adam"), ["identify() takes a torch.optim.Optimizer class but got 'Adam'."]),  # type: ignore[arg-type]
        (
            lambda: wd.identify(torch.optim.Adam, bets=(0.9, 0.99)),
            ["Adam has no key 'bets'.", "nearest: 'betas'", "fix: write betas, or remove bets"],
        ),
        (lambda: wd.identify(Swallows, momentun=0.9), ["Swallows has no key 'momentun'.", "nearest: 'momentum'"]),
        (lambda: wd.identify(Needs), ["Needs needs steps.", "found: keywords none", "fix: give steps=<value>"]),
        (
            lambda: wd.identify(torch.optim.Adam, betas=(2.0, 2.0)),
            ["Adam cannot be made with betas=(2.0, 2.0).", "Invalid beta parameter at index 0: 2.0"],
        ),
        (
            lambda: wd.identify(Exits, use_triton=True),
            [
                "Exits cannot be made with use_triton=True.",
                "RuntimeError: it ends the program. triton is not installed\n",
            ],
        ),
        (lambda: wd.identify(Half).amount_for("l22", 0.1, 0.1), ["style 'l22' is unknown", "nearest: 'l2'"]),
    ],
)
def test_what_is_wrong_is_said(call: Any, words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        call()
    for part in words:
        assert part in str(caught.value)


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/identify.md: its commands and its code run, and its rows of torch are what identify says."""
    page = (Path(__file__).parents[2] / "docs/identify.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, {})
    (command,) = re.findall(r"```bash\n\.venv/bin/lightning-wd (.*?)\n```", page, re.S)
    assert main(command.split()) == 0
    assert capsys.readouterr().out.startswith("NAdam: decoupled\n")
    rows = re.findall(r"^\| `(\w+)(?:\(.*?\))?` \| `(\w+)` \|", page, re.M)
    assert len({name for name, _ in rows}) >= 100
    (table,) = re.findall(r"## torch\.optim\n(.*?)\n## ", page, re.S)
    for name, style in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", table, re.M):
        if hasattr(torch.optim, name):
            assert (name, wd.identify(getattr(torch.optim, name)).style) == (name, style)


def test_a_missing_keyword_may_be_given() -> None:
    assert wd.identify(Needs, steps=3).style == "decoupled"


@pytest.mark.parametrize(
    ("path", "keywords", "style", "multiple"),
    [
        ("timm.optim.SGDP", {"momentum": 0.9}, "decoupled", 10),
        ("timm.optim.Lion", {"corrected_weight_decay": True}, "corrected", 1),
        ("timm.optim.Lamb", {}, "unknown", None),
        ("pytorch_optimizer.Lion", {}, "decoupled", 1),
        ("pytorch_optimizer.AdamS", {}, "unknown", None),
        ("optimi.AdamW", {"decouple_lr": True}, "independent", 1),
        ("lion_pytorch.Lion", {}, "decoupled", 1),
    ],
)
def test_classes_of_others(path: str, keywords: dict[str, Any], style: str, multiple: float | None) -> None:
    package, _, name = path.rpartition(".")
    cls = getattr(pytest.importorskip(package, exc_type=ImportError), name)
    found = wd.identify(cls, **keywords)
    assert (found.style, found.multiple) == (style, multiple)
