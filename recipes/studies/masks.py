"""What the mask, the embeddings, ``cautious`` and the coupling do to a character GPT on Tiny Shakespeare."""

from __future__ import annotations

from pathlib import Path

from studies.finished_runs import SMOKE, mean_and_half_width, new_figure, read_runs, write_csv

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
    """Return the overrides of each sweep by its name, seed by seed, so that an interruption leaves whole seeds."""
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
    """Write each run's loss, and draw its difference from the standard mask's: seeds differ more than masks."""
    rows, figure = [], new_figure(8, 3.6)
    axes, finished = figure.subplots(), read_runs(runs)
    losses = {
        name: {run.config["seed"]: run.last["test/loss"] for run in finished if run.folder.parent.name == folder}
        for name, folder in ((name, name.replace(" ", "_")) for name in VARIANTS)
    }
    standard = losses["standard mask"]
    for place, (name, found) in enumerate(losses.items()):
        rows += [(name, seed, loss) for seed, loss in found.items()]
        against = [loss - standard[seed] for seed, loss in found.items()]
        mean, half = mean_and_half_width(against)
        axes.errorbar([mean], [place], xerr=[half], fmt="o", color="C0", capsize=4)
        axes.plot(against, [place + 0.2] * len(against), "x", color="0.4", markersize=5)
    axes.set_yticks(range(len(VARIANTS)), list(VARIANTS))
    axes.invert_yaxis()
    axes.axvline(0.0, color="0.6", linewidth=0.8)
    axes.set(xlabel="validation loss minus the standard mask's, same seed (nats per character)")
    figure.suptitle(f"A character GPT by AdamW, lr {LR:g}, lam {LAM:g}", fontsize=11)
    axes.set_title(f"crosses: {len(standard)} seeds; dots: mean, with 95 % interval", fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(out / "masks.png", dpi=130)
    write_csv(out / "runs.csv", ["variant", "seed", "loss_nats"], rows)
