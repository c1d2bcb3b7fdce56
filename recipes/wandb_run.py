"""One W&B run for each run of the recipe, continued on resume; the axes and summaries of its metrics."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from lightning_wd.errors import ConfigError

ID_FILE = "wandb_run_id.txt"  # in the run's folder

# metric -> what W&B's table of runs shows of its history; a sweep compares runs by their lowest val/loss
SUMMARIES = {
    "train/loss": "min,last",
    "val/loss": "min,last",
    "val/acc": "max,last",
    "test/loss": "last",
    "test/acc": "last",
}


def resumed_id(ckpt_path: str | None, folder: Path, *, sweep: bool) -> str | None:
    """Return the id of the W&B run that wrote a checkpoint, or None where a new one begins.

    Args:
        ckpt_path: the checkpoint to resume from.
        folder: the run's own folder.
        sweep: whether this is a job of a sweep: all may start from one checkpoint, but each is a run of its own.
    """
    if ckpt_path is None:
        return None
    origin = Path(ckpt_path).resolve().parent.parent  # <folder>/checkpoints/last.ckpt
    path = origin / ID_FILE
    if not path.is_file() or (sweep and origin != folder.resolve()):
        return None
    return path.read_text(encoding="utf-8").strip()


@rank_zero_only
def open_run(logger: Logger, folder: Path) -> None:
    """Start the run of a WandbLogger, write its id into the run's folder, and define the metrics' axes and summaries.

    Args:
        logger: any logger; another kind is left alone.
        folder: the run's folder.

    Raises:
        ConfigError: W&B has no key and cannot ask for one.
    """
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    try:
        experiment = logger.experiment
    except wandb.errors.UsageError as error:
        raise ConfigError(
            "W&B does not start this run.",
            found=str(error),
            fix="run `wandb login` or set WANDB_API_KEY, or write logger=wandb_offline, which needs no account",
        ) from error
    for name, summary in SUMMARIES.items():
        experiment.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary=summary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ID_FILE).write_text(f"{logger.version}\n", encoding="utf-8")


def finish_run() -> None:
    """Close the run, so that the next job of a sweep gets its own."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
