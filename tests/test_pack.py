"""The Hydra pack: every file says what it is, composes in any app, and builds what its name says."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ddp import SHARDS_ON_CPU
from helpers.hydra_app import write_app
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_wd as wd
from lightning_wd.configure.optimizer_config import TYPICAL
from lightning_wd.optimizers.by_name import OPTIMIZERS

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("**/*.yaml"))
DECAYS = sorted(path.stem for path in (CONF / "optimizer/decay").glob("*.yaml"))
PLUGINS = {"lr_wd_optuna": "hydra_optuna_sweeper", "slurm_ddp": "hydra_submitit_launcher"}  # extras of this package
MASKS = sorted(path.stem for path in (CONF / "optimizer/mask").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _app() -> Iterator[None]:
    """Somebody else's app, which asks for the pack."""
    with initialize_config_dir(str(ROOT / "tests/stranger/conf"), version_base="1.3"):
        yield


def optimizer_of(*overrides: str) -> Any:
    return compose("app", list(overrides)).optimizer


def built(*overrides: str) -> torch.optim.Optimizer:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    config = instantiate(optimizer_of(*overrides))
    return wd.configure_optimizers(net, config, total_steps=400, steps_per_epoch=10)["optimizer"]


def test_an_editable_install_serves_the_repository() -> None:
    """Through links, which a new group needs too; a ``conf/__init__.py`` would hide an app's own package ``conf``."""
    pack = resources.files("lightning_wd.conf")
    assert [path for path in FILES if not (Path(str(pack)) / path).samefile(CONF / path)] == []
    assert not list(CONF.glob("**/*.py"))


# --- asking for the pack ---

