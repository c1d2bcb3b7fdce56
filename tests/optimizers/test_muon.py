"""Muon on hidden matrices, AdamW on the rest: members by name, both halves equal torch's own, every decoupled style."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import lightning_wd as wd
from lightning_wd import _private
from lightning_wd.optimizers import MuonAdamW

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no Muon")


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Embedding(5, 4),
        torch.nn.Linear(4, 8),
        torch.nn.LayerNorm(8),
        torch.nn.Linear(8, 8),
        torch.nn.Linear(8, 2),
    )


def built(module: torch.nn.Module, **config: object) -> torch.optim.Optimizer:
    optimizer = wd.configure_optimizers(module, {"name": "muon", "lr": 0.01, "weight_decay": 0.1, **config})[
        "optimizer"
    ]
    assert isinstance(optimizer, MuonAdamW)
    return optimizer


def backward(module: torch.nn.Module) -> None:
    module.zero_grad()
    module(torch.tensor([0, 1, 2, 3])).square().mean().backward()


def test_members_by_name() -> None:
    groups = {(g["name"], g["use_muon"]): g["param_names"] for g in built(net()).param_groups}
    assert groups == {
        ("decay_muon", True): ["1.weight", "3.weight"],
        ("decay", False): ["0.weight", "4.weight"],
        ("no_decay", False): ["1.bias", "2.weight", "2.bias", "3.bias", "4.bias"],
    }


def test_each_half_equals_torchs_own() -> None:
    ours, theirs = net(), net()
    optimizer = built(ours)
    named = dict(theirs.named_parameters())
    muon = torch.optim.Muon(
        [named[n] for n in ("1.weight", "3.weight")], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [named[n] for n in ("0.weight", "4.weight")], "weight_decay": 0.1},
            {"params": [named[n] for n in named if n.endswith("bias") or n == "2.weight"], "weight_decay": 0.0},
        ],
        lr=0.01,
        fused=True,
    )
    for _ in range(5):
        backward(ours)
        optimizer.step()
        backward(theirs)
        muon.step()
        adamw.step()
    for name, value in ours.named_parameters():
        assert torch.equal(value, named[name]), name


@pytest.mark.parametrize(
    ("style", "cautious", "left"),
    [
        ("decoupled", False, 1 - 0.01 * 0.1),
        ("independent", False, 0.9),
        ("constant", False, 0.9),
        ("corrected", False, 1 - 0.01 * 0.1),
        ("none", False, 1.0),
        ("decoupled", True, 1 - 0.01 * 0.1),
    ],
)
def test_decay_of_a_zero_gradient(style: str, cautious: bool, left: float) -> None:
    module = net()
    optimizer = built(module, decay={"style": style, "cautious": cautious})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in module.named_parameters():
        decays = name in ("0.weight", "1.weight", "3.weight", "4.weight")
        torch.testing.assert_close(p.detach(), before[name] * (left if decays else 1.0), msg=name)


def test_hooks_run_once_and_state_survives() -> None:
    module = net()
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    optimizer = built(module)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    backward(module)
    optimizer.step()
    assert calls == [1]
    twin = built(copy.deepcopy(module))
    twin.load_state_dict(optimizer.state_dict())
    assert str(twin.state_dict()) == str(optimizer.state_dict())
    assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["use_muon"] is True


def test_refusals() -> None:
    with pytest.raises(wd.ConfigError, match=r"x of group 0 is not a real matrix[\s\S]*shape \(3,\)"):
        MuonAdamW([{"params": [("x", torch.nn.Parameter(torch.ones(3)))], "use_muon": True}])
    with pytest.raises(wd.ConfigError, match=r"optimizer=muon does not do optimizer.decay.style 'l2'"):
        built(net(), decay={"style": "l2"})
    with pytest.raises(wd.ConfigError, match=r"adjust_lr_fn 'orignal' is unknown[\s\S]*nearest: 'original'"):
        built(net(), adjust_lr_fn="orignal")
    module = net()
    adamw = wd.configure_optimizers(module, {"name": "adamw", "weight_decay": 0.1})["optimizer"]
    with pytest.raises(wd.CheckpointMismatchError, match="of another optimizer"):
        built(module).load_state_dict(adamw.state_dict())


def test_a_torch_without_muon_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_private, "muon", None)
    with pytest.raises(wd.ConfigError, match=r"has no Muon[\s\S]*torch >= 2\.9[\s\S]*optimizer=adamw"):
        MuonAdamW([torch.nn.Parameter(torch.ones(1))])
