"""ScheduleFreeMode: which weights each stage and each checkpoint has, against a loop without a trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.small_run import CrashError, Net, fit
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import lightning_wd as wd
from lightning_wd.callbacks import ScheduleFreeMode


class ScheduleFreeSGD(Optimizer):
    """SGD on z, the gradient at y = 0.1 z + 0.9 x, x the mean of the z so far (2405.15682, Alg. 1)."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "train_mode": False, "k": 0})

    def _move(self, mode: bool, weight: float) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not mode:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = mode

    def train(self) -> None:
        self._move(True, 0.1)

    def eval(self) -> None:
        self._move(False, 1 - 1 / 0.9)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["train_mode"]
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = (p - 0.1 * z) / 0.9
                z.sub_(p.grad + group["weight_decay"] * p, alpha=group["lr"])
                x.lerp_(z, 1 / group["k"])
                p.copy_(0.1 * z + 0.9 * x)
        return loss


def real() -> Any:
    return pytest.importorskip("schedulefree", reason="schedulefree is not installed").AdamWScheduleFree


@pytest.fixture(params=["ours", "schedulefree"])
def schedule_free(request: pytest.FixtureRequest) -> Any:
    return ScheduleFreeSGD if request.param == "ours" else real()


class Lit(L.LightningModule):
    """A Linear on 4 fixed batches, which notes its mode and its weights in each step."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(3, 1)
        self.cls = cls
        self.seen: list[tuple[str, torch.Tensor]] = []
        self.batches = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.net(batch) - 1).square().mean()  # type: ignore[no-any-return]

    def note(self, stage: str) -> None:
        self.seen.append((stage, self.net.weight.detach().clone()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.note("train")
        return self.loss(batch)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.note("eval")
        return self.loss(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return self.cls(self.parameters(), lr=0.1, weight_decay=0.01)

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.batches[:1], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = predict_dataloader = val_dataloader


def trainer(folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return L.Trainer(callbacks=[*callbacks], default_root_dir=folder, **{"max_epochs": 2, **quiet, **settings})  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_each_stage_and_each_checkpoint_has_its_weights(schedule_free: Any, tmp_path: Path) -> None:
    """Validated at every second of 8 steps, saved at every third, within an epoch, by a loop without a trainer."""
    alone = Lit(schedule_free)
    optimizer = alone.configure_optimizers()
    alone.note("eval")  # the sanity check
    saved = []
    for step, batch in enumerate([*alone.batches] * 2, 1):
        optimizer.train()
        alone.note("train")
        optimizer.zero_grad()
        alone.loss(batch).backward()
        optimizer.step()
        y = alone.net.weight.detach().clone()
        if step % 3 == 0:
            optimizer.eval()
            saved.append(copy.deepcopy(alone.state_dict()))
        if step % 2 == 0:
            optimizer.eval()
            alone.note("eval")
            assert not torch.equal(alone.net.weight, y) or step == 1
    module = Lit(schedule_free)
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    made = trainer(tmp_path, checkpoint, ScheduleFreeMode(), val_check_interval=2, num_sanity_val_steps=1)
    made.fit(module)
    assert [stage for stage, _ in module.seen] == [stage for stage, _ in alone.seen]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(module.seen, alone.seen, strict=True))
    for step, state in zip((3, 6), saved, strict=True):
        file = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert all(torch.equal(file["state_dict"][name], value) for name, value in state.items())
        assert [group["train_mode"] for group in file["optimizer_states"][0]["param_groups"]] == [False]
    for stage in (made.validate, made.test, made.predict):
        stage(module)
        assert torch.equal(module.seen[-1][1], alone.net.weight)


class Own(Net):
    def __init__(self, cls: Any) -> None:
        super().__init__()
        self.cls = cls

    def configure_optimizers(self) -> Any:
        return self.cls(self.parameters(), lr=0.01, weight_decay=0.1)


def equal(a: L.LightningModule, b: L.LightningModule) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_accumulated_batches_and_an_interrupted_run(schedule_free: Any, tmp_path: Path) -> None:
    """After validation in mid-accumulation the next batch, which takes no step, is at y again; a crash leaves x."""
    modes: list[bool] = []

    class Crashes(Own):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            modes.append(self.trainer.optimizers[0].param_groups[0]["train_mode"])
            if self.trainer.global_step == 4:
                raise CrashError
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *args: Any) -> None:
            self.state_dict()  # as a checkpoint does

    module = Crashes(schedule_free)
    with pytest.raises(CrashError):
        fit(module, tmp_path, ScheduleFreeMode(), accumulate_grad_batches=2)
    assert modes == [True] * 8  # steps after batches 2, 4, 5 and 7
    assert module.trainer.optimizers[0].param_groups[0]["train_mode"] is False


@pytest.fixture
def by_name(schedule_free: Any) -> Any:
    path = f"{schedule_free.__module__}.{schedule_free.__name__}"
    return {"name": path, "lr": 0.01, "weight_decay": 0.1, "mask": "all"}


KEPT = "keeps its own decay in group 'decay'"


@pytest.mark.filterwarnings(f"ignore:.*{KEPT}")
@pytest.mark.parametrize("override", [True, False], ids=["override", "own module"])
def test_configure_optimizers_sees_to_it_itself(
    override: bool, by_name: Any, schedule_free: Any, tmp_path: Path
) -> None:
    expected = Own(schedule_free)
    fit(expected, tmp_path, ScheduleFreeMode())
    module, callbacks = (Net(), [wd.OptimizerOverride(by_name)]) if override else (Net(by_name), [])
    made = fit(module, tmp_path, *callbacks)
    assert sum(isinstance(callback, ScheduleFreeMode) for callback in made.callbacks) == 1  # type: ignore[attr-defined]
    assert equal(module, expected)
    with pytest.warns(UserWarning, match=r"(?s)takes the place of a schedule.*found: LRSchedule.*lr_scheduler=none"):
        fit(Net(by_name, "constant"), tmp_path)


class SaveAt(L.Callback):
    """Save a checkpoint when a number of optimizer steps is done."""

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings(f"ignore:.*{KEPT}")
@pytest.mark.parametrize("named", [False, True], ids=["own module", "by name"])
def test_a_run_resumed_within_an_epoch_equals_one_without_a_break(
    named: bool, by_name: Any, schedule_free: Any, tmp_path: Path
) -> None:
    """The averaging weights of the steps are state, which no setting of the configuration replaces."""
    whole, resumed = (Net(by_name) if named else Own(schedule_free) for _ in range(2))
    mode = [] if named else [ScheduleFreeMode()]
    fit(whole, tmp_path, *mode, SaveAt(7, tmp_path / "7.ckpt"))
    made = fit(resumed, tmp_path, *mode, ckpt_path=tmp_path / "7.ckpt")
    assert equal(whole, resumed)
    assert made.optimizers[0].param_groups[0]["k"] == 15
    if named:  # a changed setting is taken, the counters stay
        changed = Net({**by_name, "weight_decay": 0.2, "on_resume": "config"})
        with pytest.warns(UserWarning, match=r"(?s)configured values are used.*weight_decay is 0\.1 in[^;]*$"):
            made = fit(changed, tmp_path, ckpt_path=tmp_path / "7.ckpt")
        (group,) = made.optimizers[0].param_groups
        assert (group["k"], group["weight_decay"]) == (15, 0.2)


@pytest.mark.filterwarnings(f"ignore:.*{KEPT}")
def test_a_finder_searches_in_train_mode(by_name: Any, tmp_path: Path) -> None:
    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-3, max_lr=1e-2, update_attr=False)
    module = Net(by_name)
    module.lr = 0.01  # type: ignore[assignment]  # the finder wants it
    assert fit(module, tmp_path, finder, enable_checkpointing=True).global_step == 15


def test_it_is_refused_where_there_is_nothing_to_switch(tmp_path: Path) -> None:
    words = (
        r"no optimizer has the methods train\(\) and eval\(\)\.\n  found: AdamW\n  fix: use an optimizer such as sch"
    )
    with pytest.raises(wd.ConfigError, match=words):
        fit(Net("adamw"), tmp_path, ScheduleFreeMode())


@pytest.mark.filterwarnings(f"ignore:.*{KEPT}")
@pytest.mark.parametrize("averaging", [EMAWeightAveraging(), StochasticWeightAveraging(1e-3)])
def test_another_average_of_the_weights_is_refused(averaging: Any, by_name: Any, tmp_path: Path) -> None:
    """It would be that of y, and a resumed run another one."""
    name = type(averaging).__name__
    with pytest.raises(wd.ConfigError, match=rf"^{name} would average the weights(?s:.*)fix: remove {name}: x is the"):
        fit(Net(by_name), tmp_path, averaging)


@pytest.mark.filterwarnings(f"ignore:.*{KEPT}", "ignore:The '.*dataloader' does not have many workers")
def test_one_of_several_optimizers_is_switched(by_name: Any, schedule_free: Any, tmp_path: Path) -> None:
    """Against a loop in which each steps alone."""
    rule = {"name": "net.bias", "optimizer": "sgdw", "lr": 0.05, "momentum": 0.0}
    config = {**by_name, "mask": {"base": "all", "rules": [rule]}}

    class Several(Lit):
        def configure_optimizers(self) -> Any:
            return wd.configure_optimizers(self, config)

    alone, module = Lit(None), Several(None)
    free = schedule_free([alone.net.weight], lr=0.01, weight_decay=0.1)
    plain = wd.SGDW([alone.net.bias], lr=0.05, weight_decay=0.1)
    for batch in [*alone.batches] * 2:
        free.train()
        alone.note("train")
        alone.loss(batch).backward()
        for optimizer in (free, plain):
            optimizer.step()
            optimizer.zero_grad()
    free.eval()
    made = trainer(tmp_path)
    made.fit(module)
    trained = [weight for stage, weight in module.seen if stage == "train"]
    assert all(torch.equal(a, b) for a, (_, b) in zip(trained, alone.seen, strict=True))
    assert equal(module, alone)
    several: Any = made.optimizers[0]
    several.train()  # as under Fabric
    assert [group.get("train_mode") for group in several.param_groups] == [True, None]
    with pytest.warns(UserWarning, match=f"^{schedule_free.__name__}W takes the place of a schedule"):
        fit(Net({**config, "mask": {"base": "all", "rules": [{**rule, "name": "*.bias"}]}}, "constant"), tmp_path)


@pytest.mark.parametrize(("style", "plain_amount"), [("decoupled", 0.5), ("l2", 0.5), ("none", 0.0)])
def test_decoupled_leaves_the_decay_of_a_schedule_free_class_to_it(style: str, plain_amount: float) -> None:
    """Ours would decay y alone, without the z and the x that it is an average of."""

    def run(optimizer: Any, w: torch.Tensor) -> list[torch.Tensor]:
        seen = []
        for _ in range(3):
            optimizer.train()
            w.grad = w.detach().clone()
            optimizer.step()
            seen.append(w.detach().clone())
            optimizer.eval()
            seen.append(w.detach().clone())
        return seen

    mine, plain = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    made = wd.decoupled(ScheduleFreeSGD)
    if style == "decoupled":
        with pytest.warns(UserWarning, match="ScheduleFreeSGD keeps its own decay in group 0") as caught:
            ours = made([mine], weight_decay=0.5, style=style)
        assert "the model holds averages of the weights that it decays, so weight_decay=0.5" in str(caught[0].message)
    else:
        ours = made([mine], weight_decay=0.5, style=style)
    pairs = zip(run(ours, mine), run(ScheduleFreeSGD([plain], weight_decay=plain_amount), plain), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_the_decay_of_adamw_schedule_free_is() -> None:
    """docs/identify.md: of z it is decoupled, of the weights y no fixed multiple; c_t = 1 / t at a constant rate."""
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = real()([w], lr=0.1, betas=(0.9, 0.999), weight_decay=0.5)
    optimizer.train()
    w.grad = torch.zeros_like(w)
    optimizer.step()
    z = optimizer.state[w]["z"]
    for c in (1 / 2, 1 / 3):
        y, old_z = w.detach().clone(), z.clone()
        w.grad = torch.zeros_like(w)
        optimizer.step()
        torch.testing.assert_close(z, old_z - 0.05 * y)
        torch.testing.assert_close(w.detach(), y + c * (old_z - y) - 0.05 * (1 - 0.9 * (1 - c)) * y)
    found = wd.identify(real())
    assert (found.style, found.counters) == ("unknown", ("k", "lr_max", "scheduled_lr", "train_mode", "weight_sum"))


@pytest.mark.filterwarnings("ignore:.*keeps its own decay in group")
def test_among_several_optimizers_it_alone_is_switched(by_name: Any, schedule_free: Any, tmp_path: Path) -> None:
    """Each as if it were alone; a trainer switches it, and a resumed run equals one without a break."""
    torch.manual_seed(0)
    w, v, own_w, own_v = (torch.nn.Parameter(torch.ones(3)) for _ in range(4))
    groups = [{"params": [w], "optimizer": by_name["name"]}, {"params": [v], "optimizer": "sgdw"}]
    several = wd.MultiOptimizer(groups, lr=0.1, weight_decay=0.5)
    alone, other = schedule_free([own_w], lr=0.1, weight_decay=0.5), wd.SGDW([own_v], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        several.train()
        alone.train()
        for p in (w, v, own_w, own_v):
            p.grad = p.detach().clone()
        for each in (several, alone, other):
            each.step()
        assert torch.equal(w, own_w)
        several.eval()
        alone.eval()
        assert torch.equal(w, own_w)
        assert torch.equal(v, own_v)
    config = {**by_name, "mask": {"base": "all", "rules": [{"name": "head.*", "optimizer": "sgdw"}]}}
    whole, resumed = Net(config), Net(config)
    fit(whole, tmp_path, SaveAt(7, tmp_path / "7.ckpt"))
    made = fit(resumed, tmp_path, ckpt_path=tmp_path / "7.ckpt")
    assert equal(whole, resumed)
    assert [group.get("train_mode") for group in made.optimizers[0].param_groups] == [False, None]