ASKS = """
defaults: [_self_, {optimizer: adamw}, {callbacks: default}, {hydra: default}]
hydra: {searchpath: [pkg://lightning_wd.conf]}
"""
JOB = """
import json
import os
from pathlib import Path
import hydra


@hydra.main(version_base="1.3", config_path=os.environ.get("CONFIG_PATH", "conf"), config_name="app")
def main(cfg):
    found = [cfg.optimizer.name, cfg.optimizer.lr, cfg.callbacks.checkpoint.dirpath]
    Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("program", "config_path", "launcher"),
    [
        ("mine/app.py", "conf", None),
        ("-m mine.app", "conf", None),
        ("-m mine.app", "pkg://mine.conf", "joblib"),
        ("mine/app.py", "conf", "submitit_local"),
    ],
)
def test_every_way_to_start_an_app(
    program: str, config_path: str, launcher: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups and the resolver of their YAML are there, in a launcher's workers too; the app imports neither."""
    if launcher is not None:
        plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
        pytest.importorskip(plugin, reason=f"hydra's {launcher} is not installed")
    files = {"mine/__init__.py": "", "mine/conf/__init__.py": "", "mine/app.py": JOB, "mine/conf/app.yaml": ASKS}
    write_app(tmp_path, {**files, "mine/conf/hydra/default.yaml": "run: {dir: one}\nsweep: {dir: many}\n"})
    monkeypatch.setenv("CONFIG_PATH", config_path)
    jobs = ["optimizer=sgdw", "optimizer.lr=0.25"]
    if launcher is not None:
        jobs = ["-m", *jobs, f"hydra/launcher={launcher}"]
    done = subprocess.run(
        [sys.executable, *program.split(), *jobs], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / ("one" if launcher is None else "many/0")
    assert json.loads((folder / "found.json").read_text()) == ["sgdw", 0.25, f"{folder}/checkpoints"]


def test_a_config_store_option_of_the_same_name_is_refused_by_hydra() -> None:
    """docs/hydra.md says so: the ConfigStore comes after ``hydra.searchpath``."""
    repository = ConfigStore.instance().repo
    before = copy.deepcopy(repository)
    ConfigStore.instance().store(group="optimizer", name="adamw", node=make_dataclass("Own", [("lr", float, 5.0)]))
    ConfigStore.instance().store(group="optimizer", name="own", node={"lr": 5.0})
    try:
        assert optimizer_of("optimizer=own") == {"lr": 5.0}
        with (
            pytest.raises(HydraException, match="Error merging 'optimizer/adamw' with schema"),
            pytest.warns(UserWarning, match="validated against ConfigStore schema"),
        ):
            optimizer_of()
    finally:
        ConfigStore.instance().repo = before


def test_a_saved_config_resolves_after_an_import_of_the_pack(tmp_path: Path) -> None:
    """As docs/hydra.md says of a saved ``.hydra/config.yaml``; without the import OmegaConf refuses it by name."""
    shutil.copy(CONF / "logger/tensorboard.yaml", tmp_path / "config.yaml")
    read = "from omegaconf import OmegaConf; print(OmegaConf.load('config.yaml').tensorboard.save_dir)"
    done = [
        subprocess.run([sys.executable, "-c", first + read], cwd=tmp_path, capture_output=True, text=True)
        for first in ("import lightning_wd.conf; ", "")
    ]
    assert (done[0].stdout, done[0].stderr) == (".\n", "")
    assert "Unsupported interpolation type lightning_wd.run_dir" in done[1].stderr


def test_the_docs_list_every_option() -> None:
    """docs/hydra.md: the table, and the two lines that ask for the pack."""
    page = (ROOT / "docs/hydra.md").read_text()
    rows = dict(re.findall(r"^\| `(\S+)` \| (.+) \|$", page, re.M))
    options: dict[str, list[str]] = {}
    for path in FILES:
        options.setdefault(str(path.parent), []).append(path.stem)
    assert {group: re.findall(r"`(\w+)`", row) for group, row in rows.items()} == options
    block, *_ = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert block in (ROOT / "tests/stranger/conf/app.yaml").read_text()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_file_opens_with_what_it_is_and_its_command(path: Path) -> None:
    first, second, *rest = (CONF / path).read_text().splitlines()
    option = f"{path.parent}={path.stem}"
    assert re.fullmatch(r"# \S.+", first)
    assert second.startswith("# python")
    assert option in second.split()
    assert not any("@package" in line for line in rest), "a package header makes a literal key in a nested group"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_file_composes(path: Path) -> None:
    group = str(path.parent)
    prefix = "" if group.startswith(("optimizer", "hydra")) else "+"
    if (plugin := PLUGINS.get(path.stem)) is not None:
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{path} composes on the plugin {plugin}: not installed")
    cfg = compose("app", [f"{prefix}{group}={path.stem}"], return_hydra_config=group.startswith("hydra"))
    assert OmegaConf.select(cfg, group.replace("/", ".")) is not None


@pytest.mark.parametrize("decay", DECAYS)
def test_default_amounts_are_those_of_the_code(decay: str) -> None:
    node = OmegaConf.load(CONF / f"optimizer/decay/{decay}.yaml")
    assert node.cautious is False
    if decay in ("normalized", "timescale"):
        assert node.typical == {"adam": None, "adagrad": None, "sgd": None, "muon": None}
    else:
        assert node.typical == TYPICAL[node.style]


def test_independent_and_decoupled_defaults_are_one_strength_in_two_units() -> None:
    for name in ("adamw", "adagradw", "adafactor", "sgdw", "muon"):
        lr, family = OPTIMIZERS[name].lr, OPTIMIZERS[name].typical
        assert lr is not None
        converted = wd.convert(TYPICAL["decoupled"][family], from_="decoupled", to="independent", lr=lr)
        assert TYPICAL["independent"][family] == pytest.approx(converted)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_plain_data(mask: str) -> None:
    assert OmegaConf.load(CONF / f"optimizer/mask/{mask}.yaml") == {"base": mask, "rules": []}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_name_alone_means_what_its_file_says(name: str) -> None:
    """`{"name": ...}` in Python and `optimizer=...` in Hydra mean the same."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    alone = wd.configure_optimizers(net, {"name": name})["optimizer"]
    filed = built(f"optimizer={name}")
    assert type(alone) is type(filed)
    assert [{**g, "params": 0} for g in alone.param_groups] == [{**g, "params": 0} for g in filed.param_groups]


def test_the_groups_and_their_options() -> None:
    """Every promised option is there, and no other."""
    options = {str(path.parent): {p.stem for p in FILES if p.parent == path.parent} for path in FILES}
    assert options["trainer"] == {"default", "cpu", "gpu", "ddp", "ddp_cpu", "fsdp2", "fsdp2_cpu"}
    assert options["optimizer/mask"] == {"standard", "no_embeddings", "matrices", "adapters", "all", "none"}
    assert options["lr_scheduler"] == {
        *("none", "constant", "warmup_cosine", "warmup_linear", "warmup_one_minus_sqrt", "cosine_restarts", "wsd")
    }
    assert options["logger"] == {"csv", "wandb", "wandb_offline", "tensorboard", "none"}
    assert options["optimizer/decay"] == {
        *("decoupled", "independent", "normalized", "timescale", "constant", "corrected", "hyperball", "l2"),
        "none",
    }


def test_every_optimizer_of_the_code_has_a_file() -> None:
    assert sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml")) == sorted([*OPTIMIZERS, "custom"])


def test_any_other_class_by_its_path() -> None:
    """With its own settings and the pack's amount in the unit of the style."""
    rmsprop = ["optimizer=custom", "optimizer.name=torch.optim.RMSprop", "+optimizer.alpha=0.9"]
    first = built(*rmsprop, "optimizer/decay=independent").param_groups[0]
    assert (first["lr"], first["alpha"], first["style"], first["weight_decay"]) == (1e-2, 0.9, "independent", 1e-5)
    assert type(built("optimizer=custom", "optimizer.name=torch.optim.Adam")) is type(built("optimizer=adamw"))
    with pytest.raises(InstantiationException) as caught:
        built("optimizer=custom")
    assert "optimizer.name is not given" in str(caught.value.__cause__)


def test_the_page_of_any_class() -> None:
    """docs/custom.md: its code runs, and its commands compose."""
    page = (ROOT / "docs/custom.md").read_text()
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    for command in commands.splitlines():
        overrides = shlex.split(command.removeprefix("python train.py"))
        assert f"optimizer.name={optimizer_of(*overrides).name}" in overrides
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, {})


