"""A real offline W&B run, read back: metrics with axes and summaries, the plan as a table, the config redacted."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.recipe import ROOT, run_folder, train, train_here
from helpers.small_run import CrashAfter, CrashError, Net, fit
from helpers.wandb_records import item, records

import lightning_wd as wd
from lightning_wd.runs.folder import RunCSVLogger

wandb = pytest.importorskip("wandb")
from lightning.pytorch.loggers import WandbLogger  # noqa: E402
from wandb_run import ID_FILE, resumed_id  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb", "ignore::DeprecationWarning:pydantic")


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/table/{name}*.json")
    logged = json.loads(path.read_text())
    return [dict(zip(logged["columns"], row, strict=True)) for row in logged["data"]]


def close() -> None:
    """Finish the run and wait until its file is whole.

    `finish` only sends wandb-core the message to close the file, which on a busy machine happens after it has returned:
    the last block of records, or all of them, are not there yet. `teardown` waits for wandb-core to end.
    """
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for one run, which is closed after the test."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    close()


def test_history_table_and_picture_are_what_was_logged(run: Path) -> None:
    loggers = [WandbLogger(save_dir=run, offline=True), RunCSVLogger(run)]
    config = {"name": "adamw", "lr": 0.1, "weight_decay": 1e-3}  # a timescale of 667 runs, which is warned of
    reference = {"global_batch": 8, "steps": 15}  # the run itself
    module = Net({**config, "reference": reference})
    fit(module, run, wd.DecayPlanSummary(), wd.DecayMonitor(5), logger=loggers, log_every_n_steps=5)
    close()
    history: dict[str, list[tuple[int | None, Any]]] = {}
    metrics = []
    carried: dict[str, Any] = {}
    for record in records(run):
        if record.HasField("config"):
            carried = dict(map(item, record.config.update)).get("carried_over", carried)
        if record.HasField("history"):
            row = dict(item(entry) for entry in record.history.item)
            for key, value in row.items():
                history.setdefault(key, []).append((row.get("trainer/global_step"), value))
        if record.HasField("metric"):
            metrics.append(record.metric)
    assert carried["reference"] == carried["here"] == {**reference, "lr": 0.1, "weight_decay": 1e-3}
    assert [step for step, _ in history["wd/decay/d_t"]] == [0, 5, 10]
    assert [value for _, value in history["wd/decay/d_t"]] == pytest.approx([1e-4] * 3)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key in [key for key in rows[0] if key not in ("step", "epoch")]:
        logged = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
        assert history[key] == [(step, pytest.approx(value, rel=1e-9)) for step, value in logged], key
    own = {key for key in history if not key.startswith(("_", "decay_", "wd_monitor", "trainer/"))}
    assert own == rows[0].keys() - {"step"}
    assert history["decay_plan.nrows"] == [(0, 8)]
    assert history["wd_monitor._type"][-1][1] == "images/separated"
    plan = json.loads((run / "decay_plan.json").read_text())
    columns = ["name", "shape", "numel", "group", "wd_mult", "weight_decay", "lr_mult", "lr", "style"]
    columns += ["toward", "optimizer", "reason"]
    parameters = [{**row, "shape": str(tuple(row["shape"]))} for row in plan["parameters"]]
    assert table(run, "decay_plan") == [{key: row.get(key) for key in columns} for row in parameters]
    assert len(plan["warnings"]) == 1
    first, second = table(run, "decay_groups")
    decay, no_decay = plan["groups"]
    assert first == {
        "optimizer": "AdamW",
        **{key: value for key, value in decay.items() if key != "units"},
        **decay["units"],
        "warnings": plan["warnings"][0],
    }
    assert second == {"optimizer": "AdamW", **no_decay, **dict.fromkeys(decay["units"]), "warnings": ""}
    assert {group["name"]: {key: group[key] for key in ("tensors", "numel")} for group in plan["groups"]} == (
        plan["totals"]
    )
    (axis,) = [metric for metric in metrics if metric.glob_name == "wd/*"]
    assert axis.step_metric == "trainer/global_step"
    assert (axis.summary.min, axis.summary.last) == (True, True)


def test_a_resumed_run_continues_the_same_run_id(run: Path) -> None:
    """The id and `resume` are WandbLogger's own settings; both halves carry the id."""

    def logger(folder: str) -> WandbLogger:
        (run / folder).mkdir()
        return WandbLogger(save_dir=run / folder, offline=True, id="same-run", resume="allow")

    config = {"name": "adamw"}
    with pytest.raises(CrashError):
        fit(Net(config), run, wd.DecayMonitor(1), CrashAfter(7, run / "c.ckpt"), logger=logger("first"))
    close()
    fit(Net(config), run, wd.DecayMonitor(1), logger=logger("second"), ckpt_path=run / "c.ckpt")
    close()
    steps = []
    for half in ("first", "second"):
        for record in records(run / half):
            if record.HasField("run"):
                assert record.run.run_id == "same-run"
            if record.HasField("history"):
                row = dict(item(entry) for entry in record.history.item)
                if "wd/decay/d_t" in row:
                    steps.append(row["trainer/global_step"])
    assert steps == list(range(15))


