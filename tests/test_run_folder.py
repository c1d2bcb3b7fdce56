"""A run's folder: no secret in config.yaml, metrics.csv continued on resume, a picture; and the list of targets."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_wd.errors import ConfigError
from lightning_wd.pictures import curves, read_metrics
from lightning_wd.run import RunCSVLogger, redact, refuse_secrets, run_dir, save_config
from lightning_wd.targets import check_targets

CANARY = "canary-93f1c7"


def test_no_secret_reaches_config_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{CANARY}-wandb")
    monkeypatch.setenv("PLAIN_NAME", f"{CANARY}-plain")
    config = OmegaConf.create(
        {
            "lr": 0.1,
            "keys": 3,
            "tokenizer": "bpe",
            "monkey": "kept",
            "wandb": {"api_key": f"{CANARY}-a", "project": "p"},
            "hub": {"HF_TOKEN": f"{CANARY}-b", "tokens": ["x"]},
            "note": "${oc.env:WANDB_API_KEY}",
            "alias": "${note}",
            "other": "${oc.env:PLAIN_NAME}",
            "inside": "https://u:${other}@host",
            "copied": f"see {CANARY}-wandb",
            "list": [{"password": f"{CANARY}-c"}],
        }
    )
    save_config(config, tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    assert CANARY not in text
    saved = yaml.safe_load(text)
    assert (saved["lr"], saved["keys"], saved["tokenizer"], saved["monkey"]) == (0.1, 3, "bpe", "kept")
    assert saved["wandb"] == {"api_key": "<redacted>", "project": "p"}
    assert saved["note"] == "${oc.env:WANDB_API_KEY}"
    assert saved["alias"] == "<redacted>"
    assert saved["copied"] == "see <redacted>"
    assert CANARY in str(OmegaConf.to_container(config, resolve=True))  # the proof can fail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", 123456789012),
        ("apiToken", "zzzzzzz"),
        ("hub.accessKey", "zzzzzzz"),
        ("auth", "B"),
        ("wandb.key", "x"),
        ("db_pwd", "x"),
        ("secret", ["a", "b"]),
        ("openai_key", "zzzzzzz"),
        ("hub.api_keys", ["zzzzzzz"]),
        ("x-api-key", "zzzzzzz"),
        ("hf-token", "zzzzzzz"),
        ("AUTHTOKEN", "zzzzzzz"),
        ("ssh_key", "zzzzzzz"),
        ("passwords", ["zzzzzzz"]),
        ("token", "${oc.env:NO_SUCH_VARIABLE,zzzzzzz}"),
        ("auth", "Bearer zzzzzzz ${oc.env:HOME}"),
    ],
)
def test_what_counts_as_a_secret(name: str, value: Any) -> None:
    for config in ({name: value}, OmegaConf.create({name: value})):
        assert "zzz" not in str(redact(config))
        assert "<redacted>" in str(redact(config))
    if not isinstance(value, list):
        with pytest.raises(ConfigError, match="is a secret, and a command line is no place for one"):
            refuse_secrets([f"+{name}='{value}'" if isinstance(value, str) else f"+{name}={value}"])


@pytest.mark.parametrize("value", ["${oc.env:A_NAME}", "Bearer ${oc.env:A_NAME}", "${oc.env:A_NAME,null}"])
def test_what_only_reads_the_environment_stays_as_it_is_written(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_NAME", CANARY)
    refuse_secrets([f"+auth='{value}'"])
    assert redact(OmegaConf.create({"auth": value})) == {"auth": value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_dim", 64),
        ("sort_key", "name"),
        ("image-key", "jpg"),
        ("eos_token", "</s>"),
        ("max_token", 5),
        ("token", 12),
        ("tokens", "all"),
        ("api_key", None),
    ],
)
def test_what_does_not(name: str, value: Any) -> None:
    assert redact({name: value}) == {name: value}
    written = f"'{value}'" if isinstance(value, str) else "null" if value is None else f"{value},{value}"
    refuse_secrets([f"model.{name}={written}", f"+a.{name}=${{oc.env:X}}"])


def test_the_value_of_a_secret_variable_is_one_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary93")
    monkeypatch.setenv("DB_PASSWORD", "admin")  # too short to stop a run that says it by chance
    with pytest.raises(ConfigError) as caught:
        refuse_secrets(["+user=admin", "+url='https://user:hf_canary93@hub.example/x'"])
    assert str(caught.value) == (
        "+url holds a secret, and a command line is no place for one.\n"
        "  found: the value of the environment variable HF_TOKEN\n"
        "  fix: write ${oc.env:HF_TOKEN} in its place, in single quotes, so that the config reads it"
    )
    refuse_secrets(["+url='https://user:${oc.env:HF_TOKEN}@hub.example/x'"])


def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shell exports it as PWD, the name of many a password; the other ranks are started with a folder in it."""
    monkeypatch.setenv("PWD", "/home/me/project")
    refuse_secrets(["hydra.run.dir=/home/me/project/outputs"])
    assert redact({"root": "/home/me/project/data"}) == {"root": "/home/me/project/data"}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+m={x: {token: zzz}}", "+m.x.token"),
        ("+m=[1, {api_key: 'zzz'}]", "+m.api_key"),
        ("+m={x: {y: 1}},{x: {token: 'zzz'}}", "+m.x.token"),
        ("++password={user: zzz}", "++password.user"),
        ("api_key=zzz,'yyy'", "api_key"),
        ("+hydra.job.env_set.MY_TOKEN=zzz", "+hydra.job.env_set.MY_TOKEN"),
    ],
)
def test_a_secret_is_found_at_any_depth(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_secrets([override])
    assert str(caught.value).startswith(f"{key} is a secret, and a command line is no place for one.\n  found: ")
    assert f"write '{key}=${{oc.env:NAME}}'" in str(caught.value)
    assert "zzz" not in str(caught.value)


def test_redact_takes_plain_containers_too() -> None:
    assert redact({"a": [{"secret": "s"}], "b": ("x", 1)}) == {"a": [{"secret": "<redacted>"}], "b": ["x", 1]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_logger_in_the_same_folder_appends(tmp_path: Path) -> None:
    first = RunCSVLogger(tmp_path)
    first.log_metrics({"loss": 1.0}, step=1)
    first.save()
    second = RunCSVLogger(tmp_path)
    second.log_metrics({"loss": 0.5}, step=2)
    second.save()
    second.log_metrics({"acc": 0.25}, step=3)  # a new column: the file is written anew
    second.save()
    assert rows(tmp_path / "metrics.csv") == [
        {"acc": "", "loss": "1.0", "step": "1"},
        {"acc": "", "loss": "0.5", "step": "2"},
        {"acc": "0.25", "loss": "", "step": "3"},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv"]


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    """Killed after step 7 was logged and while step 8 was, resumed from the checkpoint of 6 steps (0 to 5)."""
    killed = RunCSVLogger(tmp_path)
    for step in (3, 5, 7):
        killed.log_metrics({"loss": float(step)}, step=step)
    killed.save()
    with (tmp_path / "metrics.csv").open("a", newline="") as file:
        file.write("8.")
    resumed = RunCSVLogger(tmp_path)
    resumed.rewind(6)
    resumed.log_metrics({"loss": 0.5}, step=7)
    resumed.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("3", "3.0"),
        ("5", "5.0"),
        ("7", "0.5"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv"]


def test_a_crash_while_rewriting_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full_disk)
    logger.log_metrics({"acc": 0.25}, step=2)
    with pytest.raises(OSError, match="No space left"):
        logger.save()
    assert rows(tmp_path / "metrics.csv") == [{"loss": "1.0", "step": "1"}]


def test_the_folder_is_the_working_directory_without_hydra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_dir() == tmp_path
    assert Path(RunCSVLogger().log_dir).resolve() == tmp_path


def test_curves_draws_what_was_logged(tmp_path: Path) -> None:
    assert curves(tmp_path, "empty") is None
    logger = RunCSVLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0 / (step + 1), "val/acc": 0.5, "lr-AdamW/decay": 0.1}, step=step)
    logger.log_metrics({"test/acc": 0.75}, step=3)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv")["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    picture = curves(tmp_path, "title")
    assert picture == tmp_path / "curves.png"
    from matplotlib.image import imread

    height, width, _ = imread(picture).shape
    assert width > height > 200


BAD_TARGETS = [
    "os.system",
    "posix.system",
    "logging.os.system",  # the same one by another path
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "runpy.run_path",
    "shutil.rmtree",
    "subprocess.run",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "joblib.load",
    "numpy.load",
    "torch.hub.load",
    "torch.ops.load_library",
    "torch.utils.cpp_extension.load_inline",
    "sympy.sympify",
    "urllib.request.urlretrieve",
    "wandb.login",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.Trainer.from_argparse_args",
]


@pytest.mark.parametrize("target", BAD_TARGETS)
@pytest.mark.parametrize("where", ["x", "list", "deep", "interpolated"])
def test_targets_off_the_list_are_refused(target: str, where: str) -> None:
    bad = {"_target_": target}
    config = {
        "x": {"x": bad},
        "list": {"x": [1, bad]},
        "deep": {"_target_": "lightning.pytorch.Trainer", "callbacks": {"a": [{"b": bad}]}},
        "interpolated": {"name": target, "x": {"_target_": "${name}"}},
    }[where]
    with pytest.raises(ConfigError, match=r"_target_ '[\w.]+' is not a class that a config may name"):
        check_targets(OmegaConf.create(config))


def test_hydra_alone_would_call_what_the_list_refuses(tmp_path: Path) -> None:
    """Why there is a list."""
    config = OmegaConf.create({"_target_": "builtins.open", "file": str(tmp_path / "canary"), "mode": "w"})
    with pytest.raises(ConfigError):
        check_targets(config)
    assert not (tmp_path / "canary").exists()
    instantiate(config).close()
    assert (tmp_path / "canary").exists()


def test_own_targets_are_allowed_by_exact_name_only() -> None:
    config = {"model": {"_target_": "models.mlp.MLP"}}
    check_targets(config, own=("models.mlp.MLP",))
    with pytest.raises(ConfigError, match=r"nearest: 'models\.mlp\.MLP'"):
        check_targets({"model": {"_target_": "models.mlp.MLPs"}}, own=("models.mlp.MLP",))


@dataclass
class Bad:
    """What Hydra would instantiate as well."""

    _target_: str = "builtins.open"
    file: str = "canary"
    mode: str = "w"


@pytest.mark.parametrize(
    "config",
    [{"x": OmegaConf.create({"_target_": "builtins.open"})}, [OmegaConf.create({"_target_": "builtins.open"})],
     Bad(), {"x": Bad()}, [{"y": [Bad()]}], OmegaConf.structured(Bad)],
)  # fmt: skip
def test_targets_are_found_in_whatever_hydra_reads(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"_target_ 'builtins\.open' is not a class that a config may name"):
        check_targets(config)
    check_targets({"x": [None, 1, "text"], "y": object()})


@pytest.mark.parametrize("target", [{"a": "b"}, ["lightning.pytorch.Trainer"], None])
def test_a_target_that_is_no_name_is_refused_too(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x\._target_ .* is not a class that a config may name"):
        check_targets(OmegaConf.create({"x": {"_target_": target}}))


def test_every_target_on_the_list_exists() -> None:
    from hydra.utils import get_class

    from lightning_wd.targets import TARGETS

    assert [target for target in sorted(TARGETS) if not isinstance(get_class(target), type)] == []
