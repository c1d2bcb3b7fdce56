"""``toward`` and hyperball from the configuration on: rules, rows, groups, resume in a Trainer, unfreezing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.small_run import CrashAfter, CrashError, Net, fit
from torch import nn

import lightning_wd as wd
from lightning_wd.mask import Rule
from lightning_wd.optimizers import kernel_step


def net() -> Any:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)})


def groups(built: Any) -> dict[str, tuple[Any, ...]]:
    keys = ("style", "toward", "weight_decay")
    return {g["name"]: (*(g[key] for key in keys), g["param_names"]) for g in built.param_groups}


def test_a_config_a_rule_and_what_is_excluded() -> None:
    mask = {"rules": [{"name": "head.*", "toward": "zero", "wd_mult": 0.5, "ndim": 2}]}
    config = {"weight_decay": 0.1, "decay": {"toward": "init"}, "mask": mask, "anchor_dtype": "bfloat16"}
    built = wd.configure_optimizers(net(), config)["optimizer"]
    rest = ["body.bias", "norm.weight", "norm.bias", "head.bias"]
    assert groups(built) == {
        "decay": ("decoupled", "init", 0.1, ["body.weight"]),
        "no_decay": ("decoupled", "zero", 0.0, rest),
        "decay_x0.5_toward_zero": ("decoupled", "zero", 0.05, ["head.weight"]),
    }
    rows = {row.name: (row.toward, row.reason) for row in built.decay_plan}
    assert rows["body.weight"] == ("init", "weight")
    assert rows["head.weight"][1].endswith("toward zero by rule name 'head.*', ndim 2")
    assert built.param_groups[0]["anchor_dtype"] == "bfloat16"
    assert "decoupled, toward init" in [str(cell) for cell in built.decay_plan.table().columns[5].cells]


def test_what_a_checkpoint_lacks_decays_to_zero_and_its_row_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "body.ckpt")
    torch.save({"state_dict": {"model.body.weight": torch.ones(4, 3)}}, path)
    module = net()
    built = wd.configure_optimizers(module, {"name": "sgdw", "lr": 0.1, "weight_decay": 1.0, "decay": {"toward": path}})
    optimizer = built["optimizer"]
    assert [(name, group[1]) for name, group in groups(optimizer).items()] == [
        ("decay", path),
        ("no_decay", "zero"),
        ("decay_toward_zero", "zero"),
    ]
    assert optimizer.decay_plan["head.weight"].reason == f"weight; not in {path}, so towards zero"
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(module["body"].weight.detach(), before["body.weight"] * 0.9 + 0.1)
    torch.testing.assert_close(module["head"].weight.detach(), before["head.weight"] * 0.9)
    torch.save({"other": torch.ones(1)}, path)
    with pytest.raises(wd.ConfigError, match=r"no parameter has its name in optimizer\.decay\.toward=") as error:
        wd.configure_optimizers(net(), {"decay": {"toward": path}})
    assert "found: other\n  valid: body.weight, head.weight" in str(error.value)
    with pytest.raises(wd.ConfigError, match="no parameter has its name in a mask rule's toward="):
        wd.configure_optimizers(net(), {"mask": {"rules": [{"name": "head.weight", "toward": path}]}})


def test_a_frozen_body_and_a_new_head(tmp_path: Path) -> None:
    """A checkpoint that lacks the head fits where the body, which it has, is unfrozen later."""
    path, body = str(tmp_path / "body.ckpt"), ["backbone.0.weight", "backbone.4.weight"]
    torch.save({"backbone.0.weight": torch.ones(8, 6), "backbone.4.weight": torch.ones(8, 8)}, path)
    config = {"name": "adamw", "weight_decay": 5.0, "decay": {"toward": path}}
    finetuning = wd.MaskedFinetuning(["backbone.*"], {1: ["backbone.*"]})
    built = groups(fit(Net(config), tmp_path, finetuning, max_epochs=2).optimizers[0])
    assert built["decay_toward_zero"] == ("decoupled", "zero", 5.0, ["head.weight"])
    assert built["decay_epoch_1"] == ("decoupled", path, 5.0, body)
    module = Net(config)
    module.backbone.requires_grad_(False)
    with pytest.raises(wd.ConfigError, match="no parameter has its name") as error:  # nothing unfreezes it
        wd.configure_optimizers(module, config)
    assert "valid: head.weight\n" in str(error.value)


def test_a_checkpoint_that_lacks_most_weights_warns(tmp_path: Path) -> None:
    path = str(tmp_path / "renamed.ckpt")
    torch.save({"bodies.weight": torch.ones(4, 3), "head.weight": torch.ones(2, 4)}, path)
    config: dict[str, Any] = {"weight_decay": 0.1, "decay": {"toward": path}}
    with pytest.warns(UserWarning, match="lacks most of the weights: what it lacks decays towards zero") as said:
        wd.configure_optimizers(net(), config)
    assert "found: 12 of 20 are not in it: body.weight\n  nearest: 'bodies.weight'\n" in str(said[0].message)
    meant = {**config, "mask": {"rules": [{"name": "body.weight", "toward": "zero"}]}}
    wd.configure_optimizers(net(), meant)  # a warning would be an error here


def test_a_plan_of_hyperballs() -> None:
    """What would not decay, or is no matrix, is of style none; the groups keep their names."""
    mask = {"base": "all"}
    built = wd.configure_optimizers(net(), {"decay": {"style": "hyperball"}, "mask": mask})["optimizer"]
    vectors = ["body.bias", "norm.weight", "norm.bias", "head.bias"]
    assert groups(built) == {
        "decay": ("hyperball", "zero", 0.0, ["body.weight", "head.weight"]),
        "no_decay": ("none", "zero", 0.0, vectors),
    }
    assert built.decay_plan["body.bias"].reason == "mask all; hyperball keeps norms from two dimensions on"
    zero = net()
    nn.init.zeros_(zero["head"].weight)
    with pytest.raises(
        wd.ConfigError, match=r"keeps the norm of parameter 'head\.weight' of group 'decay', which is 0"
    ):
        wd.configure_optimizers(zero, {"decay": {"style": "hyperball"}})
    spared = {"rules": [{"name": "head.weight", "wd_mult": 0}]}
    wd.configure_optimizers(zero, {"decay": {"style": "hyperball"}, "mask": spared})
    for key, value in (("wd_mult", 0.5), ("weight_decay", 0.5), ("toward", "init")):
        rules = {"rules": [{"name": "head.weight", key: value}]}
        with pytest.raises(wd.MaskError, match=rf"{key}={value} of head\.weight has no meaning with style 'hyperball'"):
            wd.configure_optimizers(net(), {"decay": {"style": "hyperball"}, "mask": rules})


def test_a_toward_of_what_does_not_decay_is_refused() -> None:
    for decay, rule in (({}, {"name": "*.bias"}), ({"style": "none"}, {"name": "head.weight"})):
        with pytest.raises(wd.MaskError, match=r"the toward 'init' of mask rule .* has no effect") as error:
            wd.configure_optimizers(net(), {"decay": decay, "mask": {"rules": [{**rule, "toward": "init"}]}})
        assert str(error.value).endswith("remove its toward")


@pytest.mark.parametrize(
    ("decay", "more", "words"),
    [
        ({"toward": "int"}, {}, "optimizer.decay.toward 'int' is neither zero, init nor a file"),
        ({"style": "hyperball", "toward": "init"}, {}, "optimizer.decay.toward 'init' has no meaning with style 'hyp"),
        (
            {"style": "hyperball", "cautious": True},
            {},
            "optimizer.decay.cautious has no meaning with style 'hyperball'",
        ),
        (
            {"style": "hyperball"},
            {"weight_decay": 0.1},
            "style 'hyperball' has no amount: it keeps each tensor's norm, whatever optimizer.weight_decay is.\n"
            "  found: optimizer.weight_decay=0.1\n  fix: write optimizer.weight_decay=0, or a decay style",
        ),
        (
            {"style": "hyperball", "normalized": 0.1},
            {},
            "  fix: write optimizer.decay.normalized=null, or a decay style",
        ),
        ({"toward": "init"}, {"anchor_dtype": "int8"}, "optimizer.anchor_dtype 'int8' is unknown"),
        (
            {},
            {"anchor_dtype": "bfloat16"},
            "optimizer.anchor_dtype=bfloat16 has no effect: what decays towards zero has no anchor.\n"
            "  fix: write optimizer.decay.toward=init or the path of a checkpoint, or leave out anchor_dtype",
        ),
    ],
)
def test_bad_settings_are_refused_as_typed(decay: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError) as error:
        wd.OptimizerConfig(decay=decay, **more)
    assert words in str(error.value)


def test_a_bad_rule() -> None:
    with pytest.raises(wd.MaskError, match=r"rule\.toward 'nowhere' is neither zero, init nor a file"):
        Rule(name="*", toward="nowhere")


RUNS: dict[str, dict[str, Any]] = {
    "toward": {"name": "adamw", "weight_decay": 5.0, "decay": {"toward": "init", "cautious": True}},
    "toward-l2": {"name": "sgd_l2", "weight_decay": 0.5, "decay": {"style": "l2", "toward": "init"}},
    "hyperball": {"name": "adamw", "decay": {"style": "hyperball"}},
    "hyperball-sgd": {"name": "sgdw", "decay": {"style": "hyperball"}},
    "hyperball-muon": {"name": "muon", "decay": {"style": "hyperball"}},
}


def test_the_dtype_of_the_anchors_of_rules() -> None:
    """The config's is that of the rules that name a point; a rule that names none cannot have one."""
    rule = {"name": "body.*", "toward": "init"}
    built = wd.configure_optimizers(net(), {"anchor_dtype": "bfloat16", "mask": {"rules": [rule]}})["optimizer"]
    assert {g["toward"]: g["anchor_dtype"] for g in built.param_groups} == {"init": "bfloat16", "zero": "bfloat16"}
    own = {"rules": [{**rule, "anchor_dtype": "bfloat16"}]}
    for name in ("adamw", "nadamw"):
        built = wd.configure_optimizers(net(), {"name": name, "mask": own})["optimizer"]
        assert {g["anchor_dtype"] for g in built.param_groups if g["toward"] == "init"} == {"bfloat16"}
    words = r"anchor_dtype=bfloat16 of mask rule 1 \(name 'head.\*'\) has no effect: .*\n  fix: write toward: init or"
    with pytest.raises(wd.MaskError, match=words):
        wd.configure_optimizers(net(), {"mask": {"rules": [{"name": "head.*", "anchor_dtype": "bfloat16"}]}})


