"""Train a model with the decay you mean.

python recipes/train.py                                            # digits, MLP, AdamW
python recipes/train.py optimizer=sgdw optimizer.lr=0.05           # SGDW
python recipes/train.py optimizer/decay=independent                # the paper's coupling instead of torch's
python recipes/train.py optimizer/mask=no_embeddings trainer=ddp_cpu trainer.devices=2 logger=wandb_offline
python recipes/train.py -m optimizer=adamw,adam_l2,sgdw            # a sweep
python recipes/train.py ckpt_path=last                             # resume the newest run
"""

from __future__ import annotations

import errno
import functools
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from checks import check_fit, check_numbers, check_strategy
from data.download import DataError
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from interrupt import LastCheckpoint, LoggedSteps, damage
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from step_seed import StepSeed
from wandb_run import open_run, resumed_id

from lightning_wd import LRSchedulerConfig, OptimizerConfig
from lightning_wd.errors import CheckpointMismatchError, ConfigError, MaskError, explain
from lightning_wd.pictures import curves
from lightning_wd.run import redact, run_dir, save_config
from lightning_wd.sweep import skip_finished
from lightning_wd.targets import check_targets

# Lightning 2.6 calls what torch 2.13 deprecates
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")

# submitit unpickles a job in a Python that was not started from this folder, where the modules imported above lie.
_HERE = str(Path(__file__).resolve().parent)
if _HERE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH")]))

# The classes of this app that a config may name, besides those of the pack: add your own here.
OWN_TARGETS = (
    "data.cifar10.CIFAR10",
    "data.digits.Digits",
    "data.fashion_mnist.FashionMNIST",
    "data.fashion_small.FashionSmall",
    "data.shakespeare.Shakespeare",
    "interrupt.BestCheckpoint",
    "models.conv_net.ConvNet",
    "models.gpt.GPT",
    "models.mlp.MLP",
    "models.resnet.ResNet",
    "models.shake_shake.ShakeShake",
)


NEED_A_LOGGER = (DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)
FOR_THE_USER = (ConfigError, MaskError, CheckpointMismatchError, DataError)  # whose messages say all there is to say


