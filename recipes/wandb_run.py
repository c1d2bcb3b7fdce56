"""One W&B run for each run of the recipe: a resumed run goes on in its own, and metrics have axes and summaries."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

ID_FILE = "wandb_run_id.txt"  # in the run's folder

# metric -> what of its history W&B's table of runs shows; a sweep compares runs by the least val/loss
SUMMARIES = {
    "train/loss": "min,last",
    "val/loss": "min,last",
    "val/acc": "max,last",
    "test/loss": "last",
    "test/acc": "last",
}


def resumed_id(ckpt_path: str | None, folder: Path, *, sweep: bool) -> str | None:
    """Return the id of the W&B run whose folder holds a checkpoint, or None where a new one begins.

    Args:
        ckpt_path: the checkpoint that the run goes on from.
        folder: the run's own folder.
        sweep: the jobs of a sweep may all start from one checkpoint, and are runs of their own.
    """
    if ckpt_path is None:
        return None
    origin = Path(ckpt_path).resolve().parent.parent  # <folder>/checkpoints/last.ckpt
    path = origin / ID_FILE
    if not path.is_file() or (sweep and origin != folder.resolve()):
        return None
    return path.read_text(encoding="utf-8").strip()


@rank_zero_only
def open_run(logger: WandbLogger, folder: Path) -> None:
    """Start the run, note its id in the run's folder, and say what its metrics are drawn against and summed up by."""
    for name, summary in SUMMARIES.items():
        logger.experiment.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary=summary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ID_FILE).write_text(f"{logger.version}\n", encoding="utf-8")