@pytest.mark.parametrize("run", RUNS)
def test_a_killed_run_resumes_to_the_same_bits(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the monitor goes on: the distance to the anchor, the angle beside the predicted one."""
    config = {**RUNS[run], "lr": 0.02}
    monkeypatch.setattr(kernel_step, "MIN_NATIVE", 0)  # by the compiled pass, as large models are
    crash = CrashAfter(7, tmp_path / "last.ckpt")
    whole = fit(Net(config), tmp_path, wd.DecayMonitor(1))
    with pytest.raises(CrashError):
        fit(Net(config), tmp_path, crash)
    again = fit(Net(config), tmp_path, ckpt_path=crash.path)
    for name, p in whole.lightning_module.named_parameters():
        assert torch.equal(p, dict(again.lightning_module.named_parameters())[name]), name
    metrics = whole.callback_metrics
    if run.startswith("toward"):
        optimizer = whole.optimizers[0]
        squares = [(p - optimizer.state[p]["anchor"]).square().sum() for p in optimizer.param_groups[0]["params"]]
        torch.testing.assert_close(metrics["wd/decay/anchor_distance"], sum(squares).sqrt().detach())
    else:
        name = "wd/decay_muon" if run == "hyperball-muon" else "wd/decay"
        assert metrics[f"{name}/angular_update_predicted"].item() == pytest.approx(0.02, rel=1e-3)
        assert 0.01 < metrics[f"{name}/angular_update"].item() < 0.03


@pytest.mark.parametrize("name", ["adamw", "adam_l2"])
def test_what_is_unfrozen_decays_towards_what_it_was(name: str, tmp_path: Path) -> None:
    config = {"name": name, "lr": 0.02, "weight_decay": 1.0, "decay": {"toward": "init"}}

    class Anchors(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 0:  # someone else moves the frozen weights before they are unfrozen
                with torch.no_grad():
                    pl_module.backbone[0].weight.add_(1.0)  # type: ignore[union-attr,index,operator]
                self.unfrozen = pl_module.backbone[0].weight.detach().clone()  # type: ignore[union-attr,index]

    anchors = Anchors()
    finetuning = wd.MaskedFinetuning(freeze=["backbone.*"], unfreeze={1: ["backbone.*"]})
    module = Net(config)
    trainer = fit(module, tmp_path, finetuning, anchors, max_epochs=2)
    (optimizer,) = trainer.optimizers
    late = {g["name"]: g["toward"] for g in optimizer.param_groups}
    assert late == {"decay": "init", "no_decay": "zero", "decay_epoch_1": "init", "no_decay_epoch_1": "zero"}
    weight: Any = module.backbone[0].weight
    assert torch.equal(optimizer.state[weight]["anchor"], anchors.unfrozen)
    assert not torch.equal(weight, anchors.unfrozen)