def say_plainly(job: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    """Let Hydra end a job with the message of an error that is the user's to fix, in place of forty lines of traceback.

    ``HYDRA_FULL_ERROR=1`` shows those too.
    """

    @functools.wraps(job)
    def wrapped(cfg: DictConfig) -> float | None:
        try:
            return job(cfg)
        except (*FOR_THE_USER, MisconfigurationException) as error:  # the last is Lightning's: it says what to set
            raise CompactHydraException(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            message = explain(
                f"{error.filename2 or error.filename or run_dir()} cannot be written any more.",  # of a move, where to
                found=error.strerror,
                fix="make room, or give another folder with hydra.run.dir=FOLDER; "
                "the last whole checkpoint stays, ckpt_path=last goes on from it",
            )
            raise CompactHydraException(f"OSError: {message}") from error
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            differences = str(error).splitlines()[1:]
            more = f" and {len(differences) - 1} more" * (len(differences) > 1)
            message = explain(
                f"ckpt_path={cfg.ckpt_path} holds another model.",
                found=differences[0].strip().rstrip(".") + more,
                fix="give the model and data settings of the run that wrote it (config.yaml in its folder), or "
                "ckpt_path=null to start afresh",
            )
            raise CompactHydraException(f"CheckpointMismatchError: {message}") from error

    return wrapped


def instantiate(node: DictConfig | None, **keywords: Any) -> Any:
    """Instantiate a node of the config, with plain lists and dicts for arguments: a ListConfig among the
    hyperparameters would make the checkpoint unsafe to load. An error of the package is raised as itself, without
    Hydra's wrapping.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all", **keywords)
    except InstantiationException as error:
        if isinstance(error.__cause__, FOR_THE_USER):
            raise error.__cause__ from None
        raise


def build(cfg: DictConfig, key: str, **keywords: Any) -> Any:
    """Instantiate ``cfg.<key>`` with objects that no config could hold. What its class says of a value it cannot take
    becomes a ConfigError.
    """
    made = instantiate(cfg[key], _partial_=True)
    try:
        return made(**keywords)
    except (AttributeError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, FOR_THE_USER):
            raise
        raise ConfigError(
            explain(
                f"{key} cannot be built from these settings: {error}",
                found=", ".join(f"{name}={value}" for name, value in redact(cfg[key]).items() if name in made.keywords),
                fix=f"correct {key}.*; HYDRA_FULL_ERROR=1 shows where it failed",
            )
        ) from error


def make_logger(key: str, node: DictConfig, wandb_id: str | None) -> Logger:
    """Instantiate a logger; W&B's goes on in the run that a checkpoint is of, unless the config names another."""
    is_wandb = OmegaConf.is_dict(node) and str(node.get("_target_")).endswith(".WandbLogger")
    more = {"id": wandb_id} if is_wandb and wandb_id is not None and node.get("id") is None else {}
    return make(f"logger.{key}", node, Logger, **more)


def make(key: str, node: DictConfig, kind: type, **keywords: Any) -> Any:
    """Instantiate a node of a group; one without a ``_target_`` is an error, not something that does nothing."""
    made = instantiate(node, **keywords) if OmegaConf.is_dict(node) else node
    if not isinstance(made, kind):
        raise ConfigError(
            explain(
                f"{key} is no {kind.__name__}.",
                found=str(redact(node)),
                fix=f"write {key}._target_=<its class>, or choose from the group: {key.partition('.')[0]}=...",
            )
        )
    return made


def find_checkpoint(ckpt_path: str | None, folder: Path) -> str | None:
    """Return the checkpoint to resume from: a path; for ``last`` this folder's or else the newest of ./outputs; for
    ``previous`` the one before that. A damaged one is an error: torch would load some of them as if they were whole.
    """
    if ckpt_path is None:
        return None
    path = Path(str(ckpt_path))
    if ckpt_path in ("last", "previous"):
        own = folder / "checkpoints" / "last.ckpt"
        newest = sorted(Path("outputs").glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        last = own if own.exists() or not newest else newest[-1]  # of the run, whichever of the two is asked for
        path = last.with_name(f"{ckpt_path}.ckpt")
    if not path.exists():
        no_run = ckpt_path in ("last", "previous") and not last.exists()
        kept = ckpt_path == "last" and path.with_name("previous.ckpt").exists()
        raise ConfigError(
            explain(
                f"ckpt_path={ckpt_path} is not there.",
                found=f"no file {path}" + " and no outputs/**/checkpoints/last.ckpt" * no_run,
                fix="ckpt_path=previous goes on from the one before it; or " * kept
                + "give the path of a .ckpt file, or ckpt_path=null to start afresh",
            )
        )
    if wrong := damage(path):
        before = path.with_name("previous.ckpt")
        raise ConfigError(
            explain(
                f"the checkpoint {path} is damaged.",
                found=wrong,
                fix=f"ckpt_path={'previous' if ckpt_path == 'last' else before} goes on from the one before it"
                if path.name == "last.ckpt" and before.exists()
                else "give the path of another one, or ckpt_path=null to start afresh",
            )
        )
    if wrong := foreign(path):
        raise ConfigError(
            explain(
                f"{path} is no checkpoint that a run can go on from.",
                found=wrong,
                fix="give a .ckpt file that a run has written, or ckpt_path=null to start afresh",
            )
        )
    rank_zero_only(print)(f"resuming from {path}", flush=True)
    return str(path)


def foreign(path: Path) -> str | None:
    """Say why Lightning could not resume from a file or folder that is whole, or None."""
    if path.is_dir():
        if (path / "meta.pt").exists():
            return None
        inside = path / "checkpoints" / "last.ckpt"
        return f"a folder, with {inside} in it" if inside.exists() else "a folder, and no sharded checkpoint"
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        return "more than plain data, and loading that could run code"
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        return f"a file that torch did not write: {str(error).splitlines()[0]}"
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        return "a file of torch's that holds no run, only weights perhaps"
    return None


@rank_zero_only
def print_global_batch(batch_size: int | None, trainer: L.Trainer) -> None:
    """Say how many rows an optimizer step sees: those of a process, times processes, times accumulated batches."""
    if batch_size is None:
        return
    processes, batches = trainer.world_size, trainer.accumulate_grad_batches
    rows = batch_size * processes * batches
    print(f"global batch {rows}: {batch_size} rows x {processes} process(es) x {batches} batch(es)", flush=True)


def finish_wandb() -> None:
    """Close the W&B run, so that the next job of a sweep gets one of its own."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@say_plainly
def main(cfg: DictConfig) -> float | None:
    """Run one job and return its validation loss, which is what a sweeper optimises."""
    folder = run_dir()
    check_targets(cfg, OWN_TARGETS)
    check_numbers(cfg)
    has_own = (folder / "checkpoints/last.ckpt").exists()
    ckpt_path = "last" if has_own and "SLURM_RESTART_COUNT" in os.environ else cfg.ckpt_path
    if cfg.get("skip_finished"):
        resumes = ckpt_path in ("last", "previous")
        if resumes and not has_own:  # the newest run of ./outputs is not this cell's
            ckpt_path, resumes = None, False
        done = skip_finished(folder, redact(cfg), resumes=resumes)
        if done is not None:
            print(f"finished already: {folder}", flush=True)
            return done.get("val/loss")
    ckpt_path = find_checkpoint(ckpt_path, folder)
    L.seed_everything(cfg.seed, workers=True)

    optimizer, lr_scheduler = OptimizerConfig.of(cfg.optimizer), LRSchedulerConfig.of(cfg.lr_scheduler)
    data = build(cfg, "data")
    check_fit(cfg.model, data)
    model = build(cfg, "model", optimizer=optimizer, lr_scheduler=lr_scheduler)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    wandb_id = resumed_id(ckpt_path, folder, sweep=sweep)
    loggers = [make_logger(key, node, wandb_id) for key, node in (cfg.logger or {}).items()]
    callbacks = [make(f"callbacks.{key}", node, L.Callback) for key, node in (cfg.callbacks or {}).items()]
    if not loggers:  # it raises without one
        callbacks = [callback for callback in callbacks if not isinstance(callback, NEED_A_LOGGER)]
    last = LastCheckpoint(folder / "checkpoints")
    callbacks = [LoggedSteps(), *callbacks, StepSeed(), last]
    trainer = build(cfg, "trainer", logger=loggers, callbacks=callbacks, default_root_dir=folder)
    check_strategy(trainer)
    save_config(cfg, folder)
    print_global_batch(cfg.data.get("batch_size"), trainer)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            open_run(logger, folder)
        logger.log_hyperparams(redact(cfg))

    cfg.ckpt_path = ckpt_path  # each rank has looked for itself; the comparison of the ranks' configs sees it
    try:
        # as an argument: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, set for some other library, would win over a default
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        if not last.trained:
            rank_zero_only(print)(
                "nothing was left to train: raise trainer.max_epochs or trainer.max_steps", flush=True
            )
        val_loss = trainer.callback_metrics.get("val/loss")
        trainer.test(model, data)
    finally:
        finish_wandb()
    if trainer.is_global_zero:
        for logger in loggers:
            logger.save()
        decay = trainer.optimizers[0].param_groups[0]["weight_decay"] if trainer.optimizers else 0.0
        curves(folder, f"{cfg.optimizer.name}, lr {optimizer['lr']:g}, {cfg.optimizer.decay.style} decay {decay:.3g}")
        print(f"run folder: {folder}", flush=True)
    if val_loss is not None:
        return float(val_loss)
    if sweep and "Optuna" in HydraConfig.get().sweeper._target_:
        raise ConfigError(
            explain(
                "the sweeper has nothing to go by: this job ended before its first validation.",
                found=f"{trainer.global_step} optimizer steps, trainer.max_steps={trainer.max_steps}",
                fix="train for an epoch, or write trainer.val_check_interval=<batches>",
            )
        )
    return None


if __name__ == "__main__":
    main()
