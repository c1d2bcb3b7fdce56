"""DecaySchedule: every value it writes, its clock, and what it refuses."""

from __future__ import annotations

import csv
import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.recipe import ROOT, run_folder, train_here
from helpers.small_run import CrashAfter, CrashError, DecaysUsed, Net, TwoOptimizers, fit, make_trainer
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.demos.boring_classes import BoringModel

import lightning_wd as wd
from lightning_wd.callbacks import RestartSnapshot
from lightning_wd.runs.folder import RunCSVLogger

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.04}


def used(tmp_path: Path, schedule: wd.DecaySchedule, optimizer: Any = None, lr: Any = None, **kw: Any) -> list[Any]:
    record = DecaysUsed()
    fit(Net(ADAMW if optimizer is None else optimizer, lr), tmp_path, schedule, record, **kw)
    return record.seen


def cosine(start: float, end: float, steps: int) -> list[float]:
    """DINO's own schedule, as its code computes it."""
    return [end + 0.5 * (start - end) * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]


def test_dinos_schedule_step_by_step_and_zero_stays_zero(tmp_path: Path) -> None:
    seen = used(tmp_path, wd.DecaySchedule("cosine", start=1.0, end=10.0))
    assert [decay for decay, _ in seen] == pytest.approx(cosine(0.04, 0.4, 15), rel=1e-12)
    assert {no_decay for _, no_decay in seen} == {0.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"shape": "constant", "start": 0.5}, [0.5] * 15),
        ({"shape": "linear", "start": 2.0, "end": 0.5}, [2.0 - 1.5 * t / 15 for t in range(15)]),
        ({"shape": "step", "end": 0.01}, [1.0] * 8 + [0.1] * 4 + [0.01] * 3),
        ({"shape": "wsd", "end": 0.0, "decay": 0.2}, [1.0] * 13 + [2 / 3, 1 / 3]),
        ({"shape": "one_minus_sqrt", "end": 0.0}, [1 - math.sqrt(t / 15) for t in range(15)]),
        ({"shape": lambda p: p * p}, [(t / 15) ** 2 for t in range(15)]),
    ],
    ids=["constant", "linear", "step", "wsd", "one_minus_sqrt", "function"],
)
def test_each_shape(settings: dict[str, Any], expected: list[float], tmp_path: Path) -> None:
    decays = [decay for decay, _ in used(tmp_path, wd.DecaySchedule(**settings))]
    assert decays == pytest.approx([0.04 * m for m in expected], rel=1e-12, abs=1e-15)


TENTH = {**ADAMW, "mask": {"rules": [{"name": "head.weight", "wd_mult": 0.1}]}}  # decay, no_decay, decay_x0.1


def test_an_absolute_end_is_one_for_all_groups_but_those_at_zero(tmp_path: Path) -> None:
    """With weight_decay 0.04 it is DINO's schedule."""
    seen = used(tmp_path, wd.DecaySchedule("cosine", end_weight_decay=0.4), TENTH)
    assert [decay for decay, _, _ in seen] == pytest.approx(cosine(0.04, 0.4, 15), rel=1e-12)
    assert [tenth for _, _, tenth in seen] == pytest.approx(cosine(0.004, 0.4, 15), rel=1e-12)
    assert {no_decay for _, no_decay, _ in seen} == {0.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"shape": "linear", "start": 0.0}, [0.0, 0.1, 0.2, 0.3, 0.4]),
        ({"shape": "one_minus_sqrt"}, [0.04, 0.22, 0.04 + 0.36 * math.sqrt(0.5), 0.04 + 0.36 * math.sqrt(0.75), 0.4]),
        ({"shape": "step", "milestones": [0.4, 0.6]}, [0.04, 0.04, 0.04 * math.sqrt(10), 0.4, 0.4]),
        ({"shape": "wsd", "decay": 0.5}, [0.04, 0.04, 0.04, 0.22, 0.4]),
    ],
)
def test_each_shape_reaches_an_absolute_end(settings: dict[str, Any], expected: list[float]) -> None:
    schedule = wd.DecaySchedule(**settings, end_weight_decay=0.4)
    assert [schedule.amount(0.04, p / 4) for p in range(5)] == pytest.approx(expected, rel=1e-12)
    assert schedule.amount(0.0, 0.5) == 0.0


