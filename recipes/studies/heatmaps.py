"""Fig. 2 of arXiv 1711.05101: test error over learning rate and weight decay, for L2 and for decoupled decay.

SGDW and AdamW run in the paper's own coupling, ``independent`` (``d_t = eta_t * lam``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from studies.finished_runs import base, read_csv

from lightning_wd.runs.heatmap import Cell, write_heatmap, write_pictures

# optimizer -> decay style, exponents of 2 of lr0 and lam: [first, last, step]
GRIDS = {
    "sgd_l2": ("l2", "[-7,-2]", "[-13,-3,2]"),
    "sgdw": ("independent", "[-7,1]", "[-14,-4,2]"),
    "adam_l2": ("l2", "[-10,-2]", "[-25,-5,2]"),
    "adamw": ("independent", "[-10,-2]", "[-14,-4,2]"),
}


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    made = {}
    for optimizer, (style, lr, decay) in GRIDS.items():
        grid = [lr, decay] if not smoke else ["[-8,-4,2]", "[-10,-6,4]"]
        made[optimizer] = [
            "hparams_search=lr_wd_grid",
            *base(data, smoke),
            f"optimizer={optimizer}",
            f"optimizer/decay={style}",
            f"hparams_search.lr={grid[0]}",
            f"hparams_search.weight_decay={grid[1]}",
            f"hparams_search.seed='{'0' if smoke else '0,1,2'}'",
        ]
    return made


def report(runs: Path, out: Path) -> None:
    """Copy the numbers of the runs to the study's folder."""
    write_heatmap(runs)
    for name in ("heatmap.csv", "separability.csv"):
        shutil.copy(runs / name, out / name)


def draw(out: Path) -> None:
    """Draw the heatmap from the study's numbers."""
    rows = read_csv(out / "heatmap.csv")
    metric = rows[0]["metric"]
    write_pictures(out, [Cell(*(row[key] for key in Cell._fields)) for row in rows], metric)
