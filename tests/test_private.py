"""Each private name of a library: it is what its stand-in stands for, and without it the package still works."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.recipe import ROOT
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

import lightning_wd as wd
from lightning_wd import _private
from lightning_wd._private import NAMES

# Private methods and attributes of library classes that our subclasses override or set: (module, class, name). If one
# is renamed, ours is silently unused.
OVERRIDDEN = (
    ("lightning.pytorch.strategies", "DDPStrategy", "_configure_launcher"),
    ("lightning.pytorch.strategies", "ModelParallelStrategy", "_configure_launcher"),
    ("lightning.pytorch.strategies", "Strategy", "_launcher"),
    ("pytorch_lightning.strategies", "DDPStrategy", "_configure_launcher"),
    ("pytorch_lightning.strategies", "ModelParallelStrategy", "_configure_launcher"),
    ("lightning.pytorch.loggers.csv_logs", "ExperimentWriter", "_check_log_dir_exists"),
    ("lightning.pytorch.loggers.csv_logs", "ExperimentWriter", "_rewrite_with_new_header"),
    ("lightning.pytorch.loggers", "CSVLogger", "_experiment"),
    ("torch.optim.lr_scheduler", "LRScheduler", "_last_lr"),
)
LIBRARIES = ("torch", "lightning", "pytorch_lightning", "hydra", "omegaconf")


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_versions_have_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    vars(_private).pop(name, None)
    assert getattr(_private, name) is not NAMES[name].stand_in
    assert caplog.records == []
    assert _private.missing(name) == []


@pytest.mark.parametrize(("module", "cls", "name"), OVERRIDDEN)
def test_what_we_override_exists(module: str, cls: str, name: str) -> None:
    mro = getattr(import_module(module), cls).__mro__
    assert any(name in private_names_of(base) for base in mro)


def test_nothing_else_of_a_library_class_is_overridden() -> None:
    """Our subclasses neither use nor hide, by accident, a private name of the library's class."""
    listed = {name for _, _, name in OVERRIDDEN}
    found = []
    for info in pkgutil.walk_packages(wd.__path__, "lightning_wd."):
        for cls in vars(import_module(info.name)).values():
            if not isinstance(cls, type) or cls.__module__ != info.name:
                continue
            for base in cls.__mro__[1:]:
                if base.__module__.startswith(
                    ("torch", "lightning.", "lightning_fabric", "pytorch_lightning", "hydra")
                ):
                    shared = private_names_of(cls) & private_names_of(base) - listed
                    found += [f"{cls.__qualname__} and {base.__qualname__}: {name}" for name in sorted(shared)]
    assert found == []