def test_only_the_chosen_groups_are_scheduled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = DecaysUsed()
    schedule = wd.DecaySchedule("linear", end=0.0, groups=["*_x0.1"])
    fit(Net(TENTH), tmp_path, schedule, record, wd.DecayPlanSummary())
    assert [seen[:2] for seen in record.seen] == [[0.04, 0.0]] * 15
    assert [tenth for _, _, tenth in record.seen] == pytest.approx([0.004 * (1 - t / 15) for t in range(15)])
    assert "'linear': weight_decay is at most 0.04 in decay, 0.004 in decay_x0.1\n" in capsys.readouterr().out


def test_a_glob_takes_groups_that_join_later(tmp_path: Path) -> None:
    record = DecaysUsed()
    finetuning = wd.MaskedFinetuning(["backbone.0.*"], {1: ["*"]})
    fit(Net(ADAMW), tmp_path, finetuning, wd.DecaySchedule("linear", end=0.0, groups=["decay*"]), record)
    assert [len(seen) for seen in record.seen] == [2] * 5 + [4] * 10
    joined = [(seen[0], seen[2]) for seen in record.seen[5:]]
    assert joined == [pytest.approx((0.04 * (1 - t / 15),) * 2) for t in range(5, 15)]


def test_each_of_several_optimizers_is_chosen_by_its_number(tmp_path: Path) -> None:
    record = DecaysUsed()
    schedule = wd.DecaySchedule("linear", end=0.0, total_steps=5, groups=["optimizer_1_decay"])
    fit(TwoOptimizers(), tmp_path, schedule, record, max_epochs=1)
    assert [decay for decay, _ in record.seen[::2]] == [0.01] * 5
    assert [decay for decay, _ in record.seen[1::2]] == pytest.approx([0.01 * (1 - t / 5) for t in range(5)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"groups": ["decay", "decay_x01"]},
            r"groups 'decay_x01' matches no parameter group\.\n  found: decay, no_decay, decay_x0\.1\n"
            r"  nearest: 'decay_x0\.1'\n  fix: write groups=\['decay_x0\.1'\]",
        ),
        (
            {"groups": ["no_*"], "end_weight_decay": 0.4},
            r"groups 'no_\*' matches only groups without decay, which stay at zero\.\n  found: no_decay\n"
            r"  valid: decay, decay_x0\.1\n  fix: remove 'no_\*', or let a rule of the mask give them a weight decay",
        ),
    ],
)
def test_a_glob_that_schedules_nothing_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(wd.ConfigError, match=words):
        fit(Net(TENTH), tmp_path, wd.DecaySchedule(**settings))


