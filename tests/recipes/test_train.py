"""recipes/train.py as a user runs it: the default run, its folder, sweeps, and the answers to bad input."""

from __future__ import annotations

import csv
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.recipe import ROOT, TRAIN, job, run_folder, train, train_here, trained
from helpers.wandb_records import item, records
from hydra import compose, initialize_config_dir
from hydra.errors import CompactHydraException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import OmegaConf
from output_folder import OutputFolder

import lightning_wd as wd

one_worker = pytest.mark.xdist_group("default_run")  # it trains once, not once a worker


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    done = train(cwd=tmp_path_factory.mktemp("default"))
    return run_folder(done), done.stdout


@one_worker
def test_the_default_run_reaches_its_accuracy(default_run: tuple[Path, str]) -> None:
    folder, printed = default_run
    with (folder / "metrics.csv").open(newline="") as file:
        accuracy = [float(row["test/acc"]) for row in csv.DictReader(file) if row.get("test/acc")]
    assert len(accuracy) == 1
    assert accuracy[0] >= 0.9
    assert "test/acc" in printed
    assert "warning" not in printed
    effect, last = printed.rstrip().splitlines()[-2:]
    assert last == f"run folder: {folder}"
    found = re.fullmatch(r"decay: weight norm 13\.2 -> (\S+), timescale 400 steps, 0\.26 of the run", effect)
    assert found
    assert 3 < float(found[1]) < 6


@one_worker
def test_the_plan_is_printed_whole(default_run: tuple[Path, str]) -> None:
    """Names are never cut, though rich cuts at 80 columns when its output is piped."""
    _, printed = default_run
    assert "…" not in printed
    assert "global batch 16: 16 rows x 1 process(es) x 1 batch(es)" in printed.splitlines()
    for word in ("net.0.weight", "net.1.bias", "norm layer LayerNorm", "no_decay"):
        assert word in printed


