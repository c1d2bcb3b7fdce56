"""Train a model with the decay you mean.

python recipes/train.py                                            # noisy digits, MLP, AdamW
python recipes/train.py optimizer=sgdw optimizer.lr=0.05           # SGDW
python recipes/train.py optimizer/decay=independent                # the paper's coupling instead of torch's
python recipes/train.py optimizer/mask=no_embeddings trainer=ddp_cpu trainer.devices=2 logger=wandb_offline
python recipes/train.py -m optimizer=adamw,adam_l2,sgdw            # a sweep
python recipes/train.py ckpt_path=last                             # resume the newest run
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from checkpoints import LastCheckpoint, LoggedSteps, find_checkpoint
from checks import check_devices, check_fit, check_keys, check_numbers, check_strategy
from decay_effect import DecayEffect
from from_config import build, make, make_logger
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from init_weights import load_weights
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor
from misspelt import say_nearest
from omegaconf import DictConfig
from step_seed import StepSeed
from targets import check_targets
from user_errors import say_plainly
from wandb_run import finish_run, open_run, resumed_id

from lightning_wd import LRSchedulerConfig, OptimizerConfig
from lightning_wd.errors import ConfigError
from lightning_wd.runs.curves import curves
from lightning_wd.runs.figure import TITLES
from lightning_wd.runs.folder import run_dir, save_config
from lightning_wd.runs.secrets import redact
from lightning_wd.runs.sweep import skip_finished

# Lightning 2.6 calls what torch 2.13 deprecates
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")

# submitit unpickles a job in a Python that was started elsewhere, where the modules imported above would be missing.
_HERE = str(Path(__file__).resolve().parent)
if _HERE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH")]))

NEED_A_LOGGER = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run one job.

    Args:
        cfg: the composed config, inside of a Hydra job. Its ``ckpt_path`` becomes the checkpoint that was found.

    Returns:
        ``metrics``, the last value of each as a float, and the objects: ``config, folder, model, datamodule, trainer,
        callbacks, loggers``. A finished cell of a sweep has ``metrics, config, folder`` only.
    """
    folder = run_dir()
    check_targets(cfg)
    check_keys(cfg)
    check_numbers(cfg)
    check_devices(cfg.trainer)
    ckpt_path, finished = _where_to_begin(cfg, folder)
    if finished is not None:
        print(f"finished already: {folder}", flush=True)
        return {"metrics": finished, "config": cfg, "folder": folder}
    ckpt_path = find_checkpoint(ckpt_path, folder)
    L.seed_everything(cfg.seed, workers=True)

    optimizer, lr_scheduler = OptimizerConfig.of(cfg.optimizer), LRSchedulerConfig.of(cfg.lr_scheduler)
    data = build(cfg, "data")
    check_fit(cfg.model, data)
    model = build(cfg, "model", optimizer=optimizer, lr_scheduler=lr_scheduler)
    if cfg.init_from is not None and ckpt_path is None:  # a checkpoint to resume from has its own weights
        load_weights(model, cfg.init_from)
    wandb_id = resumed_id(ckpt_path, folder, sweep=HydraConfig.get().mode == RunMode.MULTIRUN)
    loggers = [make_logger(key, node, wandb_id) for key, node in (cfg.logger or {}).items()]
    effect, last = DecayEffect(), LastCheckpoint(folder / "checkpoints")
    callbacks = [LoggedSteps(), *_configured_callbacks(cfg, has_logger=bool(loggers)), StepSeed(), effect, last]
    trainer = build(cfg, "trainer", logger=loggers, callbacks=callbacks, default_root_dir=folder)
    check_strategy(trainer)
    save_config(cfg, folder)
    _print_global_batch(cfg.data.get("batch_size"), trainer)
    for logger in loggers:
        open_run(logger, folder)
        logger.log_hyperparams(redact(cfg))

    cfg.ckpt_path = ckpt_path  # each rank has looked for itself; the ranks compare their configs
    try:
        # weights_only is given: left out, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, set for some other library, would decide
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        if not last.trained:
            limits = "trainer.max_epochs, trainer.max_steps and trainer.limit_train_batches"
            rank_zero_only(print)(f"nothing was left to train: {limits} leave no step", flush=True)
        metrics = dict(trainer.callback_metrics)
        trainer.test(model, data)
        metrics |= trainer.callback_metrics
    finally:
        finish_run()
    if trainer.is_global_zero:
        for logger in loggers:
            logger.save()
        name, style = TITLES.get(cfg.optimizer.name, cfg.optimizer.name), cfg.optimizer.decay.style
        curves(folder, f"{name}, lr {optimizer['lr']:g}, style {style}")
        if last.trained:
            print(effect)
        print(f"run folder: {folder}", flush=True)
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "config": cfg,
        "folder": folder,
        "model": model,
        "datamodule": data,
        "trainer": trainer,
        "callbacks": callbacks,
        "loggers": loggers,
    }


def _where_to_begin(cfg: DictConfig, folder: Path) -> tuple[str | None, dict[str, float] | None]:
    """Return the ``ckpt_path`` to resume from, and the metrics of a cell that is finished and to be skipped."""
    has_own = (folder / "checkpoints/last.ckpt").exists()
    ckpt_path = "last" if has_own and "SLURM_RESTART_COUNT" in os.environ else cfg.ckpt_path
    if not cfg.get("skip_finished"):
        return ckpt_path, None
    resumes = ckpt_path in ("last", "previous")
    if resumes and not has_own:  # `last` would be the newest run below ./outputs, which is not this cell's
        ckpt_path, resumes = None, False
    return ckpt_path, skip_finished(folder, redact(cfg), resumes=resumes)


def _configured_callbacks(cfg: DictConfig, *, has_logger: bool) -> list[L.Callback]:
    """Make the callbacks, without those that raise where there is no logger."""
    made = [make(f"callbacks.{key}", node, L.Callback) for key, node in (cfg.callbacks or {}).items()]
    return [callback for callback in made if has_logger or not isinstance(callback, NEED_A_LOGGER)]


@rank_zero_only
def _print_global_batch(batch_size: int | None, trainer: L.Trainer) -> None:
    """Print the rows of an optimizer step: those of a process, times processes, times accumulated batches."""
    if batch_size is None:
        return
    processes, batches = trainer.world_size, trainer.accumulate_grad_batches
    rows = batch_size * processes * batches
    print(f"global batch {rows}: {batch_size} rows x {processes} process(es) x {batches} batch(es)", flush=True)


@say_nearest
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@say_plainly
def main(cfg: DictConfig) -> float | None:
    """Run one job and return its validation loss, which a sweeper minimises."""
    run = train(cfg)
    val_loss: float | None = run["metrics"].get("val/loss")
    if val_loss is None and "trainer" in run:
        _refuse_blind_search(run["trainer"])
    return val_loss


def _refuse_blind_search(trainer: L.Trainer) -> None:
    """Raise a ConfigError where a search needs the validation loss that a job has not measured."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and "Optuna" in hydra_config.sweeper._target_:
        raise ConfigError(
            "the sweeper has nothing to compare: this job ended before its first validation.",
            found=f"{trainer.global_step} optimizer steps, trainer.max_steps={trainer.max_steps}",
            fix="train for an epoch, or write trainer.val_check_interval=<batches>",
        )


if __name__ == "__main__":
    main()