def test_an_absolute_end_that_no_group_reaches_is_refused(tmp_path: Path) -> None:
    words = (
        r"(?s)no group reaches end_weight_decay=0\.4: all are at zero.*write optimizer\.weight_decay=0\.4, start=0 and"
    )
    with pytest.raises(wd.ConfigError, match=words):
        fit(Net({**ADAMW, "weight_decay": 0.0}), tmp_path, wd.DecaySchedule("linear", end_weight_decay=0.4))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"decay": {"style": "hyperball"}},
            r" of style hyperball, none\n.*; what a hyperball has instead is its learning rate",
        ),
        ({"weight_decay": 0.1, "mask": "none"}, r" of style decoupled\n.*or write optimizer.weight_decay$"),
    ],
)
def test_a_schedule_of_no_decay_is_said(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    words = r"DecaySchedule has no effect: the weight decay of every group is 0, and stays there.*found: .*" + said
    with pytest.warns(UserWarning, match=f"(?s){words}"):
        fit(Net({"name": "adamw", **config}), tmp_path, wd.DecaySchedule(), max_epochs=1)


def test_a_group_that_decays_may_join_later(tmp_path: Path) -> None:
    record, finetuning = DecaysUsed(), wd.MaskedFinetuning(["*.weight"], {1: ["*"]})
    fit(Net(ADAMW), tmp_path, finetuning, wd.DecaySchedule("linear", end=0.0), record, max_epochs=2)
    assert [max(seen) for seen in record.seen[:5]] == [0.0] * 5
    assert max(record.seen[5]) == pytest.approx(0.04 * 0.5)


def test_a_resumed_run_keeps_its_end_and_its_groups(tmp_path: Path) -> None:
    def schedule(**other: Any) -> wd.DecaySchedule:
        return wd.DecaySchedule("cosine", **{"end_weight_decay": 0.4, "groups": ["decay"], **other})

    whole = used(tmp_path, schedule(), TENTH)
    before = DecaysUsed()
    with pytest.raises(CrashError):
        fit(Net(TENTH), tmp_path, schedule(), before, CrashAfter(7, tmp_path / "crash.ckpt"))
    after = used(tmp_path, schedule(), TENTH, ckpt_path=tmp_path / "crash.ckpt")
    assert before.seen + after == whole
    with pytest.warns(
        UserWarning, match=r"(?s)end_weight_decay is 0\.4 in .*groups is \['decay'\] in the checkpoint, None"
    ):
        other = used(tmp_path, schedule(end_weight_decay=0.1, groups=None), TENTH, ckpt_path=tmp_path / "crash.ckpt")
    assert other == after


def test_follow_lr(tmp_path: Path) -> None:
    decays = [decay for decay, _ in used(tmp_path, wd.DecaySchedule("follow_lr"), lr="warmup_cosine")]
    etas = [0.5] + [0.5 * (1 + math.cos(math.pi * (t - 1) / 14)) for t in range(1, 15)]
    assert decays == pytest.approx([0.04 * eta for eta in etas], rel=1e-12)


def test_each_group_keeps_its_own_base(tmp_path: Path) -> None:
    config = {**ADAMW, "mask": {"rules": [{"name": "head.weight", "wd_mult": 0.1}]}}
    seen = used(tmp_path, wd.DecaySchedule("linear", end=0.0), config)
    assert seen[0] == pytest.approx([0.04, 0.0, 0.004])
    assert seen[12] == pytest.approx([0.04 * 0.2, 0.0, 0.004 * 0.2])


def test_restarts_recompute_the_normalized_amount_in_each_cycle(tmp_path: Path) -> None:
    """App. B.1 with B.2: lam = lam_norm * sqrt(b / (B * T_i)), with b/B = 1 / 5 an epoch and T_i = 1, 2 epochs."""
    optimizer = {"name": "adamw", "decay": {"style": "independent", "normalized": 0.05}}
    restarts = {"name": "cosine_restarts", "first_cycle_epochs": 1, "cycle_mult": 2}
    decays = [decay for decay, _ in used(tmp_path, wd.DecaySchedule("restarts"), optimizer, restarts)]
    first, second = 0.05 * math.sqrt(8 / (40 * 1)), 0.05 * math.sqrt(8 / (40 * 2))
    assert decays == pytest.approx([first] * 5 + [second] * 10, rel=1e-12)


def test_restarts_do_not_depend_on_the_total_steps_of_the_module(tmp_path: Path) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            return wd.configure_optimizers(self, *self.wanted, total_steps=60)

    record = DecaysUsed()
    optimizer = {"name": "adamw", "decay": {"style": "decoupled", "normalized": 0.05}}
    schedule = {"name": "cosine_restarts", "first_cycle_epochs": 1}
    fit(Own(optimizer, schedule), tmp_path, wd.DecaySchedule("restarts"), record)
    cycles = [5] * 5 + [10] * 10
    assert [decay for decay, _ in record.seen] == pytest.approx([0.05 / math.sqrt(n) / 1e-3 for n in cycles], rel=1e-12)


def test_accumulation_counts_optimizer_steps_not_batches(tmp_path: Path) -> None:
    decays = [decay for decay, _ in used(tmp_path, wd.DecaySchedule("linear", end=0.0), accumulate_grad_batches=2)]
    assert decays == pytest.approx([0.04 * (1 - t / 9) for t in range(9)])  # 3 epochs of ceil(5 / 2) steps


def test_manual_optimization_counts_each_optimizers_own_steps(tmp_path: Path) -> None:
    class Two(TwoOptimizers):
        repeats = (2, 1)

        def configure_optimizers(self) -> Any:
            return [torch.optim.AdamW(net.parameters(), weight_decay=0.1 * (i + 1)) for i, net in enumerate(self.nets)]

    record = DecaysUsed()
    fit(Two(), tmp_path, wd.DecaySchedule("linear", end=0.0, total_steps=10), record, max_epochs=1)
    first = [lam for i, (lam,) in enumerate(record.seen) if i % 3 < 2]
    second = [lam for i, (lam,) in enumerate(record.seen) if i % 3 == 2]
    assert first == pytest.approx([0.1 * (1 - t / 10) for t in range(10)])
    assert second == pytest.approx([0.2 * (1 - t / 10) for t in range(5)])
    with pytest.raises(
        wd.ConfigError, match=r"\(manual optimization\)\n  fix: pass them: DecaySchedule\(..., total_steps="
    ):
        fit(Two(), tmp_path, wd.DecaySchedule(), max_epochs=1)


def test_a_skipped_amp_step_counts_as_for_the_learning_rate(tmp_path: Path) -> None:
    """GradScaler skips the first step (inf); Lightning's clock, and with it every schedule, runs on."""

    class Overflow(Net):
        def on_after_backward(self) -> None:
            if self.trainer.global_step == 0:
                self.head.weight.grad = torch.full_like(self.head.weight, torch.inf)

    from lightning.pytorch.plugins import MixedPrecision

    record = DecaysUsed()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))
    module = Overflow({**ADAMW, "fused": False})
    fit(module, tmp_path, wd.DecaySchedule("linear", end=0.0), record, plugins=[plugin], max_epochs=1)
    assert [decay for decay, _ in record.seen] == pytest.approx([0.04 * (1 - t / 5) for t in (1, 2, 3, 4)])