@functools.cache
def private_names_of(cls: type) -> frozenset[str]:
    """Return the private names that the body of a class defines, or that its methods take from ``self``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # a class made while running
        return frozenset()
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            names.add(node.attr)
    return frozenset(name for name in names if name.startswith("_") and not name.startswith("__"))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("foreach_add", lambda f: f([torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)], alpha=-0.5)),
        ("foreach_add_", lambda f: _in_place(f, 0.5)),
        ("foreach_mul", lambda f: f([torch.ones(2), torch.ones(3)], 0.5)),
        ("foreach_mul", lambda f: f([torch.ones(2), torch.ones(3)], torch.tensor(0.5))),
        ("foreach_sub_", lambda f: _in_place(f, [torch.ones(2), torch.ones(3)])),
        ("get_scalar_dtype", lambda f: f(is_fused=True)),
        ("device_dtype_check_for_fused", lambda f: f(torch.ones(2))),
        ("set_num_threads_if_needed", lambda f: f(num_processes=1)),
        ("disable_dynamo", lambda f: f(lambda x: -x)(-3)),
    ],
)
def test_a_stand_in_does_what_the_name_does(name: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own, instead = call(getattr(_private, name)), call(NAMES[name].stand_in)
    if isinstance(own, (list, tuple)):
        assert all(torch.equal(a, b) for a, b in zip(own, instead, strict=True))
    else:
        assert own == instead


def _in_place(function: Any, second: Any) -> list[Tensor]:
    tensors = [torch.full((2,), 3.0), torch.full((3,), 3.0)]
    function(tensors, second)
    return tensors


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("NormBase", nn.BatchNorm2d(2)),
        ("NormBase", nn.InstanceNorm1d(2)),
        ("ConvNd", nn.Conv2d(1, 1, 1)),
        ("ConvNd", nn.ConvTranspose3d(1, 1, 1)),
    ],
)
def test_the_public_classes_stand_in_for_their_base(name: str, module: nn.Module) -> None:
    assert isinstance(module, getattr(_private, name))
    assert isinstance(module, NAMES[name].stand_in)


def test_a_name_that_is_gone_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delitem(vars(_private), "fused_sgd_", raising=False)
    monkeypatch.delattr(torch, "_fused_sgd_")
    assert (_private.fused_sgd_, _private.fused_sgd_) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        f"torch {version('torch')} has no torch._fused_sgd_: decay outside a kernel takes the foreach kernels"
    ]
    assert _private.missing("fused_sgd_") == ["fused_sgd_"]
    del _private.fused_sgd_
    with pytest.raises(AttributeError, match="has no attribute 'fused_sgd'"):
        _ = _private.fused_sgd


class Bare:
    """An object that no longer has the attributes that we read; it has the public ones."""

    automatic_optimization = True
    global_step = 7
    world_size = 4

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("read", "expected", "warned"),
    [
        (lambda: _private.attached_trainer(Bare()), None, "Bare._trainer: pass total_steps"),
        (
            lambda: _private.logged_step(Bare(fit_loop=Bare(epoch_loop=Bare()))),
            6,
            "Bare._batches_that_stepped: metrics",
        ),
        (lambda: _private.forget_loader(Bare(fit_loop=Bare())), None, "Bare._combined_loader: a run resumed"),
        (lambda: _private.fill_mesh(Bare()), None, "Bare._tensor_parallel_size: pass data_parallel_size"),
        (lambda: _private.fill_mesh(Bare(_tensor_parallel_size=1)), None, "Bare._data_parallel_size: pass data_parall"),
    ],
)
def test_an_attribute_that_is_gone_is_logged_once(
    read: Any, expected: Any, warned: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _private._warn_missing.cache_clear()
    monkeypatch.setattr(_private, "version", lambda library: "9.9")
    assert [read(), read()] == [expected, expected]
    (record,) = caplog.records
    assert warned in record.getMessage()


def test_the_attributes_that_are_read(caplog: pytest.LogCaptureFixture) -> None:
    """They exist in the installed versions: nothing is logged."""
    _private._warn_missing.cache_clear()
    module = BoringModel()
    trainer = L.Trainer(accelerator="cpu", logger=False, max_steps=1, enable_checkpointing=False)
    assert _private.attached_trainer(module) is _private.attached_trainer(nn.Linear(1, 1)) is None
    module.trainer = trainer
    assert _private.attached_trainer(module) is trainer
    assert _private.logged_step(trainer) == 0
    _private.forget_loader(trainer)
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    _private.fill_mesh(strategy)
    assert strategy._data_parallel_size == strategy.world_size == 1
    assert _private.inner_schedulers(object()) == _private.per_group_lists(object()) == []
    optimizer = torch.optim.SGD([torch.ones(1)], lr=1.0)
    step = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert [name for name, _ in _private.per_group_lists(step)] == ["base_lrs", "_last_lr"]
    assert _private.inner_schedulers(torch.optim.lr_scheduler.ChainedScheduler([step])) == [step]
    assert _private.current_job() is None
    assert [record for record in caplog.records if record.name == _private.__name__] == []


def test_without_run_job_the_ranks_say_that_they_compare_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import hydra.core.utils

    _private._warn_missing.cache_clear()
    monkeypatch.delattr(hydra.core.utils, "run_job")
    assert _private.current_job() is None
    (record,) = caplog.records
    assert "has no hydra.core.utils.run_job: ranks compare no configs" in record.getMessage()


def test_without_hydras_call_errors_do_not_name_a_nested_group(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hydra._internal.instantiate import _instantiate2

    _private._warn_missing.cache_clear()
    monkeypatch.delattr(_instantiate2, "_call_target")
    assert _private.instantiated_key(wd.OptimizerConfig) is None
    (record,) = caplog.records
    assert "has no hydra._internal.instantiate._instantiate2._call_target: errors do not name" in record.getMessage()


def test_without_fsdps_shapes_every_parameter_counts_as_flattened(caplog: pytest.LogCaptureFixture) -> None:
    _private._warn_missing.cache_clear()
    wrapper = nn.Linear(2, 2)
    vars(wrapper)["_handle"] = Bare(flat_param=torch.ones(6))
    assert _private.fsdp1_shapes(wrapper) == []
    assert [record.getMessage().partition(" has no ")[2] for record in caplog.records] == [
        f"torch.Tensor.{name}: all parameters under FSDP1 are refused as flattened"
        for name in ("_param_infos", "_shapes")
    ]
    vars(wrapper.weight)["_fsdp_flattened"] = True
    assert [_private.is_fsdp1_piece(p) for p in wrapper.parameters()] == [True, False]


# --- the package without a name ---------------------------------------------------------------------------------------

# One process loads the libraries; then each name that it is asked about is removed in a fork of its own.
WITHOUT = """
import importlib, json, logging, os, pkgutil, sys, tempfile
import lightning.pytorch, lightning_wd, torch
import hydra, matplotlib.figure, rich.table, torch._dynamo, torch._inductor.codecache  # once, not in each fork
import lightning_wd as wd
from lightning_wd import _private
from torch import nn

compiled = tempfile.TemporaryDirectory()  # the package is compiled once, in the first fork
sys.pycache_prefix, sys.dont_write_bytecode = compiled.name, False

def weights(build, steps=3):
    torch.manual_seed(0)
    net = torch.nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    optimizer = build(net.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 1, 3, 3)).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()

