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
    """Return the overrides of each sweep by its name."""
    if smoke:
        run = [*SMOKE, "seed=0"]
    else:
        run = ["experiment=shakespeare_gpt", f"data.root={data}/tinyshakespeare", "model.preset=tiny"]
        run += ["callbacks=none", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "seed=0,1"]
        run += ["trainer.log_every_n_steps=50"]
    shared = ["hparams_search=resumable", *run, f"optimizer.lr={LR}", f"optimizer.weight_decay={LAM}"]
    subdir = "hydra.sweep.subdir=seed${seed}"
    return {name.replace(" ", "_"): [*shared, subdir, *overrides] for name, overrides in VARIANTS.items()}


def report(runs: Path, out: Path) -> None:
    """Write each run's test loss and the picture."""
    rows, figure = [], new_figure(8, 3.6)
    axes = figure.subplots()
    for place, name in enumerate(VARIANTS):
        found = read_runs(runs / name.replace(" ", "_"))
        losses = [run.last["test/loss"] for run in found]
        rows += [(name, run.config["seed"], run.last["test/loss"]) for run in found]
        mean, half = mean_and_half_width(losses)
        axes.errorbar([mean], [place], xerr=[half], fmt="o", color="C0", capsize=4)
        axes.plot(losses, [place + 0.15] * len(losses), "x", color="0.4", markersize=5)
    axes.set_yticks(range(len(VARIANTS)), list(VARIANTS))
    axes.invert_yaxis()
    axes.set(xlabel="validation loss after the last step (nats per character)")
    axes.set_title(f"AdamW, lr {LR:g}, lam {LAM:g}: mean, 95 % interval and single seeds", fontsize=10)
    axes.grid(alpha=0.3)
    figure.savefig(out / "masks.png", dpi=130)
    write_csv(out / "runs.csv", ["variant", "seed", "loss_nats"], rows)