def test_what_the_monitors_log_is_what_the_step_uses(tmp_path: Path) -> None:
    record, logger = DecaysUsed(), RunCSVLogger(tmp_path)
    monitors = (LearningRateMonitor("step", log_weight_decay=True), wd.DecaySchedule("cosine", end=10.0), record)
    fit(Net(ADAMW), tmp_path, *monitors, logger=logger, log_every_n_steps=1)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("lr-AdamW/decay-weight_decay")
    logged = [float(row[column]) for row in rows[1:] if row[column]]
    assert logged == pytest.approx([decay for decay, _ in record.seen], rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "step", "wsd", "follow_lr", "restarts"])
def test_each_config_of_the_pack(name: str, tmp_path: Path) -> None:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        cfg = compose("train", [f"callbacks=decay_{name}"])
    schedule = instantiate(cfg.callbacks.decay_schedule)
    assert (type(schedule), schedule.curve.shape) == (wd.DecaySchedule, name)
    more = {"restart_snapshot"} if name == "restarts" else set()
    assert set(cfg.callbacks) == {"plan_summary", "lr_monitor", "checkpoint", "decay_schedule"} | more


def test_dinos_schedule_from_the_command_line() -> None:
    overrides = ("callbacks=decay_cosine", "end=null", "end_weight_decay=0.4", "groups=[decay]")
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        cfg = compose("train", [overrides[0], *(f"callbacks.decay_schedule.{setting}" for setting in overrides[1:])])
    schedule = instantiate(cfg.callbacks.decay_schedule)
    assert (schedule.amount(0.04, 1.0), schedule.curve.groups) == (0.4, ["decay"])


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "optimizer"), [("adamwr", "AdamW"), ("sgdwr", "SGDW")])
def test_the_restart_experiments_set_lam_and_save_the_end_of_each_cycle(
    experiment: str, optimizer: str, tmp_path: Path
) -> None:
    """Cycles of 2 and 4 epochs of 19 steps: App. B.2's schedule with App. B.1's coefficient."""
    overrides = ("trainer.max_epochs=6", "trainer.log_every_n_steps=1")
    folder = run_folder(train_here(f"experiment={experiment}", *overrides, cwd=tmp_path))
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"lr-{optimizer}/decay")]
    lam = [float(row[f"lr-{optimizer}/decay-weight_decay"]) for row in rows]
    lr = [float(row[f"lr-{optimizer}/decay"]) for row in rows]
    lengths = [38] * 38 + [76] * 76
    assert lam == pytest.approx([0.05 / math.sqrt(length) for length in lengths], rel=1e-5)
    position = [t for length in (38, 76) for t in range(length)]
    etas = [0.5 * (1 + math.cos(math.pi * t / length)) for t, length in zip(position, lengths, strict=True)]
    assert lr == pytest.approx([lr[0] * eta for eta in etas], rel=1e-5)
    saved = [folder / f"checkpoints/cycle_{i}.ckpt" for i in range(2)]
    assert [torch.load(path, weights_only=True)["global_step"] for path in saved] == [38, 114]


