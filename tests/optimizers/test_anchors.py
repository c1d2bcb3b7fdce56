"""Decay towards the weights an optimizer was built with, or a checkpoint's: read, found by name, kept as state."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ddp import needs_shards_on_cpu
from torch import nn

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2
from lightning_wd.optimizers.anchors import saved_names
from lightning_wd.optimizers.muon import Muon

# Weights are moved away from the anchors that were read from them.
pytestmark = pytest.mark.filterwarnings("ignore:toward='init' of")

CLASSES: list[tuple[Any, dict[str, Any]]] = [
    (wd.AdamW, {}),
    (wd.SGDW, {"momentum": 0.9}),
    (wd.decoupled(torch.optim.NAdam), {}),
    (wd.decoupled(torch.optim.RMSprop), {"foreach": True}),
]


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def stepped(optimizer: Any, steps: int = 1, gradient: float = 0.0) -> Any:
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, gradient)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize(
    ("style", "lam"), [("decoupled", 0.5), ("independent", 0.05), ("constant", 0.05), ("corrected", 0.5)]
)
@pytest.mark.parametrize(("cls", "extra"), CLASSES)
def test_without_a_gradient_weights_go_back_geometrically(
    cls: Any, extra: dict[str, Any], style: str, lam: float, cautious: bool
) -> None:
    """w* + (w0 - w*) (1 - d)^t, with w* the weights when the optimizer was built."""
    p = parameter(1.0, -2.0)
    optimizer = cls([p], lr=0.1, weight_decay=lam, style=style, cautious_wd=cautious, toward="init", **extra)
    with torch.no_grad():
        p.copy_(torch.tensor([3.0, 4.0]))
    stepped(optimizer, 20)
    start, anchor = np.array([3.0, 4.0]), np.array([1.0, -2.0])
    np.testing.assert_allclose(p.detach(), anchor + (start - anchor) * 0.95**20, rtol=1e-12)
    assert torch.equal(optimizer.state[p]["anchor"], torch.tensor([1.0, -2.0], dtype=torch.float64))


@pytest.mark.parametrize("cls", [AdamL2, SGDL2, wd.decoupled(torch.optim.RMSprop), wd.decoupled(torch.optim.NAdam)])
def test_an_l2_penalty_towards_an_anchor_is_its_gradient(cls: Any) -> None:
    """Equal to the class without a penalty on the gradient g + lam * (w - w*), maximized or not."""
    for maximize in (False, True):
        runs = []
        for by_hand in (False, True):
            p, sign = parameter(1.0, -2.0), -1 if maximize else 1
            style = {"style": "none" if by_hand else "l2"} if cls not in (AdamL2, SGDL2) else {}
            lam = 0.0 if by_hand else 0.3
            toward = {} if by_hand else {"toward": "init"}
            optimizer = cls([p], lr=0.1, weight_decay=lam, maximize=maximize, **style, **toward)
            with torch.no_grad():
                p.copy_(torch.tensor([3.0, 4.0]))
            for t in range(3):
                g = torch.tensor([0.5, -0.1 * t], dtype=torch.float64)
                away = p.detach() - torch.tensor([1.0, -2.0], dtype=torch.float64)
                p.grad = g + sign * 0.3 * away if by_hand else g
                optimizer.step()
                assert by_hand or p.grad is g  # whose own grad stays as it was
            runs.append(p.detach())
        torch.testing.assert_close(*runs, rtol=1e-12, atol=0)


def test_toward_zero_is_today() -> None:
    """No anchor is kept, and AdamW stays torch's bit for bit."""
    p, q = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    ours, theirs = wd.AdamW([p], lr=0.1, weight_decay=0.5, toward="zero"), torch.optim.AdamW([q], 0.1, weight_decay=0.5)
    stepped(ours, 5, 0.3)
    stepped(theirs, 5, 0.3)
    assert torch.equal(p, q)
    assert set(ours.state[p]) == {"step", "exp_avg", "exp_avg_sq"}


# --- as state -------------------------------------------------------------------------------------------------------