@pytest.mark.parametrize(
    ("name", "cls", "lr", "group"),
    [
        ("nadamw", "NAdamW", 1e-3, {"betas": (0.9, 0.999), "momentum_decay": 0.004}),
        ("radamw", "RAdamW", 1e-3, {"betas": (0.9, 0.999)}),
        ("rmspropw", "RMSpropW", 1e-3, {"alpha": 0.99, "momentum": 0.0}),
        ("adagradw", "AdagradW", 1e-2, {"eps": 1e-10}),
        ("adamaxw", "AdamaxW", 2e-3, {"betas": (0.9, 0.999)}),
        ("adafactor", "AdafactorW", 1e-2, {"beta2_decay": -0.8, "d": 1.0}),
    ],
)
def test_optimizers_made_by_decoupled(name: str, cls: str, lr: float, group: dict[str, Any]) -> None:
    optimizer = built(f"optimizer={name}", "optimizer/decay=independent", "optimizer.weight_decay=0.25")
    first = optimizer.param_groups[0]
    assert (type(optimizer).__name__, first["lr"], first["style"], first["weight_decay"]) == (
        cls,
        lr,
        "independent",
        0.25,
    )
    assert {key: first[key] for key in group} == group
    weight = first["params"][0]
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * 0.75)


@pytest.mark.parametrize("name", ["adamw", "sgdw", "adam_l2", "sgd_l2"])
@pytest.mark.parametrize("decay", DECAYS)
def test_every_optimizer_with_every_decay(name: str, decay: str) -> None:
    """Each pair is built with the style it names, or the error names the decoupled twin."""
    style = OmegaConf.load(CONF / f"optimizer/decay/{decay}.yaml").style
    if name.endswith("_l2") and style not in ("l2", "none"):
        twin = {"adam_l2": "adamw", "sgd_l2": "sgdw"}[name]
        with pytest.raises(HydraException) as caught:
            built(f"optimizer={name}", f"optimizer/decay={decay}")
        assert isinstance(caught.value.__cause__, wd.ConfigError)
        assert f"optimizer={twin} optimizer/decay={style}" in str(caught.value.__cause__)
        return
    optimizer = built(f"optimizer={name}", f"optimizer/decay={decay}")
    adam = name.startswith("adam")
    # Since torch 2.7 its AdamW is an Adam itself; ours are one in every version where no decay is decoupled.
    family = (torch.optim.Adam if style == "l2" else torch.optim.AdamW) if adam else torch.optim.SGD
    assert isinstance(optimizer, family)
    assert isinstance(optimizer, (wd.AdamW, wd.SGDW)) is (style != "l2")
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {group["style"] for group in groups.values()} <= {style, "none" if style == "hyperball" else "decoupled"}
    assert groups["no_decay"]["weight_decay"] == 0.0
    lr = 1e-3 if adam else 5e-2
    expected = {
        "normalized": 0.05 / 20,
        "timescale": 1 / (lr * 20 * 10),
    }.get(decay, TYPICAL[style]["adam" if adam else "sgd"])
    assert groups["decay"]["weight_decay"] == pytest.approx(expected)