def test_sgdwr_is_adamwr_with_another_optimizer() -> None:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        adamwr, sgdwr = (compose("train", [f"experiment={name}"]) for name in ("adamwr", "sgdwr"))
    assert (adamwr.optimizer.name, sgdwr.optimizer.name) == ("adamw", "sgdw")
    assert adamwr.optimizer.decay == sgdwr.optimizer.decay
    assert [adamwr[key] for key in ("lr_scheduler", "callbacks")] == [
        sgdwr[key] for key in ("lr_scheduler", "callbacks")
    ]


def test_a_snapshot_without_restarts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        wd.ConfigError, match=r"which is missing\.\n  found: no lr_scheduler\n  fix: write lr_scheduler=cosine"
    ):
        fit(Net(ADAMW), tmp_path, RestartSnapshot(), enable_checkpointing=True)


@pytest.mark.parametrize("optimizer", ["ours", "torch"])
@pytest.mark.parametrize("at", [3, 5, 7])
def test_a_resumed_schedule_continues_from_its_step(at: int, optimizer: str, tmp_path: Path) -> None:
    """Bases taken at the start would be scheduled values (.0167 for .0387), or the configured ones (.271)."""

    class Own(Net):
        def configure_optimizers(self) -> Any:
            if optimizer == "ours":
                return super().configure_optimizers()
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.04)

    whole = used_by(Own(ADAMW), tmp_path, wd.DecaySchedule("cosine", end=10.0))
    crash = CrashAfter(at, tmp_path / "crash.ckpt")
    before = DecaysUsed()
    with pytest.raises(CrashError):
        fit(Own(ADAMW), tmp_path, wd.DecaySchedule("cosine", end=10.0), before, crash)
    after = used_by(Own(ADAMW), tmp_path, wd.DecaySchedule("cosine", end=10.0), ckpt_path=tmp_path / "crash.ckpt")
    assert before.seen + after == whole
    assert len(whole) == 15


def used_by(module: L.LightningModule, tmp_path: Path, schedule: wd.DecaySchedule, **kw: Any) -> list[Any]:
    record = DecaysUsed()
    fit(module, tmp_path, schedule, record, **kw)
    return record.seen


@pytest.fixture
def at_seven(tmp_path: Path) -> Path:
    with pytest.raises(CrashError):
        fit(Net(ADAMW), tmp_path, wd.DecaySchedule("linear", end=0.0), CrashAfter(7, tmp_path / "crash.ckpt"))
    return tmp_path / "crash.ckpt"


def test_the_checkpoints_schedule_wins_with_a_warning(at_seven: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="end is 0.0 in the checkpoint, 0.5 configured"):
        seen = used_by(Net(ADAMW), tmp_path, wd.DecaySchedule("linear", end=0.5), ckpt_path=at_seven)
    assert [decay for decay, _ in seen] == pytest.approx([0.04 * (1 - t / 15) for t in range(7, 15)])


def test_an_optimizer_without_on_resume_is_not_told_to_set_it(tmp_path: Path) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.04)

    crash = tmp_path / "crash.ckpt"
    with pytest.raises(CrashError):
        fit(Own(), tmp_path, wd.DecaySchedule("linear", end=0.0), CrashAfter(7, crash))
    with pytest.warns(UserWarning, match="end is 0.0 in the checkpoint, 0.5 configured") as caught:
        fit(Own(), tmp_path, wd.DecaySchedule("linear", end=0.5), ckpt_path=crash)
    (message,) = [str(warning.message) for warning in caught if "DecaySchedule" in str(warning.message)]
    assert "on_resume" not in message
    assert "fix: configure what the run had; or start a new run from its weights, to use the configured" in message