@pytest.mark.slow
def test_the_recipe_logs_its_config_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-7f3a9c")
    done = train_here(
        "logger=wandb_offline",
        "callbacks=decay_monitor",
        "trainer.max_epochs=1",
        "+note='${oc.env:MY_API_KEY}'",
        cwd=tmp_path,
    )
    folder = run_folder(done)
    config: dict[str, Any] = {}
    names, ids, metrics = set(), set(), {}
    for record in records(folder):
        if record.HasField("metric"):
            metrics[record.metric.name] = record.metric
        if record.HasField("config"):
            config.update(item(entry) for entry in record.config.update)
        if record.HasField("run"):
            config.update(item(entry) for entry in record.run.config.update)
            ids.add(record.run.run_id)
        if record.HasField("history"):
            names |= {item(entry)[0] for entry in record.history.item}
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: value for key, value in config.items() if key != "_wandb"} == saved
    assert config["note"] == "${oc.env:MY_API_KEY}"
    assert {"wd/decay/d_t", "wd/no_decay/weight_norm", "decay_plan.nrows", "train/loss"} <= names
    written = [path for path in folder.rglob("*") if path.is_file() and b"canary-7f3a9c" in path.read_bytes()]
    assert written == []
    for name, best in {"val/loss": "min", "val/acc": "max"}.items():
        assert metrics[name].step_metric == "trainer/global_step"
        assert (metrics[name].summary.last, getattr(metrics[name].summary, best)) == (True, True)
    resumed = run_folder(train("logger=wandb_offline", "trainer.max_epochs=2", "ckpt_path=last", cwd=tmp_path))
    assert resumed != folder
    assert {record.run.run_id for record in records(resumed) if record.HasField("run")} == ids


def test_each_job_of_a_sweep_is_its_own_run(tmp_path: Path) -> None:
    """They may all start from one checkpoint; a job that resumes its own continues its run."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ID_FILE).write_text(f"{name}-id\n")
    path = str(tmp_path / "first/checkpoints/last.ckpt")
    assert resumed_id(path, tmp_path / "second", sweep=False) == "first-id"
    assert resumed_id(path, tmp_path / "second", sweep=True) is None
    assert resumed_id(path, tmp_path / "first", sweep=True) == "first-id"
    assert resumed_id(str(tmp_path / "third/checkpoints/last.ckpt"), tmp_path / "third", sweep=False) is None
    assert resumed_id(None, tmp_path / "first", sweep=False) is None


def test_the_recipe_understands_the_sweeps_command() -> None:
    sweep = yaml.safe_load((ROOT / "recipes/wandb_sweep.yaml").read_text())
    assert sweep["command"] == ["${env}", "python", "${program}", "${args_no_hyphens}"]
    assert (ROOT / sweep["program"]).is_file()
    from hydra import compose, initialize_config_dir

    for end in (0, -1):
        chosen = {
            k: p["value"] if "value" in p else [*p.get("values", (p.get("min"), p.get("max")))][end]
            for k, p in sweep["parameters"].items()
        }
        with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
            cfg = compose("train", [f"{key}={value}" for key, value in chosen.items()])
        assert cfg.logger.wandb._target_ == "lightning.pytorch.loggers.WandbLogger"
        assert cfg.optimizer.lr == chosen["optimizer.lr"]
