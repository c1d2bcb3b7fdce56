"""What the mask, the embeddings, ``cautious`` and the coupling do to a character GPT on Tiny Shakespeare."""

from __future__ import annotations

from pathlib import Path

from studies.finished_runs import SMOKE, mean_and_half_width, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, in_style, panels, save

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
    """Write each run's loss."""
    finished = read_runs(runs)
    rows = [
        (name, run.config["seed"], run.last["test/loss"])
        for name in VARIANTS
        for run in finished
        if run.folder.parent.name == name.replace(" ", "_")
    ]
    write_csv(out / "runs.csv", ["variant", "seed", "loss_nats"], rows)


@in_style()
def draw(out: Path) -> None:
    """Draw each loss minus the standard mask's of the same seed: seeds differ more than masks."""
    losses: dict[str, dict[float, float]] = {name: {} for name in VARIANTS}
    for row in read_csv(out / "runs.csv"):
        losses[row["variant"]][row["seed"]] = row["loss_nats"]
    standard = losses["standard mask"]
    title = f"A character GPT by AdamW, lr {LR:g}, lam {LAM:g}"
    figure, (axes,) = panels(1, title, height=3.2)
    for place, found in enumerate(losses.values()):
        against = [loss - standard[seed] for seed, loss in found.items()]
        mean, half = mean_and_half_width(against)
        axes.errorbar([mean], [place], xerr=[half], fmt="o", color=COLORS[0], capsize=4)
        axes.plot(against, [place + 0.25] * len(against), "x", color=COLORS[1])
    axes.set_yticks(range(len(VARIANTS)), list(VARIANTS))
    axes.invert_yaxis()
    axes.axvline(0.0, color="0.4", linewidth=0.8, zorder=0)
    axes.set(xlabel="validation loss minus the standard mask's, same seed (nats per character)")
    axes.set_title(f"crosses: {len(standard)} seeds; dots: their mean, with its 95 % interval")
    save(figure, out / "masks.png")