@pytest.mark.filterwarnings("ignore:the settings of AdamW")
@pytest.mark.parametrize("end", [0.0, 0.5])
def test_the_checkpoints_base_wins_over_a_changed_decay(end: float, at_seven: Path, tmp_path: Path) -> None:
    """A base taken from the configuration would make the next value 5 times too large."""
    module = Net({**ADAMW, "weight_decay": 0.2})
    schedule = wd.DecaySchedule("linear", end=end)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DecaySchedule: the checkpoint and the configuration differ")
        seen = used_by(module, tmp_path, schedule, ckpt_path=at_seven)
    assert [decay for decay, _ in seen] == pytest.approx([0.04 * (1 - t / 15) for t in range(7, 15)])
    assert schedule.curve.end == end
    again = used_by(Net(ADAMW), tmp_path, schedule)  # as it is configured
    assert again[-1][0] == pytest.approx(0.04 * (1 - (1 - end) * 14 / 15))


def test_a_finished_run_fitted_again_keeps_the_state_of_its_schedule(tmp_path: Path) -> None:
    """Such a fit never starts training."""
    schedule = wd.DecaySchedule("linear", end=0.0, total_steps=30)
    paths = [tmp_path / f"{i}.ckpt" for i in range(2)]
    fit(Net(ADAMW), tmp_path, schedule).save_checkpoint(paths[0])
    fit(Net(ADAMW), tmp_path, schedule, ckpt_path=paths[0]).save_checkpoint(paths[1])
    states = [torch.load(path, weights_only=True)["callbacks"]["DecaySchedule"] for path in paths]
    assert states[0] == states[1]
    seen = used_by(Net(ADAMW), tmp_path, schedule, ckpt_path=paths[1], max_epochs=4)
    assert [decay for decay, _ in seen] == pytest.approx([0.04 * (1 - t / 30) for t in range(15, 20)])


def test_another_function_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        fit(Net(ADAMW), tmp_path, wd.DecaySchedule(lambda p: 1 - p), CrashAfter(7, tmp_path / "crash.ckpt"))
    whole = [0.04 * (1 - t / 15) for t in range(15)]
    same = used_by(Net(ADAMW), tmp_path, wd.DecaySchedule(lambda p: 1.0 - p), ckpt_path=tmp_path / "crash.ckpt")
    assert [decay for decay, _ in same] == pytest.approx(whole[7:])
    with pytest.raises(
        wd.CheckpointMismatchError, match=r"(?s)a checkpoint does not contain a function.*values is \[1\.0, 0\.88"
    ):
        fit(Net(ADAMW), tmp_path, wd.DecaySchedule(lambda p: 1 - p * p), ckpt_path=tmp_path / "crash.ckpt")
    old = torch.load(tmp_path / "crash.ckpt", weights_only=True)
    del old["callbacks"]["DecaySchedule"]["schedule"]["values"]
    torch.save(old, tmp_path / "old.ckpt")
    other = used_by(Net(ADAMW), tmp_path, wd.DecaySchedule(lambda p: 1 - p * p), ckpt_path=tmp_path / "old.ckpt")
    assert other[0][0] == pytest.approx(0.04 * (1 - (7 / 15) ** 2))


@pytest.mark.filterwarnings("ignore:the settings of AdamW")
def test_on_resume_config_takes_the_configured_schedule_and_base(at_seven: Path, tmp_path: Path) -> None:
    config = {**ADAMW, "weight_decay": 0.2, "on_resume": "config"}
    with pytest.warns(
        UserWarning, match=r"(?s)the configured values are used\..*end is 0.0 in the checkpoint, 0.5 configured"
    ):
        seen = used_by(Net(config), tmp_path, wd.DecaySchedule("linear", end=0.5), ckpt_path=at_seven)
    assert [decay for decay, _ in seen] == pytest.approx([0.2 * (1 - 0.5 * t / 15) for t in range(7, 15)])


def test_on_resume_error_refuses(at_seven: Path, tmp_path: Path) -> None:
    with pytest.raises(wd.CheckpointMismatchError, match="shape is 'linear' in the checkpoint, 'cosine' configured"):
        fit(Net({**ADAMW, "on_resume": "error"}), tmp_path, wd.DecaySchedule("cosine", end=0.0), ckpt_path=at_seven)


