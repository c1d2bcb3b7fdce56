"""Configs on ``hydra.searchpath`` could not take precedence over those of an installed package.

https://github.com/facebookresearch/hydra/issues/2758 (hydra#2758)

There: what lies where the package is installed always overrides what the user names in ``hydra.searchpath``.
Here: the pack is an entry of ``hydra.searchpath`` like any other. What the app names before it wins, and an app that
does not name the pack has its own options only.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.hydra_app import jobs, write_app

PACK = "pkg://lightning_wd.conf"


@pytest.mark.parametrize(
    ("searchpath", "target"),
    [
        ("[file://shared]", "torch.optim.AdamW"),
        (f"[file://shared, {PACK}]", "torch.optim.AdamW"),
        (f"[{PACK}, file://shared]", "lightning_wd.OptimizerConfig"),
    ],
)
def test_the_first_entry_of_the_searchpath_wins(searchpath: str, target: str, tmp_path: Path) -> None:
    app = write_app(
        tmp_path,
        {
            "conf/app.yaml": f"defaults: [{{optimizer: adamw}}, _self_]\nhydra: {{searchpath: {searchpath}}}\n",
            "shared/optimizer/adamw.yaml": "_target_: torch.optim.AdamW\nlr: 0.2\n",
        },
    )
    (job,) = jobs(app)
    assert (job["optimizer"]["_target_"], job["optimizer"]["lr"]) == (target, 0.2 if "torch" in target else 1e-3)
