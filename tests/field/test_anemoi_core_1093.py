"""A config folder that the user names on the command line lost to a folder that a search-path plugin brought.

https://github.com/ecmwf/anemoi-core/issues/1093 (anemoi-core#1093)

There: the plugin put its folders before the one of ``--config-path``, and training ran with other configs.
Here: the folder of ``--config-path`` or ``--config-dir`` wins, whether the app asks for the pack or not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.hydra_app import jobs, write_app

DEFAULTS = "defaults: [{optimizer: adamw}, _self_]\n"
ASKS = "hydra: {searchpath: [pkg://lightning_wd.conf]}\n"
OURS = "lightning_wd.OptimizerConfig"


@pytest.mark.parametrize("hydra", [ASKS, ""], ids=["asks", "does_not_ask"])
def test_a_folder_named_on_the_command_line_wins(hydra: str, tmp_path: Path) -> None:
    app = write_app(
        tmp_path,
        {
            "conf/app.yaml": DEFAULTS + hydra,
            "mine/app.yaml": DEFAULTS + hydra,
            "mine/optimizer/adamw.yaml": "_target_: torch.optim.AdamW\nlr: 0.2\n",
        },
    )
    mine = [{"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.2}}]
    assert jobs(app, "--config-path", "mine") == mine
    assert jobs(app, "--config-dir", "mine") == mine
    if hydra:
        (pack,) = jobs(app)
        assert pack["optimizer"]["_target_"] == OURS
