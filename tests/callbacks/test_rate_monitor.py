"""RateMonitor: Lightning's monitor, with and without a logger."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.small_run import Net, fit
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger

import lightning_wd.conf  # noqa: F401  the pack's resolvers
from lightning_wd.callbacks import RateMonitor

RESTARTS = {"name": "cosine_restarts", "first_cycle_epochs": 1}
CONF = Path(__file__).parents[2] / "conf"


GROUPS = {path.stem for path in (CONF / "callbacks").glob("*.yaml")} - {"schedule_free"}  # for an optimizer of its kind


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_group_of_callbacks_trains_without_a_logger(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        callbacks = instantiate(compose(overrides=[f"+callbacks={group}"])).get("callbacks", {})
    module = Net(
        {"lr": 0.01, "decay": {"style": "independent", "normalized": 0.5}}, RESTARTS if "restarts" in group else None
    )
    trainer = fit(module, tmp_path, *callbacks.values(), max_epochs=1, enable_checkpointing=True)
    assert trainer.global_step == 5


def test_with_a_logger_it_is_lightnings_own(tmp_path: Path) -> None:
    monitor, logger = RateMonitor("step", log_weight_decay=True), CSVLogger(tmp_path, name="", version="")
    fit(Net({"lr": 0.01}), tmp_path, monitor, logger=logger, max_epochs=1, log_every_n_steps=1)
    header = (tmp_path / "metrics.csv").read_text().partition("\n")[0]
    assert {"lr-AdamW/decay", "lr-AdamW/decay-weight_decay"} <= set(header.split(","))