@one_worker
def test_the_run_folder_holds_what_the_contract_says(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    assert {"config.yaml", "decay_plan.json", "metrics.csv", "curves.png", "checkpoints", ".hydra"} <= {
        path.name for path in folder.iterdir()
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["optimizer"]["name"], config["optimizer"]["weight_decay"]) == ("adamw", 2.5)
    plan = json.loads((folder / "decay_plan.json").read_text())
    groups = {row["name"]: row["group"] for row in plan["parameters"]}
    assert {name for name, group in groups.items() if group == "decay"} == {
        "net.0.weight",
        "net.4.weight",
        "net.8.weight",
    }
    assert set(groups.values()) == {"decay", "no_decay"}


def test_help_has_every_option_and_every_key(tmp_path: Path) -> None:
    text = train_here("--help", cwd=tmp_path).stdout
    assert max(map(len, text.splitlines())) <= 80
    groups, _, keys = text.partition("\nKeys, ")
    described = re.split(r"^  (\S+) {2,}", groups.partition("Groups, ")[2], flags=re.M)[1:]
    for group, words in zip(described[::2], described[1::2], strict=True):
        places = (ROOT / "conf" / group, ROOT / "recipes/conf" / group)
        options = {path.stem for place in places for path in place.glob("*.yaml")}
        assert options <= set(re.findall(r"\w+", words)), group
    known = [compose_keys(*chosen) for chosen in ([], ["optimizer=sgdw"], ["data=shakespeare", "model=gpt"])]
    said = {key for line in re.findall(r"^  (\S[\w., ]*?)  ", keys, re.M) for key in line.split(", ")}
    for key in said:
        assert any(OmegaConf.select(cfg, key, default="absent") != "absent" for cfg in known), key
    default = leaves(OmegaConf.to_container(known[0]))
    unsaid = {key for key in default if not re.match(r"(callbacks|logger|optimizer\.decay\.typical)\.|.*\._", key)}
    assert unsaid - said == set()


def leaves(node: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted keys of the values of a config."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def compose_keys(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        return compose("train", list(overrides))


@one_worker
def test_the_checkpoint_loads_without_pickle(default_run: tuple[Path, str]) -> None:
    folder, _ = default_run
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20 * 78
    assert checkpoint["hyper_parameters"]["optimizer"]["name"] == "adamw"
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert (group["name"], group["style"], group["base_lr"]) == ("decay", "decoupled", 1e-3)
    assert group["param_names"] == ["net.0.weight", "net.4.weight", "net.8.weight"]


def test_a_sweep_has_one_tree(tmp_path: Path) -> None:
    train_here("-m", "optimizer=adamw,sgdw,adam_l2", "trainer.max_epochs=1", "logger=wandb_offline", cwd=tmp_path)
    jobs = sorted(path.parent for path in tmp_path.glob("multirun/*/*/*/config.yaml"))
    names = [yaml.safe_load((job / "config.yaml").read_text())["optimizer"]["name"] for job in jobs]
    assert names == ["adamw", "sgdw", "adam_l2"]
    assert len({job.parent for job in jobs}) == 1
    runs = [len(list(job.glob("wandb/offline-run-*/*.wandb"))) for job in jobs]
    assert runs == [1, 1, 1]
    assert not (tmp_path / "outputs").exists()


def test_a_job_that_submitit_pickles_finds_the_recipe(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    train("-m", "hydra/launcher=submitit_local", "trainer.max_epochs=1", cwd=tmp_path)
    (job,) = tmp_path.glob("multirun/*/*/0")
    assert (job / "checkpoints/last.ckpt").is_file()


SECRET, NOTE = "canary-env-93f1c7", "plain-93f1c7"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes with W&B and the monitor, whose config holds a note and a secret of the environment."""
    cwd = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", SECRET)
        done = train(
            "trainer=ddp_cpu",
            "trainer.devices=2",
            "trainer.max_epochs=1",
            "logger=wandb_offline",
            "callbacks=decay_monitor",
            "callbacks.decay_monitor.every_n_steps=3",
            "+token=${oc.env:SOME_TOKEN}",
            f"+note={NOTE}",
            cwd=cwd,
        )
    return cwd, done.stdout


@pytest.mark.xdist_group("two_processes")
def test_two_processes_make_one_folder(two_processes: tuple[Path, str]) -> None:
    cwd, printed = two_processes
    (folder,) = cwd.glob("outputs/*/*")
    assert printed.count("global batch 32: 16 rows x 2 process(es) x 1 batch(es)") == 1
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert printed.count("run folder:") == printed.count(f"run folder: {folder}") == 1
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row.get("test/acc")) for row in rows) == 1
    assert [int(row["step"]) for row in rows if row["wd/decay/d_t"]] == list(range(0, 39, 3))
    histories = [dict(map(item, r.history.item)) for r in records(folder) if r.HasField("history")]
    assert [row["trainer/global_step"] for row in histories if "wd/decay/d_t" in row] == list(range(0, 39, 3))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 1257 // 32


@pytest.mark.xdist_group("two_processes")
def test_no_secret_of_the_environment_is_found_in_the_output(two_processes: tuple[Path, str]) -> None:
    cwd, _ = two_processes
    assert SECRET not in files_below(cwd)
    for folder in (run := next(cwd.glob("outputs/*/*")), run / ".hydra", run / "wandb"):
        assert NOTE in files_below(folder)  # the proof can fail: what is no secret is found


def files_below(folder: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def test_callbacks_that_need_a_logger_are_left_out_without_one(tmp_path: Path) -> None:
    run = trained("logger=none", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", folder=tmp_path)
    assert not any(isinstance(callback, LearningRateMonitor) for callback in run["callbacks"])
    assert (tmp_path / "checkpoints/last.ckpt").is_file()
    assert not (tmp_path / "metrics.csv").exists()


# --- bad input ---


@pytest.fixture
def _recipe_config() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        yield


def configure(*overrides: str) -> Any:
    """Do what the recipe does up to the optimizer."""
    sys.path.insert(0, str(TRAIN.parent)) if str(TRAIN.parent) not in sys.path else None
    cfg = compose("train", list(overrides))
    optimizer, schedule = wd.OptimizerConfig.of(cfg.optimizer), wd.LRSchedulerConfig.of(cfg.lr_scheduler)
    model = instantiate(cfg.model, _partial_=True)(optimizer=optimizer, lr_scheduler=schedule)
    return model.configure_optimizers()


@pytest.mark.usefixtures("_recipe_config")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+optimizer.weight_decy=1"], ["optimizer.weight_decy", "nearest: 'weight_decay'", "fix: write"]),
        (["optimizer.lr=abc"], ["optimizer.lr must be a number >= 0 but got 'abc'", "fix: write optimizer.lr="]),
        (
            ["optimizer.lr=-1"],
            [
                "optimizer.lr must be a number >= 0 but got -1",
                "valid: a finite number >= 0",
                "fix: write optimizer.lr=1, ",
            ],
        ),
        (["optimizer.decay=independent"], ["optimizer.decay must be a mapping", "write optimizer/decay=independent,"]),
        (["optimizer=muon", "optimizer/decay=l2"], ["optimizer muon does not do optimizer.decay.style 'l2'"]),
        (["optimizer.weight_decay=nan"], ["optimizer.weight_decay must be a number >= 0 but got nan"]),
        (
            ["optimizer.decay.normalized=0.05"],
            ["more than one amount", "optimizer.weight_decay=2.5, optimizer.decay.normalized=0.05"],
        ),
        (
            ["optimizer/decay=l2", "optimizer.decay.normalized=0.05"],
            [
                "style 'l2' cannot be given by optimizer.decay.normalized=0.05",
                "fix: use style 'independent' (optimizer/decay=independent)",
            ],
        ),
        (
            ["optimizer/decay=timescale", "lr_scheduler=none"],
            ["optimizer.decay.timescale_epochs needs the number of optimizer steps", "fix: pass them"],
        ),
        (
            ["optimizer=adam_l2", "optimizer/decay=independent"],
            ["optimizer=adam_l2 is the L2 form", "fix: write optimizer=adamw optimizer/decay=independent"],
        ),
        (
            ["optimizer.mask.rules=[{name: 'net.1O.*', wd_mult: 1}]", "lr_scheduler=none"],
            ["mask pattern 'net.1O.*' matched no parameter", "0 matches", "fix:"],
        ),
    ],
)
def test_bad_input_says_what_where_and_how_to_fix(overrides: list[str], words: list[str]) -> None:
    with pytest.raises((wd.ConfigError, wd.MaskError)) as caught:
        configure(*overrides)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+optimizer.weight_decy=1", "ConfigError: optimizer adamw has no key 'weight_decy'."),
        ("ckpt_path=nowhere.ckpt", "ConfigError: ckpt_path=nowhere.ckpt is missing."),
        ("trainer.devices=2", "ConfigError: 2 processes need a strategy that runs this job in all of them together."),
        ("model._target_=os.system", "ConfigError: model._target_ 'os.system' is not a class that a config may name."),
        (
            "hydra.run.dir=outputs/earlier/metrics.csv/x",
            "hydra.run.dir=outputs/earlier/metrics.csv/x cannot be written.",
        ),
    ],
)
def test_bad_input_ends_with_an_error_code_and_leaves_earlier_runs_alone(
    override: str, words: str, tmp_path: Path
) -> None:
    earlier = tmp_path / "outputs/earlier"
    earlier.mkdir(parents=True)
    (earlier / "metrics.csv").write_text("step\n1\n")
    done = train_here(override, cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (earlier / "metrics.csv").read_text() == "step\n1\n"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "data.batch_size=0",
            "data.batch_size must be a whole number >= 1 but got 0.\n"
            "  found: int\n"
            "  valid: a whole number >= 1\n"
            "  fix: write data.batch_size=<a whole number >= 1>",
        ),
        (
            "seed=abc",
            "seed must be a whole number >= 0 but got 'abc'.\n"
            "  found: str\n"
            "  valid: a whole number >= 0\n"
            "  fix: write seed=<a whole number >= 0>",
        ),
        (
            "model.dropout=nan",
            "model.dropout must be a number >= 0 and <= 1 but got nan.\n"
            "  found: float\n"
            "  valid: a finite number >= 0 and <= 1\n"
            "  fix: write model.dropout=<a finite number >= 0 and <= 1>",
        ),
        (
            "model.in_features=32",
            "model.in_features=32 does not fit the data.\n  found: Digits needs 64\n"
            "  fix: write model.in_features=64, or choose other data",
        ),
        (
            "model.num_classes=5",
            "model.num_classes=5 does not fit the data.\n  found: Digits needs 10\n"
            "  fix: write model.num_classes=10, or choose other data",
        ),
        (
            "model=gpt",
            "the model takes vocab_size, and the data have none.\n"
            "  found: Digits has in_features\n"
            "  fix: choose a model that fits (mlp in_features, resnet in_channels, gpt vocab_size), or other data",
        ),
        (
            "trainer.devices=0",
            "trainer.devices must be a whole number >= 1 but got 0.\n"
            "  found: int\n"
            "  valid: a whole number >= 1\n"
            "  fix: write trainer.devices=<a whole number >= 1>",
        ),
        (
            "+optimzer.lr=1",
            "the config has no key 'optimzer'.\n  nearest: 'optimizer'\n"
            "  fix: write optimizer, or give what is yours another name",
        ),
        (
            "model.hidden=5",
            "model cannot be built from these settings: Value after * must be an iterable, not int\n"
            "  found: in_features=64, hidden=5, num_classes=10, dropout=0.0\n"
            "  fix: correct model.*; HYDRA_FULL_ERROR=1 shows where it failed",
        ),
        (
            "+callbacks.mine.every=2",
            "callbacks.mine is not a Callback.\n  found: {'every': 2}\n"
            "  fix: write callbacks.mine._target_=<its class>, or choose from the group: callbacks=...",
        ),
        (
            "trainer.max_epochs=ten",  # -1 would be endless
            "trainer.max_epochs must be a whole number >= 0 but got 'ten'.\n"
            "  found: str\n"
            "  valid: a whole number >= 0\n"
            "  fix: write trainer.max_epochs=<a whole number >= 0>",
        ),
        ("++trainer.val_check_interval=0", "trainer.val_check_interval must not be 0."),
    ],
)
def test_settings_that_no_job_can_start_with(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CompactHydraException) as caught:
        job("callbacks=none", override, folder=tmp_path)
    assert str(caught.value).startswith(f"ConfigError: {words}")
    assert not list(tmp_path.iterdir())


def test_a_model_may_have_more_classes_than_the_data(tmp_path: Path) -> None:
    quick = ["callbacks=none", "trainer.max_steps=1", "trainer.enable_progress_bar=false", "lr_scheduler=constant"]
    job(*quick, "model.num_classes=12", folder=tmp_path)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


def test_a_search_that_sees_no_validation_says_so(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    quick = ["callbacks=none", "trainer.max_steps=1", "trainer.enable_progress_bar=false", "lr_scheduler=constant"]
    with pytest.raises(
        CompactHydraException, match=r"the sweeper has nothing to compare: .*before its first validation"
    ):
        job(*quick, "hydra/sweeper=optuna", "hydra.mode=MULTIRUN", folder=tmp_path)


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda path: (path / "checkpoints").mkdir(parents=True), "a folder, but not a sharded checkpoint"),
        (
            lambda path: torch.save({"weight": torch.ones(1)}, path),
            "a file of torch without a run in it, perhaps of weights only",
        ),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), "a file that torch did not write: "),
    ],
    ids=["folder", "weights", "zip"],
)
def test_a_path_that_is_not_a_checkpoint_is_refused(made: Any, found: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    made(path)
    with pytest.raises(CompactHydraException) as caught:
        job("callbacks=none", f"ckpt_path={path}", folder=tmp_path / "run")
    assert str(caught.value).startswith(f"ConfigError: no run can resume from {path}.\n  found: {found}")


def test_processes_of_torchrun_and_srun_do_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning as L
    from checks import check_strategy

    trainer = L.Trainer(accelerator="cpu", logger=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_strategy(trainer)  # without torchrun the variable means nothing
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    with pytest.raises(wd.ConfigError, match=r"(?s)2 processes need a strategy .* fix: write trainer=ddp "):
        check_strategy(trainer)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_NTASKS", "3")  # of an allocation, in which one process may run alone
    check_strategy(trainer)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")  # of what srun started
    with pytest.raises(wd.ConfigError, match="3 processes need a strategy"):
        check_strategy(trainer)


@one_worker
def test_the_checkpoint_of_another_model_is_refused(default_run: tuple[Path, str], tmp_path: Path) -> None:
    ckpt = default_run[0] / "checkpoints/last.ckpt"
    before = ckpt.read_bytes()
    done = train_here("model.hidden=[32, 128]", "trainer.max_epochs=11", f"ckpt_path={ckpt}", cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert f"CheckpointMismatchError: ckpt_path={ckpt} holds another model." in done.stderr
    assert "found: size mismatch for net.0.weight" in done.stderr
    assert "Traceback" not in done.stderr
    assert ckpt.read_bytes() == before


@pytest.mark.parametrize("key", ["run", "sweep"])
def test_an_unwritable_output_folder_is_refused_before_hydra_makes_it(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    overrides: dict[str, list[str]] = {"task": [], "hydra": []}
    cfg = OmegaConf.create({"hydra": {key: {"dir": str(tmp_path / "file/folder")}, "overrides": overrides}})
    check = OutputFolder().on_run_start if key == "run" else OutputFolder().on_multirun_start
    with pytest.raises(SystemExit) as caught:
        check(cfg)
    assert f"hydra.{key}.dir={tmp_path}/file/folder cannot be written." in str(caught.value)
    assert "found: Not a directory" in str(caught.value)
    overrides["hydra"].append("+hydra.job.env_set.MY_TOKEN=canary")
    cfg.hydra.overrides = overrides
    with pytest.raises(SystemExit, match=r"ConfigError: \+hydra\.job\.env_set\.MY_TOKEN looks like a secret") as caught:
        check(cfg)
    assert "canary" not in str(caught.value)


def test_a_secret_on_the_command_line_is_refused_before_hydra_writes_it(tmp_path: Path) -> None:
    done = train_here("-m", "seed=1,2", "+model.api_key=canary-cli-93f1c7", cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "ConfigError: +model.api_key looks like a secret; do not put it on the command line.\n  found:"
    )
    assert list(tmp_path.iterdir()) == []


# --- every style trains ---


@pytest.mark.parametrize("name", ["adamw", "sgdw"])
@pytest.mark.parametrize(
    "decay",
    ["decoupled", "independent", "normalized", "timescale", "constant", "corrected", "l2", "none"],
)
@pytest.mark.usefixtures("_recipe_config")
def test_each_style_keeps_the_model_trainable_at_its_default_amount(name: str, decay: str) -> None:
    import lightning as L

    L.seed_everything(0, verbose=False)
    cfg = compose("train", ["data=digits", f"optimizer={name}", f"optimizer/decay={decay}"])
    model = instantiate(cfg.model, _partial_=True)(
        optimizer=wd.OptimizerConfig.of(cfg.optimizer), lr_scheduler=wd.LRSchedulerConfig.of(cfg.lr_scheduler)
    )
    trainer = L.Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = instantiate(cfg.data)
    trainer.fit(model, data)
    accuracy = trainer.test(model, data, verbose=False)[0]["test/acc"]
    assert accuracy >= 0.93


OWN = """import torch

class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, *, scale, **kwargs):
        super().__init__(params, {"lr": lr, "scale": scale, **kwargs})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * group["scale"] * p.grad.sign())
        return loss
"""


def test_an_optimizer_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)  # where a script's own folder stands
    custom = ["optimizer=custom", "optimizer.name=my_own_optimizers.Sign", "trainer.max_epochs=1"]
    done = train_here(*custom, "+optimizer.scale=0.5", "optimizer/decay=constant", cwd=tmp_path)
    saved = torch.load(run_folder(done) / "checkpoints/last.ckpt", weights_only=True)
    assert [(g["optimizer"], g["style"], g["scale"]) for g in saved["optimizer_states"][0]["param_groups"]] == [
        ("my_own_optimizers.Sign", "constant", 0.5)
    ] * 2
    for wrong, words in {
        "+optimizer.scael=1": "optimizer my_own_optimizers.Sign has no key 'scael'.",
        "optimizer.name=my_own_optimizers.Sing": "fix: write my_own_optimizers.Sign",
        "seed=1": "optimizer my_own_optimizers.Sign needs scale.",
    }.items():
        refused = train_here(*custom, wrong, cwd=tmp_path, ok=False)
        assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr
