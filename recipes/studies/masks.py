"""What the mask, the embeddings, ``cautious`` and the coupling do to a character GPT on Tiny Shakespeare."""

from __future__ import annotations

from pathlib import Path

from studies.runs import SMOKE, mean_and_half_width, new_figure, read_runs, write_csv

LR, LAM = 3.0e-3, 0.3  # lam of `decoupled`; `independent` takes lr * lam, which is the same strength at the peak

VARIANTS = {
    "standard mask": [],
    "everything decays": ["optimizer/mask=all"],
    "embeddings excluded": ["optimizer/mask=no_embeddings"],
    "nothing decays": ["optimizer/mask=none"],
    "cautious": ["optimizer.decay.cautious=true"],
    "independent": ["optimizer/decay=independent", f"optimizer.weight_decay={LR * LAM!r}"],
}


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name, one seed after the other, so that a stop leaves whole seeds."""
    if smoke:
        run = SMOKE
    else:
        run = ["experiment=shakespeare_gpt", f"data.root={data}/tinyshakespeare", "model.preset=tiny"]
        run += ["callbacks=none", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
        run += ["trainer.log_every_n_steps=50"]
    shared = ["hparams_search=resumable", *run, f"optimizer.lr={LR}", f"optimizer.weight_decay={LAM}"]
    subdir = "hydra.sweep.subdir=seed${seed}"
    return {
        f"{seed}/{name.replace(' ', '_')}": [*shared, subdir, f"seed={seed}", *overrides]
        for seed in ((0,) if smoke else (0, 1, 2))
        for name, overrides in VARIANTS.items()
    }


def report(runs: Path, out: Path) -> None:
    """Write each run's test loss and the picture."""
    rows, figure = [], new_figure(8, 3.6)
    axes, seeds, finished = figure.subplots(), 0, read_runs(runs)
    for place, name in enumerate(VARIANTS):
        found = [run for run in finished if run.folder.parent.name == name.replace(" ", "_")]
        losses = [run.last["test/loss"] for run in found]
        seeds = max(seeds, len(losses))
        rows += [(name, run.config["seed"], run.last["test/loss"]) for run in found]
        mean, half = mean_and_half_width(losses)
        axes.errorbar([mean], [place], xerr=[half], fmt="o", color="C0", capsize=4)
        if len(losses) > 1:
            axes.plot(losses, [place + 0.15] * len(losses), "x", color="0.4", markersize=5)
    axes.set_yticks(range(len(VARIANTS)), list(VARIANTS))
    axes.invert_yaxis()
    axes.set(xlabel="validation loss after the last step (nats per character)")
    shown = "one seed" if seeds < 2 else f"mean and single runs of {seeds} seeds" + ", 95 % interval" * (seeds > 2)
    axes.set_title(f"A character GPT by AdamW, lr {LR:g}, lam {LAM:g}: {shown}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(out / "masks.png", dpi=130)
    write_csv(out / "runs.csv", ["variant", "seed", "loss_nats"], rows)