def test_every_constructor_takes_toward_for_its_groups() -> None:
    for optimizer in (
        Muon([nn.Parameter(torch.ones(2, 2))], toward="init", anchor_dtype="bfloat16"),
        wd.MultiOptimizer(
            [{"params": [parameter(1.0)], "optimizer": "adamw"}],
            toward="init",
            hyperparameters={"adamw": {"anchor_dtype": "bfloat16"}},
        ),
        wd.AdamW([parameter(1.0)], toward="init", anchor_dtype="bfloat16"),
    ):
        group = stepped(optimizer).param_groups[0]
        assert (group["toward"], group["anchor_dtype"]) == ("init", "bfloat16"), optimizer
        assert optimizer.state[group["params"][0]]["anchor"].dtype == torch.bfloat16


@pytest.mark.parametrize("toward", ["init", "path"])
@pytest.mark.parametrize("cls", [wd.AdamW, wd.decoupled(torch.optim.RMSprop), wd.MultiOptimizer])
def test_a_state_saved_before_the_first_step_has_the_anchor(cls: Any, toward: str, tmp_path: Path) -> None:
    """A finder steps, then loads such a state to undo that; another process resumes from it, with other weights."""
    torch.save({"w": torch.tensor([5.0, 5.0])}, tmp_path / "weights.pt")
    path = str(tmp_path / "weights.pt")

    def built(toward: str, *values: float) -> tuple[Any, nn.Parameter]:
        p = parameter(*values)
        group = {"params": [("w", p)], **({"optimizer": "sgdw"} if cls is wd.MultiOptimizer else {})}
        return cls([group], lr=0.1, weight_decay=1.0, toward=path if toward == "path" else toward), p

    optimizer, p = built(toward, 1.0, -2.0)
    anchor = [1.0, -2.0] if toward == "init" else [5.0, 5.0]
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["anchor"].tolist() == anchor
    assert not optimizer.state
    assert stepped(optimizer, 2, gradient=1.0).state[p]["anchor"].tolist() == anchor
    optimizer.load_state_dict(saved)
    assert stepped(optimizer).state[p]["anchor"].tolist() == anchor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed, p = built(toward, 3.0, 3.0)
        resumed.load_state_dict(saved)
        assert resumed.state_dict()["state"][0]["anchor"].tolist() == anchor
        assert stepped(resumed).state[p]["anchor"].tolist() == anchor
    # In a run that is configured otherwise the state's toward wins, and so does its anchor.
    other, p = built("init" if toward == "path" else "path", 3.0, 3.0)
    with pytest.warns(UserWarning, match="toward is"):
        other.load_state_dict(saved)
    assert stepped(other).state[p]["anchor"].tolist() == anchor
    other.on_resume = "config"
    before = other.state[p]["anchor"].tolist()
    del saved["state"][0]
    with pytest.raises(wd.CheckpointMismatchError, match="the state of parameter 'w' in group 0") as error:
        other.load_state_dict(saved)
    assert "found: no anchor" in str(error.value)
    assert other.state[p]["anchor"].tolist() == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cls", [wd.AdamW, wd.decoupled(torch.optim.RMSprop)])
def test_weights_that_change_after_init_was_read_are_said_once(cls: Any) -> None:
    first, second = parameter(1.0), parameter(2.0)
    optimizer = cls([("a", first), ("b", second)], weight_decay=0.1, toward="init", anchor_dtype="bfloat16")
    with torch.no_grad():
        second.fill_(7.0)
    words = r"toward='init' of group 0 is the weights when the optimizer was built, and they have changed since\.\n"
    with pytest.warns(UserWarning, match=words + "  found: 1 of 2 before their first step: b\n"):
        stepped(optimizer)
    stepped(optimizer)
    stepped(cls([("a", parameter(0.1))], weight_decay=0.1, toward="init", anchor_dtype="bfloat16"))  # 0.1 is rounded
    resumed = cls([("a", first)], weight_decay=0.1, toward="init")
    with torch.no_grad():
        first.fill_(7.0)
    resumed.param_groups[0]["lr"] = 0.0  # torch.distributed.checkpoint makes the state that it then loads
    stepped(resumed)


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize(("cls", "extra"), [*CLASSES[:2], CLASSES[3]])
def test_an_anchor_survives_a_copy_a_pickle_and_a_load(cls: Any, extra: dict[str, Any], when: int) -> None:
    p = parameter(1.0, -2.0)
    optimizer = cls([p], lr=0.1, weight_decay=0.5, toward="init", **extra)
    with torch.no_grad():
        p.add_(1.0)
    stepped(optimizer, when, 0.3)
    others = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    if when:
        loaded = cls([nn.Parameter(p.detach().clone())], lr=0.1, weight_decay=0.5, toward="init", **extra)
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        others.append(loaded)
    stepped(optimizer, 3, 0.3)
    for other in others:
        stepped(other, 3, 0.3)
        assert torch.equal(other.param_groups[0]["params"][0], p)