def test_adamw_with_l2_equals_adam_l2() -> None:
    ours, twin = built("optimizer=adamw", "optimizer/decay=l2"), built("optimizer=adam_l2")
    assert type(ours) is type(twin)
    assert [{**g, "params": None} for g in ours.param_groups] == [{**g, "params": None} for g in twin.param_groups]


def test_the_amount_is_where_every_user_types_it() -> None:
    optimizer = built("optimizer=sgdw", "optimizer.weight_decay=0.125", "optimizer.lr=0.5")
    group = optimizer.param_groups[0]
    assert (group["name"], group["weight_decay"], group["lr"], group["base_lr"]) == ("decay", 0.125, 0.5, 0.5)


def test_rules_from_the_command_line() -> None:
    optimizer = built("optimizer.mask.rules=[{name: '2.*', wd_mult: 0.1, lr_mult: 10}]")
    groups = {group["name"]: group for group in optimizer.param_groups}
    head = groups["decay_x0.1_lr_x10"]
    assert head["weight_decay"] == pytest.approx(1e-3)
    assert head["lr"] == pytest.approx(1e-2)
    assert head["param_names"] == ["2.weight", "2.bias"]


def test_nested_in_a_model() -> None:
    overrides = [
        "optimizer@model.optimizer=sgdw",
        "optimizer/decay@model.optimizer.decay=independent",
        "model.optimizer.lr=0.05",
    ]
    node = compose("nested", overrides).model.optimizer
    assert (node.name, node.decay.style, node.lr, node.weight_decay) == ("sgdw", "independent", 0.05, 2.5e-4)


def test_an_app_with_its_own_option_wins(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    asks = "hydra: {searchpath: [pkg://lightning_wd.conf]}\n"
    (tmp_path / "app.yaml").write_text(f"defaults: [{{optimizer: sgdw}}, _self_]\n{asks}")
    (tmp_path / "optimizer/sgdw.yaml").write_text("mine: true\n")
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/default.yaml").write_text("own: {is: here}\n")
    (tmp_path / "includes.yaml").write_text(f"defaults: [app, _self_]\n{asks}")
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            assert compose("app").optimizer == {"mine": True}
            assert compose("app", ["optimizer=adamw"]).optimizer.name == "adamw"
            monitored = compose("app", ["+callbacks=decay_monitor"]).callbacks  # the pack's, on the app's own default
            assert (set(monitored), monitored.own) == ({"own", "decay_monitor"}, {"is": "here"})
            with pytest.raises(HydraException, match=r"hydra\.searchpath is only supported from the primary config"):
                compose("includes")
    finally:
        GlobalHydra.instance().hydra = before


def test_hydra_refuses_unknown_options_and_keys() -> None:
    with pytest.raises(MissingConfigException, match=r"Could not find 'optimizer/sgdww'[\s\S]*sgdw"):
        optimizer_of("optimizer=sgdww")
    with pytest.raises(HydraException, match="weight_decy"):
        optimizer_of("optimizer.weight_decy=1")


@pytest.mark.parametrize("group", ["lr_scheduler", "logger", "callbacks", "trainer"])
def test_each_node_instantiates_on_its_own(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No interpolation points outside its node, so each node can be used alone."""
    monkeypatch.chdir(tmp_path)
    for path in sorted((CONF / group).glob("*.yaml")):
        if group == "logger" and path.stem == "wandb":
            continue  # online: it needs an account
        if group == "trainer" and path.stem in ("gpu", "ddp"):
            continue  # they need a GPU
        if group == "trainer" and path.stem.startswith("fsdp") and not SHARDS_ON_CPU:
            continue  # refused in words: tests/distributed/test_strategies.py
        node = compose("app", [f"+{group}={path.stem}"])[group]
        alone = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
        made = instantiate(alone)
        assert made is not None
