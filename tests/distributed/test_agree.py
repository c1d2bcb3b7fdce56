"""Ranks compare their configs: what counts, what does not, and what a difference is called."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from helpers.ddp import APP, TORCHRUN, records, run
from omegaconf import DictConfig, OmegaConf

from lightning_wd.distributed.agree import _disagreements, _settings

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


def test_ranks_with_different_configs_and_environments_stop_with_the_differences_shown(tmp_path):
    rank = "import os, runpy, sys; os.environ['MY_RATE'] = f'rate-{os.environ[\"RANK\"]}'; del sys.argv[0]"
    script = tmp_path / "rank.py"
    script.write_text(f"{rank}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    overrides = ["differ=true", "foo=4", "+rate='${oc.env:MY_RATE}'"]
    output = run(tmp_path, [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(script), str(APP), *overrides], 1)
    digests = [hashlib.sha256(f"rate-{rank}".encode()).hexdigest()[:8] for rank in (0, 1)]
    for line in (
        "ConfigError: the 2 ranks of this job have different configs.",
        f"  found: ${{oc.env:MY_RATE}} is sha256 {digests[0]} on rank 0, sha256 {digests[1]} on rank 1; "
        "foo is 4 on rank 0, 5 on rank 1",
        "  fix: give every rank the same overrides and environment; "
        "start a sweep once and let trainer=ddp start the other ranks",
    ):
        assert output.count(line) >= 2, output  # each rank says so
    assert "rate-1" not in output
    assert records(tmp_path) == {}


def settings(config: dict[str, Any], *, resolved: bool = False) -> dict[str, str]:
    """What ranks compare of a config, in an app that has resolved it in place or not."""
    composed, own = OmegaConf.create(config), OmegaConf.create(config)
    if resolved:
        OmegaConf.resolve(own)
    return _settings(composed, own)


@pytest.mark.parametrize("resolved", [False, True])
def test_paths_hosts_ranks_and_secrets_do_not_count(monkeypatch, resolved):
    config = {
        "lr": 0.1,
        "root": "${oc.env:SCRATCH_FOLDER}",
        "data": "${root}/mnist",
        "run": "on ${oc.env:NODE_NAME}",
        "host": "gpu-node-one",
        "rank": "${oc.decode:${oc.env:LOCAL_RANK}}",
        "hub": "${oc.env:HUB_TOKEN}",
        "url": "https:user:${hub}@hub",
        "api_key": "abcdef",
        "auth": {"user": ["me"]},
    }
    ranks = []
    for rank, name in enumerate(["one", "two"]):
        for variable, value in {
            "SCRATCH_FOLDER": f"/scratch/{name}",
            "NODE_NAME": f"gpu-node-{name}",
            "HUB_TOKEN": f"canary-{name}",
            "LOCAL_RANK": str(rank),
        }.items():
            monkeypatch.setenv(variable, value)
        ranks.append(settings({**config, "api_key": f"key-{name}", "auth": {"user": [name]}}, resolved=resolved))
    assert ranks[0] == ranks[1]
    assert not any(secret in repr(ranks) for secret in ("canary", "key-one", "key-two"))
    assert settings({**config, "lr": 0.2}) != ranks[0]


def test_numbers_and_words_from_the_environment_count(monkeypatch):
    """A variable that only one machine has changes what its ranks train; a path does not."""
    config = {"groups": [{"lr": "${oc.decode:${oc.env:MY_RATE}}"}], "style": "${oc.env:MY_STYLE}", "token": "abcdefg"}
    monkeypatch.setenv("MY_RATE", "0.1")
    monkeypatch.delenv("MY_STYLE", raising=False)
    first = settings(config)
    assert first == {
        "groups[0].lr": "'${oc.decode:${oc.env:MY_RATE}}'",
        "style": "'${oc.env:MY_STYLE}'",
        "token": "<redacted>",
        "${oc.env:MY_RATE}": "sha256 14be4b45",
        "${oc.env:MY_STYLE}": "unset",
    }
    monkeypatch.setenv("MY_RATE", "0.01")
    monkeypatch.setenv("MY_STYLE", "constant")
    second = settings(config)
    assert _disagreements([(first, first), (second, second)]) == [
        "${oc.env:MY_RATE} is sha256 14be4b45 on rank 0, sha256 312b95ee on rank 1",
        f"${{oc.env:MY_STYLE}} is unset on rank 0, {second['${oc.env:MY_STYLE}']} on rank 1",
    ]


def test_a_value_that_the_job_has_changed_counts():
    composed = OmegaConf.create({"foo": 1, "bar": {"a": "${foo}"}})
    changed: DictConfig = OmegaConf.create({"foo": 2, "bar": {"a": 1}})
    assert _settings(composed, changed) == {"foo": "2", "bar.a": "'${foo}'"}


def test_every_difference_is_named_with_its_ranks():
    ranks = [{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2", "c": "'x'"}]
    shown = [*ranks[:2], {**ranks[2], "c": "'<redacted>'"}]
    assert _disagreements(list(zip(ranks, shown, strict=True))) == [
        "b is 2 on rank 0 2, 3 on rank 1",
        "c is absent on rank 0 1, '<redacted>' on rank 2",
    ]
    assert _disagreements([(ranks[0], shown[0]), (ranks[0], shown[0])]) == []