def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def probe(name):
    if name is not None:
        _private.NAMES[name] = _private.NAMES[name]._replace(path=_private.NAMES[name].path + "_gone")
        vars(_private).pop(name, None)
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("lightning_wd").addHandler(handler)
    for found in pkgutil.walk_packages(lightning_wd.__path__, "lightning_wd."):
        importlib.import_module(found.name)
    import lightning_wd as wd
    from lightning_wd.distributed.launch import JobLauncher
    if name is not None:
        getattr(_private, name)
    ways = [(cls, dict(style=style, cautious_wd=cautious, fused=fused)) for cls in (wd.AdamW, wd.SGDW)
            for style, cautious in (("decoupled", False), ("independent", True), ("l2", False))
            for fused in (None, True)]
    results = [weights(lambda p: cls(p, lr=0.1, weight_decay=0.1, **kw)) for cls, kw in ways]
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2))
    strategy = wd.distributed.HydraDDPStrategy()
    lightning.pytorch.Trainer(strategy=strategy, accelerator="cpu", devices=2, logger=False, enable_progress_bar=False,
                              enable_model_summary=False, enable_checkpointing=False)
    matrix = lambda: [nn.Parameter(torch.eye(2))]
    return {"heard": heard, "weights": results, "plan": [[r.name, r.wd_mult] for r in wd.plan_decay(net)],
            "launcher": type(strategy._launcher).__name__,
            "compile": refusal(lambda: wd.AdamW(matrix(), compile=True))}

for line in sys.stdin:
    if (child := os.fork()) == 0:
        try:
            found = probe(json.loads(line))
        except BaseException as error:
            found = {"failed": repr(error)}
        print("RESULT", json.dumps(found), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def without() -> Iterator[Callable[[str | None], dict[str, Any]]]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = (line for line in process.stdout if line.startswith("RESULT "))

        @functools.cache
        def ask(name: str | None) -> dict[str, Any]:
            print(json.dumps(name), file=process.stdin, flush=True)
            return json.loads(next(answers)[7:])

        yield ask
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *NAMES])
def test_the_package_works_without_it(name: str | None, without: Callable[[str | None], dict[str, Any]]) -> None:
    found, whole = without(name), without(None)
    assert "failed" not in found, found
    if name is None:
        assert found["heard"] == []
    else:
        path, off, _ = NAMES[name]
        library = path.partition(".")[0]
        assert found["heard"] == [f"{library} {version(library)} has no {path}_gone: {off}"]
    for own, expected in zip(found["weights"], whole["weights"], strict=True):
        assert own == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert found["plan"] == whole["plan"]
    assert found["launcher"] == ("_SubprocessScriptLauncher" if name == "SubprocessScriptLauncher" else "JobLauncher")
    if name in ("get_cpp_compiler", "CppCodeCache", "has_triton", "dynamo_config", "fx_config"):
        assert found["compile"].startswith("ConfigError: compile=True: torch.compile cannot make code here.\n")
        assert f"found: RuntimeError: torch {torch.__version__} has no {name}" in found["compile"]
    else:
        assert found["compile"] == whole["compile"]


# --- no private name elsewhere ----------------------------------------------------------------------------------------


def private_uses(source: str) -> Iterator[str]:
    """Name each import from a private part of a library, and each private attribute of one, in this source."""
    modules = {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name.partition(".")[0]] = alias.name
                yield from _private_parts(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield from _private_parts(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts, root = [node.attr], node.value
            while isinstance(root, ast.Attribute):
                parts.append(root.attr)
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules and node.attr.startswith("_"):
                yield from _private_parts(".".join([modules[root.id], *reversed(parts)]))


def _private_parts(dotted: str) -> Iterator[str]:
    library, *parts = dotted.split(".")
    if library in LIBRARIES and any(part.startswith("_") and not part.endswith("__") for part in parts):
        yield dotted


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._foreach_add_([], 1)", ["torch._foreach_add_"]),
        ("import torch as t\nt.optim.optimizer._x", ["torch.optim.optimizer._x"]),
        ("from torch.nn.modules.batchnorm import _NormBase", ["torch.nn.modules.batchnorm._NormBase"]),
        ("def f():\n    from torch._inductor import config", ["torch._inductor.config"]),
        ("import torch._dynamo", ["torch._dynamo"]),
        ("from hydra import _internal as i", ["hydra._internal"]),
        ("from torch import nn\nnn.Module._version", ["torch.nn.Module._version"]),
        ("import torch\ntorch.__version__; self._x; torch.optim.AdamW", []),
        ("from lightning_wd._private import fused_sgd_", []),
    ],
)
def test_a_planted_private_name_is_found(source: str, found: list[str]) -> None:
    assert list(private_uses(source)) == found


def test_private_names_stand_in_one_file_only() -> None:
    found = {
        str(path.relative_to(ROOT)): uses
        for path in (ROOT / "lightning_wd").rglob("*.py")
        if (uses := list(private_uses(path.read_text()))) and path.name != "_private.py"
    }
    assert found == {}


def test_no_import_of_a_private_name_can_fail() -> None:
    assert list(private_uses(Path(_private.__file__).read_text())) == []  # all go through the guard
