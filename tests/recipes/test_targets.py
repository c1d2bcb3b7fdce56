"""The classes that a config may name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from targets import check_targets

from lightning_wd.errors import ConfigError

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
    configs: dict[str, dict[str, Any]] = {
        "x": {"x": bad},
        "list": {"x": [1, bad]},
        "deep": {"_target_": "lightning.pytorch.Trainer", "callbacks": {"a": [{"b": bad}]}},
        "interpolated": {"name": target, "x": {"_target_": "${name}"}},
    }
    with pytest.raises(ConfigError, match=r"_target_ '[\w.]+' is not a class that a config may name"):
        check_targets(OmegaConf.create(configs[where]))


def test_hydra_alone_would_call_what_the_list_refuses(tmp_path: Path) -> None:
    """Why there is a list."""
    config = OmegaConf.create({"_target_": "builtins.open", "file": str(tmp_path / "canary"), "mode": "w"})
    with pytest.raises(ConfigError):
        check_targets(config)
    assert not (tmp_path / "canary").exists()
    instantiate(config).close()
    assert (tmp_path / "canary").exists()


def test_own_targets_are_allowed_by_exact_name_only() -> None:
    check_targets({"model": {"_target_": "models.mlp.MLP"}})
    with pytest.raises(ConfigError, match=r"nearest: 'models\.mlp\.MLP'"):
        check_targets({"model": {"_target_": "models.mlp.MLPs"}})


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
    from targets import TARGETS

    assert [target for target in sorted(TARGETS) if not isinstance(get_class(target), type)] == []