def test_the_anchor_moves_with_its_weight() -> None:
    p = parameter(1.0, -2.0)
    optimizer = wd.SGDW([p], lr=0.1, weight_decay=0.5, toward="init")
    p.data = p.data.float() + 1.0
    stepped(optimizer)
    assert optimizer.state[p]["anchor"].dtype == torch.float32
    torch.testing.assert_close(p.detach(), torch.tensor([1.95, -1.05]))
    p.data = p.data.double()
    stepped(optimizer)
    assert optimizer.state[p]["anchor"].dtype == torch.float64


@pytest.mark.parametrize("compile", [False, True])
def test_a_narrow_anchor_is_the_weight_rounded(compile: bool) -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 33))
    optimizer = wd.AdamW([p], lr=0.1, weight_decay=0.5, toward="init", anchor_dtype="bfloat16", compile=compile)
    start = p.detach() + 1.0
    with torch.no_grad():
        p.add_(1.0)
    stepped(optimizer)
    anchor = torch.linspace(-1, 1, 33).bfloat16()
    assert torch.equal(optimizer.state[p]["anchor"], anchor)
    torch.testing.assert_close(p.detach(), start - 0.05 * (start - anchor.float()))
    twin = wd.AdamW(
        [nn.Parameter(p.detach().clone())], lr=0.1, weight_decay=0.5, toward="init", anchor_dtype="bfloat16"
    )
    twin.load_state_dict(optimizer.state_dict())  # torch makes it float32, which holds the same values
    stepped(optimizer)
    stepped(twin)
    (q,) = twin.param_groups[0]["params"]
    assert twin.state[q]["anchor"].dtype == torch.bfloat16
    torch.testing.assert_close(q, p)


def test_another_toward_than_the_runs_is_said(tmp_path: Path) -> None:
    def built(toward: str) -> Any:
        return wd.SGDW([parameter(1.0)], lr=0.1, weight_decay=0.5, toward=toward)

    saved = stepped(built("init")).state_dict()
    target = built("zero")
    with pytest.warns(UserWarning, match="toward is 'init' in the checkpoint, 'zero' in the configuration"):
        target.load_state_dict(copy.deepcopy(saved))
    assert target.param_groups[0]["toward"] == "init"
    target = built("zero")
    target.on_resume = "config"
    with pytest.warns(UserWarning, match="the configured values are used"):
        target.load_state_dict(copy.deepcopy(saved))
    stepped(target)
    torch.testing.assert_close(target.param_groups[0]["params"][0].item(), 0.95)
    assert not target.state[target.param_groups[0]["params"][0]]
    torch.save({"w": torch.full((1,), 5.0)}, tmp_path / "w.ckpt")
    of_file = wd.SGDW([("w", parameter(1.0))], lr=0.1, weight_decay=0.5, toward=str(tmp_path / "w.ckpt"))
    of_file.on_resume = "config"
    with pytest.warns(UserWarning, match="the configured values are used"):
        of_file.load_state_dict(copy.deepcopy(saved))
    stepped(of_file)  # towards 5, which the checkpoint's anchor is not
    torch.testing.assert_close(of_file.param_groups[0]["params"][0].item(), 1.2)


