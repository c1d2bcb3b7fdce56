"""No secret in what a run writes, and none on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_wd.errors import ConfigError
from lightning_wd.runs.folder import save_config
from lightning_wd.runs.secrets import redact, refuse_secrets

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
        with pytest.raises(ConfigError, match="looks like a secret; do not put it on the command line"):
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
    assert str(caught.value).startswith(f"{key} looks like a secret; do not put it on the command line.\n  found: ")
    assert f"write '{key}=${{oc.env:NAME}}'" in str(caught.value)
    assert "zzz" not in str(caught.value)


def test_redact_takes_plain_containers_too() -> None:
    assert redact({"a": [{"secret": "s"}], "b": ("x", 1)}) == {"a": [{"secret": "<redacted>"}], "b": ["x", 1]}
