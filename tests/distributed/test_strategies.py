"""The strategies: the recipe's sweeps, torchrun, each rank's config in the log, and no change without Hydra."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.ddp import APP, needs_shards_on_cpu, one_tree, run
from helpers.recipe import ROOT, TRAIN
from helpers.recipe_run import rows
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import OmegaConf

from lightning_wd.distributed import HydraDDPStrategy, HydraFSDP2Strategy, strategies
from lightning_wd.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


@pytest.mark.parametrize(
    "sweep",
    [
        ["seed=shuffle(range(1,3))", "trainer.max_steps=2"],
        ["seed=shuffle(range(1,3))", "trainer.max_steps=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["seed=range(1,1000)", "trainer.max_epochs=1", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"],
    ],
    ids=["shuffled", "joblib", "optuna"],
)
def test_a_sweep_of_the_recipe_is_one_run_a_job_by_what_each_rank_logs(sweep, tmp_path):
    for plugin in ("joblib_launcher", "optuna_sweeper"):
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}", reason=f"hydra's {plugin} is not installed")
    quick = ["trainer=ddp_cpu", "trainer.enable_progress_bar=false", "callbacks=none"]
    run(tmp_path, [sys.executable, str(TRAIN), "-m", *sweep, *quick])
    tree = one_tree(tmp_path)
    names = ["0", "1"]
    assert sorted(path.name for path in tree.iterdir() if path.is_dir()) == names
    configs, seeds = [], []
    for job in names:
        seeds.append(OmegaConf.load(tree / job / "config.yaml").seed)
        log = (tree / job / "train.log").read_text()
        ranks = re.findall(r"rank (\d) of 2 on \S+: config ([0-9a-f]{12})$", log, re.M)
        assert sorted(rank for rank, _ in ranks) == ["0", "1"], log
        configs.append({config for _, config in ranks})
    assert len(set(seeds)) == 2
    assert [len(config) for config in configs] == [1, 1]
    assert len(set.union(*configs)) == 2
    if "hydra/sweeper=optuna" in sweep:  # the sweeper saw what rank 0 returned
        losses = [row["val/loss"] for job in names for row in rows(tree / job) if row["val/loss"]]
        assert len(losses) == 2
        assert OmegaConf.load(tree / "optimization_results.yaml").best_value == min(map(float, losses))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ddp_on_every_gpu_of_the_machine(tmp_path):
    count = torch.cuda.device_count()
    overrides = ["trainer=ddp", f"trainer.devices={count}", "trainer.max_steps=4", "trainer.enable_progress_bar=false"]
    output = run(tmp_path, [sys.executable, str(TRAIN), *overrides, "callbacks=none", "hydra.run.dir=run"])
    assert "distributed_backend=nccl" in output
    assert output.count("MEMBER:") == count
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_without_hydra_it_is_lightnings_strategy(tmp_path):
    script = tmp_path / "plain.py"  # it writes its line at once: two processes share the pipe
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(APP.parent)!r})\n"
        "import torch, lightning as L\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from app import HydraDDPStrategy, Linear\n"
        "L.seed_everything(3)\n"
        "trainer = L.Trainer(accelerator='cpu', devices=2, strategy=HydraDDPStrategy(), max_steps=2, logger=False,\n"
        "    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)\n"
        "trainer.fit(Linear(1, 'none'), DataLoader(TensorDataset(torch.ones(8, 2))))\n"
        "sys.stdout.write(f'\\nrank {trainer.global_rank} of {trainer.world_size}\\n')\n"
    )
    output = run(tmp_path, [sys.executable, str(script)])
    assert "rank 0 of 2" in output
    assert "rank 1 of 2" in output


def test_torchrun_decides_on_gpus_too_where_there_are_enough(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    gpus = [torch.device("cuda", index) for index in range(4)]
    strategy = HydraDDPStrategy(parallel_devices=gpus)
    strategy._follow_torchrun()
    assert (strategy.parallel_devices, strategy.num_nodes) == (gpus[:2], 3)
    strategy = HydraDDPStrategy(parallel_devices=gpus[:1])
    strategy._follow_torchrun()  # too few: left for Lightning to refuse
    assert (strategy.parallel_devices, strategy.num_nodes) == (gpus[:1], 1)


@pytest.mark.parametrize(
    "hook", "training_step optimizer_step backward pre_backward post_backward reduce barrier batch_to_device".split()
)
def test_nothing_is_added_to_a_step(hook):
    assert getattr(HydraDDPStrategy, hook) is getattr(DDPStrategy, hook)


@pytest.mark.parametrize(
    "name",
    ["default", "cpu", "ddp", "ddp_cpu", *(pytest.param(n, marks=needs_shards_on_cpu) for n in ("fsdp2", "fsdp2_cpu"))],
)
def test_each_trainer_config_instantiates_on_its_own(name):
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = compose(overrides=[f"+trainer={name}"]).trainer
    assert {"max_steps", "max_epochs", "devices"} <= set(node)
    trainer = instantiate(node, logger=False)
    assert isinstance(trainer, Trainer)
    strategies = {"ddp": HydraDDPStrategy, "fsdp": HydraFSDP2Strategy}
    assert isinstance(trainer.strategy, strategies.get(name[:4].rstrip("_"), SingleDeviceStrategy))
    everywhere = max(1, torch.cuda.device_count() * (name in ("ddp", "fsdp2")))
    assert trainer.world_size == (2 if name.endswith("_cpu") else everywhere)


def test_shards_on_cpu_are_refused_where_torch_has_none(monkeypatch):
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    with pytest.raises(ConfigError) as caught:
        Trainer(strategy=HydraFSDP2Strategy(), accelerator="cpu", devices=2, logger=False)
    assert str(caught.value) == (
        f"FSDP2 on CPU processes needs a newer torch.\n  found: torch {torch.__version__}\n"
        "  fix: install a newer torch, or write trainer=ddp_cpu"
    )


def test_torchrun_does_not_start_a_sweep_on_every_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    for mode in (RunMode.RUN, RunMode.MULTIRUN):
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda mode=mode: SimpleNamespace(mode=mode)))
        if mode is RunMode.RUN:
            strategies._refuse_sweep()
        else:
            with pytest.raises(ConfigError) as caught:
                strategies._refuse_sweep()
    assert str(caught.value) == (
        "under torchrun each rank runs the whole sweep by itself, with values and folders of its own.\n"
        "  found: --multirun on 2 processes of torchrun\n"
        "  fix: start the sweep once, without torchrun: python train.py --multirun ... trainer=ddp"
    )