def test_a_hyperball_is_left_and_entered_by_choice() -> None:
    """One that is entered again starts from the norm it has then."""

    def built(style: str, size: float) -> tuple[Any, nn.Parameter]:
        p = nn.Parameter(torch.full((2, 2), size))
        return wd.AdamW([("w", p)], style=style, weight_decay=0.1 if style == "decoupled" else None), p

    saved = stepped(built("hyperball", 1.0)[0], gradient=1.0).state_dict()
    plain, p = built("decoupled", 1.0)
    with pytest.raises(
        wd.CheckpointMismatchError, match="on_resume=config, with the lr and weight_decay of that style"
    ):
        plain.load_state_dict(saved)
    plain.on_resume = "config"
    with pytest.warns(UserWarning, match="style 'hyperball'"):
        plain.load_state_dict(saved)
    assert "radius" not in plain.state[p]
    ball, p = built("hyperball", 3.0)
    words = r"on_resume=config, with lr from lightning_wd\.convert\(\.\.\., to='angle'\)"
    with pytest.raises(wd.CheckpointMismatchError, match=words):
        ball.load_state_dict(plain.state_dict())
    ball.on_resume = "config"
    with pytest.warns(UserWarning, match="style 'decoupled'"):
        ball.load_state_dict(plain.state_dict())
    assert stepped(ball, gradient=1.0).state[p]["radius"] == 6.0


@needs_shards_on_cpu
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"name": "adamw", "weight_decay": 1.0, "decay": {"toward": "init", "cautious": True}},
        {"name": "sgdw", "weight_decay": 1.0, "decay": {"toward": "init"}},
        {"name": "muon", "decay": {"style": "hyperball"}},
    ],
    ids=lambda config: config["name"],
)
def test_a_distributed_checkpoint_of_shards(config: dict[str, Any], full: bool, mesh: Any) -> None:
    """torch fills an empty optimizer by a step at rate 0 before it loads: the anchors and radii are those saved."""
    from torch.distributed.checkpoint import state_dict as dcp
    from torch.distributed.fsdp import fully_shard

    def built() -> tuple[Any, Any]:
        torch.manual_seed(0)
        net: Any = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        fully_shard(net, mesh=mesh)
        return net, wd.configure_optimizers(net, {**config, "lr": 0.05})["optimizer"]

    def train(net: Any, optimizer: Any) -> None:
        for t in range(3):
            optimizer.zero_grad()
            net(torch.cos(torch.arange(20.0) + t).reshape(5, 4)).square().mean().backward()
            optimizer.step()

    net, optimizer = built()
    train(net, optimizer)
    options = dcp.StateDictOptions(full_state_dict=full, cpu_offload=full)
    weights = copy.deepcopy(dcp.get_model_state_dict(net, options=options))
    state = copy.deepcopy(dcp.get_optimizer_state_dict(net, optimizer, options=options))
    resumed, other = built()
    with torch.no_grad():
        for p in resumed.parameters():
            p.mul_(1.5)
    dcp.set_model_state_dict(resumed, weights, options=options)
    dcp.set_optimizer_state_dict(resumed, other, state, options=options)
    train(net, optimizer)
    train(resumed, other)
    for a, b in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a.full_tensor(), b.full_tensor())


# --- a checkpoint ---------------------------------------------------------------------------------------------------


def test_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    """Of Lightning's or a plain one, by name; what it lacks decays towards zero."""
    net = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)}).double()
    body = {"body.weight": torch.full((2, 2), 3.0), "body.bias": torch.zeros(2), "old.weight": torch.ones(5)}
    for held in (body, {"state_dict": {f"model.{k}": v for k, v in body.items()}, "epoch": 3}):
        torch.save(held, tmp_path / "weights.ckpt")
        trained = copy.deepcopy(net)
        path: Any = tmp_path / "weights.ckpt"
        optimizer = wd.SGDW(trained.named_parameters(), lr=0.1, weight_decay=0.5, toward=path)
        assert optimizer.param_groups[0]["toward"] == str(path)
        stepped(optimizer)
        before, after = dict(net.named_parameters()), dict(trained.named_parameters())
        torch.testing.assert_close(after["body.weight"], before["body.weight"] * 0.95 + 0.05 * 3.0)
        torch.testing.assert_close(after["head.weight"], before["head.weight"] * 0.95)


def test_names_match_through_wrappers_and_prefixes() -> None:
    mine = ["model.body.weight", "model.head.weight"]
    for saved in (["model.body.weight"], ["body.weight", "x"], ["net.model.body._orig_mod.weight", "net.old.weight"]):
        assert saved_names(mine, saved) == {"model.body.weight": saved[0]}
    assert saved_names(["0.weight", "1.weight"], ["weight"]) == {}  # either could be meant
    assert saved_names(mine, ["other.bias"]) == {}
    # The model's, or its average? No prefix is taken by chance.
    assert saved_names(["body.weight"], ["model.body.weight", "ema.body.weight"]) == {}
    # An old head of the same name does not hide the body that stands under another prefix.
    mine = ["body.0.weight", "body.1.weight", "head.weight"]
    saved = ["0.weight", "1.weight", "head.weight"]
    assert saved_names(mine, saved) == {"body.0.weight": "0.weight", "body.1.weight": "1.weight"}


class Code:
    def __reduce__(self) -> Any:
        return print, ("never",)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"w": torch.ones(3)}, ["w has another shape in toward='", "found: (3,)", "valid: (2,)"]),
        ({"other": torch.ones(2)}, ["group 0 has no weight in toward='", "found: other", "valid: w", "fix: give the"]),
        ({"w": Code()}, ["cannot be read as weights", "found: more than plain data", "fix: save the weights alone"]),
        ({"epoch": 3}, ["cannot be read as weights", "found: a dict of epoch", "under 'state_dict'"]),
        (b"no zip", ["cannot be read as weights"]),
        (b"hi", ["cannot be read as weights", "found: KeyError: 105\n", "fix: give the path of a checkpoint"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(held: Any, words: list[str], tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(held) if isinstance(held, bytes) else torch.save(held, path)
    with pytest.raises(wd.ConfigError) as error:
        wd.AdamW([("w", parameter(1.0, 2.0))], toward=str(path))
    assert all(word in str(error.value) for word in words), error.value
    assert "never" not in capfd.readouterr().out


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wd.ConfigError, match="is a folder") as error:
        wd.AdamW([parameter(1.0)], toward=str(tmp_path))
    assert f"lightning.pytorch.utilities.consolidate_checkpoint {tmp_path}" in str(error.value)
    with pytest.raises(wd.ConfigError, match="toward 'int' is neither zero, init nor a file") as error:
        wd.AdamW([parameter(1.0)], toward="int")
    assert "nearest: 'init'" in str(error.value)
    with pytest.raises(wd.ConfigError, match=r"toward of group 0 'nowhere\.ckpt' is neither"):
        wd.AdamW([{"params": [parameter(1.0)], "toward": "nowhere.ckpt"}])
    with pytest.raises(wd.ConfigError, match="needs the names of its parameters"):
        wd.AdamW([parameter(1.0)], toward=__file__)
    with pytest.raises(wd.ConfigError, match="are on the meta device"):
        wd.AdamW([nn.Parameter(torch.ones(2, device="meta"))], toward="init")
    with pytest.raises(wd.ConfigError, match="anchor_dtype 'int8' is unknown"):
        wd.AdamW([parameter(1.0)], toward="init", anchor_dtype="int8")
    for cls in (wd.AdamW, wd.SGDW, AdamL2, Muon, wd.decoupled(torch.optim.NAdam)):
        words = r"anchor_dtype='bfloat16' of \w+ has no effect: what decays.*\n  fix: write toward='init' or the path"
        with pytest.raises(wd.ConfigError, match=words):
            cls([nn.Parameter(torch.ones(2, 2))], anchor_dtype="bfloat16")
    wd.AdamW([{"params": [parameter(1.0)], "toward": "init"}], anchor_dtype="bfloat16")
    with pytest.raises(wd.ConfigError, match="anchor_dtype='bfloat16' of group 0 holds no complex weights"):
        wd.AdamW([parameter(1.0, dtype=torch.complex64)], toward="init", anchor_dtype="bfloat16")
    with pytest.raises(wd.ConfigError, match="toward of group 0 'init' has no meaning with style 'hyperball'"):
        wd.AdamW([nn.Parameter(torch.ones(2, 2))], style="hyperball", toward="init")