def test_a_schedule_that_joins_a_run_starts_at_its_step(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        fit(Net(ADAMW), tmp_path, CrashAfter(6, tmp_path / "crash.ckpt"))
    seen = used_by(Net(ADAMW), tmp_path, wd.DecaySchedule("linear", end=0.0), ckpt_path=tmp_path / "crash.ckpt")
    assert [decay for decay, _ in seen] == pytest.approx([0.04 * (1 - t / 15) for t in range(6, 15)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": "cosin"}, "shape 'cosin' is unknown.*nearest: 'cosine'\n  fix: write shape=cosine"),
        ({"start": -1.0}, "start must be a number >= 0 but got -1.0"),
        ({"shape": "step", "milestones": [0.7, 0.5]}, "milestones must be rising parts of the run but got"),
        ({"shape": "step", "end": 0.0}, "start and end must be > 0.\n  fix: write end=0.01"),
        ({"shape": "step", "milestones": [0.5, 1.0]}, r"milestones\[1\] must be a number > 0 and < 1 but got 1.0"),
        ({"shape": "wsd", "decay": 2}, "decay must be a number > 0 and <= 1 but got 2"),
        ({"shape": "follow_lr", "end": 3.0}, "end has no effect with shape 'follow_lr'"),
        ({"shape": "restarts", "start": 3.0}, "start has no effect with shape 'restarts'"),
        ({"shape": "restarts", "total_steps": 9}, "total_steps has no effect with shape 'restarts'"),
        ({"end": 0.1, "end_weight_decay": 0.2}, "has both end and end_weight_decay.*write end=null"),
        ({"shape": "follow_lr", "end_weight_decay": 0.2}, "end_weight_decay has no effect with shape 'follow_lr'"),
        ({"shape": "step", "end_weight_decay": 0.0}, "start and end must be > 0"),
        ({"end_weight_decay": -0.2}, "end_weight_decay must be a number >= 0 but got -0.2"),
        ({"groups": "decay"}, r"groups must be a list of globs on group names but got 'decay'.*groups=\['decay'\]"),
        ({"groups": []}, r"groups must be a list of globs on group names but got \[\]"),
        ({"total_steps": 0}, "total_steps must be a whole number >= 1 but got 0"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError, match=f"(?s){words}"):
        wd.DecaySchedule(**settings)


def test_refusals_when_training_starts(tmp_path: Path) -> None:
    with pytest.raises(wd.ConfigError, match="'restarts' needs a normalized amount, which it computes for each cycle"):
        fit(Net(), tmp_path, wd.DecaySchedule("restarts"))
    normalized = {"name": "adamw", "decay": {"style": "independent", "normalized": 0.05}}
    with pytest.raises(
        wd.ConfigError, match=r"which is missing\.\n  found: LRSchedule\n  fix: write lr_scheduler=cosine_re"
    ):
        fit(Net(normalized, "constant"), tmp_path, wd.DecaySchedule("restarts"))
    with pytest.raises(wd.ConfigError, match="found: gradient accumulation changes during the run"):
        fit(Net(), tmp_path, wd.DecaySchedule(), GradientAccumulationScheduler({1: 2}))
    with pytest.raises(
        wd.ConfigError, match=r"the value of DecaySchedule's function must be a number >= 0 but got -1\.0"
    ):
        fit(Net(), tmp_path, wd.DecaySchedule(lambda p: -1.0))


def test_an_optimizer_without_decay_has_nothing_to_schedule(tmp_path: Path) -> None:
    class Rprop(BoringModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.Rprop(self.parameters())

    with pytest.raises(wd.ConfigError, match=r"no parameter group has a weight_decay\.\n  found: Rprop"):
        make_trainer(tmp_path, wd.DecaySchedule(), max_steps=1, limit_val_batches=0).fit(Rprop())


@given(st.sampled_from(["linear", "one_minus_sqrt", "cosine", "wsd", "step"]), st.floats(0.01, 10), st.floats(0.01, 10))
def test_every_shape_is_monotonic_from_start_to_end(shape: str, start: float, end: float) -> None:
    schedule = wd.DecaySchedule(shape, start, end)
    values = [schedule.amount(1.0, p / 64) for p in range(65)]
    assert values[0] == pytest.approx(start)
    assert values[-1] == pytest.approx(end)
    rising = 1 if end >= start else -1
    assert all(rising * (b - a) >= -1e-12 * max(start, end) for a, b in itertools.pairwise(values))
