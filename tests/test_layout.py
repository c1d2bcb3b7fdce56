"""How the repository is laid out: which way imports run, what files are called, and that tests mirror the source."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lightning_wd as wd

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_wd"

# Each room may import the rooms before it.
ORDER = (
    "errors",
    "_lightning",
    "_private",
    "styles",
    "conversions",
    "decay",
    "reference",
    "schedules",
    "mask",
    "scale_invariance",
    "optimizers",
    "configure",
    "callbacks",
)
BEFORE = {room: frozenset(ORDER[:position]) for position, room in enumerate(ORDER)}
MAY_IMPORT: dict[str, frozenset[str]] = {
    **BEFORE,
    "callbacks": BEFORE["callbacks"] | {"runs"},
    "runs": frozenset({"errors", "_lightning", "_private", "_hydra", "styles", "decay"}),
    "distributed": frozenset({"errors", "_lightning", "_private", "_hydra", "runs"}),
    "_hydra": frozenset(),  # imported when Hydra composes: whatever it needs, it imports inside a function
    "conf": frozenset({"_hydra"}),
    "cli": frozenset(
        {"errors", "styles", "conversions"}
    ),  # without torch, so that `--help` is quick; the rest inside functions
}
LAZILY_ANYTHING = {"_hydra", "cli"}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file: ``lightning_wd/mask/__init__.py`` is ``lightning_wd.mask``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def read_package() -> Mapping[str, ast.Module]:
    """Return the syntax tree of each module of the package, its ``__init__`` left out: it imports on first use."""
    paths = [path for path in sorted(PACKAGE.glob("**/*.py")) if path != PACKAGE / "__init__.py"]
    return {module_name(path): ast.parse(path.read_text()) for path in paths}


def imports(tree: ast.AST, module: str, *, lazy: bool = True, package: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports, in every spelling of an import.

    Args:
        tree: the module's syntax tree.
        module: its dotted name, which relative imports start from.
        lazy: whether imports inside functions count.
        package: whether the module is the ``__init__`` of a package.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = ".".join(parts[: len(parts) - node.level + package]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, module, lazy=lazy, package=package)


def target(name: str, modules: Mapping[str, object]) -> str | None:
    """Return the module of the package that an imported name lives in; None for other packages."""
    parts = name.split(".")
    if parts[0] != "lightning_wd" or len(parts) < 2:
        return None
    if parts[1] in wd._HOME:  # from lightning_wd import AdamW
        parts[1:2] = [wd._HOME[parts[1]]]
    found = [".".join(parts[:length]) for length in range(2, len(parts) + 1)]
    return next((dotted for dotted in reversed(found) if dotted in modules), None)


def room_of(module: str) -> str:
    return module.split(".")[1]


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def backwards(modules: Mapping[str, ast.Module]) -> list[str]:
    """Return each import that reaches a room its own room may not import."""
    found = []
    for module, tree in modules.items():
        room = room_of(module)
        for name in imports(tree, module, lazy=room not in LAZILY_ANYTHING, package=is_package(module)):
            other = target(name, modules)
            if other and room_of(other) not in {room, *MAY_IMPORT[room]}:
                found.append(f"{module} imports {other}")
    return found


def circle(modules: Mapping[str, ast.Module]) -> list[str]:
    """Return the modules of one import circle, imports inside functions included; nothing where there is none."""
    graph = {
        module: {
            other
            for name in imports(tree, module, package=is_package(module))
            if (other := target(name, modules)) and other != module
        }
        for module, tree in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_every_room_has_its_place() -> None:
    assert sorted({room_of(module) for module in read_package()}) == sorted(MAY_IMPORT)


def test_imports_run_one_way() -> None:
    assert backwards(read_package()) == []


def test_no_import_circle() -> None:
    assert circle(read_package()) == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("lightning_wd.decay", "import lightning_wd.callbacks.measures"),
        ("lightning_wd.decay", "from lightning_wd import callbacks"),
        ("lightning_wd.decay", "from lightning_wd import DecayMonitor"),
        ("lightning_wd.decay", "from . import callbacks"),
        ("lightning_wd.decay", "from .callbacks import x"),
        ("lightning_wd.decay", "def f():\n    from lightning_wd.callbacks import x"),
        ("lightning_wd.mask", "from ..callbacks import x"),
        ("lightning_wd.mask.plan", "from ..callbacks import x"),
        ("lightning_wd.runs.folder", "from lightning_wd.callbacks import x"),
        ("lightning_wd._hydra", "from lightning_wd.callbacks import x"),
    ],
)
def test_a_backward_import_is_seen(module: str, code: str) -> None:
    modules = {**read_package(), module: ast.parse(code)}
    (found,) = backwards(modules)
    assert found.startswith(f"{module} imports lightning_wd.callbacks")


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("from lightning_wd.mask import planner", True),
        ("def f():\n    from lightning_wd.mask import planner", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightning_wd.mask import planner", False),
    ],
)
def test_a_planted_circle_is_seen(code: str, seen: bool) -> None:
    found = circle({**read_package(), "lightning_wd.mask.rules": ast.parse(code)})
    assert ({"lightning_wd.mask.rules", "lightning_wd.mask.planner"} <= set(found)) is seen


# --- private names --------------------------------------------------------------------------------------------------

# of namedtuples; of models, which mark parameters by them
CONVENTIONS = {"_asdict", "_fields", "_replace", "_no_weight_decay", "_optim"}


def private_names(modules: Mapping[str, ast.Module]) -> list[str]:
    """Return each use, outside ``_private``, of a private name that the package does not define itself."""
    ours = CONVENTIONS | {"_" + name.split("._")[1].split(".")[0] for name in modules if "._" in name}
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                ours.add(node.attr)
            elif isinstance(node, ast.arg):
                ours.add(node.arg)
    return [
        f"{module} line {getattr(node, 'lineno', 0)}: {name}"
        for module, tree in modules.items()
        if module != "lightning_wd._private"
        for node in ast.walk(tree)
        for name in used_names(node)
        for part in name.split(".")
        if part.startswith("_") and not part.startswith("__") and part not in ours
    ]


def used_names(node: ast.AST) -> list[str]:
    """Return the names that a node imports or takes from an object, ``getattr(x, "name")`` included."""
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module or ''}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "import_module"):
        return [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def test_private_names_of_libraries_stand_in_one_room() -> None:
    assert private_names(read_package()) == []


@pytest.mark.parametrize(
    "code",
    [
        "from torch.optim.optimizer import _get_value",
        "from torch.optim._muon import Muon",
        "import torch._dynamo",
        "torch._foreach_norm(tensors)",
        "trainer.fit_loop._data_source",
        "getattr(trainer, '_results')",
    ],
)
def test_a_private_name_is_seen(code: str) -> None:
    before = private_names(read_package())
    assert len(private_names({**read_package(), "lightning_wd.planted": ast.parse(code)})) == len(before) + 1


# --- Lightning's two packages ---------------------------------------------------------------------------------------

LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


def asked_of_one_package(tree: ast.Module) -> list[str]:
    """Return the classes of Lightning that a module names in an ``isinstance``, ``issubclass`` or ``except``.

    ``lightning`` and ``pytorch_lightning`` have classes of their own, so each needs ``_lightning.either``.
    """
    homes: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            homes |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            homes |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    found = []
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = node.args[1:]
        elif isinstance(node, ast.ExceptHandler) and node.type is not None:
            asked = [node.type]
        for name in (part for one in asked for part in ast.walk(one) if isinstance(part, ast.Name)):
            if homes.get(name.id, "").partition(".")[0] in LIGHTNING:
                found.append(f"line {node.lineno}: {name.id}")  # type: ignore[attr-defined]
    return found


def test_nothing_asks_for_a_class_of_one_of_lightnings_packages() -> None:
    assert {module: found for module, tree in read_package().items() if (found := asked_of_one_package(tree))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "from lightning.pytorch.callbacks import Timer\nisinstance(x, (int, Timer))",
        "import lightning as L\nissubclass(x, L.Callback)",
        "import lightning.pytorch\nisinstance(x, lightning.pytorch.Trainer)",
        "from pytorch_lightning import Trainer as T\nisinstance(x, T | None)",
        "from lightning.fabric.utilities.exceptions import M\ntry: pass\nexcept (M, OSError): pass",
    ],
)
def test_a_question_to_one_package_is_seen(code: str) -> None:
    assert len(asked_of_one_package(ast.parse(code))) == 1


# --- files ----------------------------------------------------------------------------------------------------------

TESTS = ROOT / "tests"
# Tests of more than one source file, each with what it is about.
OF_SEVERAL = {
    "callbacks/test_routes.py": "LightningCLI and Fabric, as docs/examples shows them",
    "callbacks/test_wandb.py": "what W&B is told by the callbacks, the logger and the recipe together",
    "configure/test_trainer_features.py": "schedules and amounts under combinations of the Trainer's features",
    "distributed/test_equality.py": "training on two processes equals training on one",
    "distributed/test_fsdp1.py": "plans and checkpoints under torch's FSDP1",
    "distributed/test_fsdp2.py": "FSDP2 through the recipe",
    "optimizers/test_conformance.py": "our optimizers against torch's, over one table of settings",
    "optimizers/test_numerics.py": "our optimizers against the float64 reference, over one table of settings",
    "optimizers/test_styles.py": "every style and point to decay towards, in every implementation",
    "recipes/test_faults.py": "the recipe under crashes, kills and full disks",
    "recipes/test_resume.py": "a resumed run equals one without a break",
    "recipes/test_robustness.py": "the recipe fed with what users feed it",
    "test_coming_from.py": "docs/coming_from: what other libraries' optimizers do, and what ours do",
    "test_conftest.py": "tests/conftest.py",
    "test_docs.py": "docs/ and mkdocs.yml",
    "test_layout.py": "the repository's layout",
    "test_pack.py": "conf/",
    "test_package.py": "the wheel",
    "test_readme.py": "README.md",
    "test_security.py": "what a checkpoint may not do",
}


def test_no_two_source_files_share_a_name() -> None:
    names = [path.name for path in PACKAGE.glob("**/*.py") if path.name != "__init__.py"]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert not {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"} & set(names)


def test_tests_mirror_the_source() -> None:
    """tests/mask/test_planner.py is for lightning_wd/mask/planner.py; a long one may be split: test_cli_audit.py.
    A private file is tested without its underscore: tests/test_private.py is for lightning_wd/_private.py.

    A folder of small files has one test file: tests/recipes/test_data.py is for recipes/data.
    """
    strays = []
    for path in sorted(TESTS.glob("**/test_*.py")):
        if path.parent.name in ("clients", "field", "zoo"):
            continue
        room, name = path.relative_to(TESTS).parent, path.relative_to(TESTS).as_posix()
        source = ROOT / ("recipes" if room.parts[:1] == ("recipes",) else f"lightning_wd/{room}")
        stems = {file.stem.lstrip("_") for file in source.iterdir() if file.suffix in (".py", "")}
        subject = path.stem.removeprefix("test_")
        mirrors = any(subject == stem or subject.startswith(f"{stem}_") for stem in stems)
        if mirrors is (name in OF_SEVERAL):
            strays.append(name)
    assert strays == []
    assert [name for name in OF_SEVERAL if not (TESTS / name).exists()] == []


def test_tests_import_no_tests() -> None:
    """Shared code lives in tests/helpers."""
    found = []
    for path in sorted(TESTS.glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = used_names(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            found += [f"{path.name} imports {name}" for name in names if "test_" in name]
    assert found == []


def test_a_case_from_the_field_names_its_report() -> None:
    """tests/field/test_pytorch_125708.py gives the link to pytorch#125708."""
    files = sorted((TESTS / "field").glob("test_*.py"))
    assert files
    for path in files:
        named = re.fullmatch(r"test_(\w+)_(\d+)", path.stem)
        assert named, f"{path.name} is not test_<project>_<number>.py"
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"{named[1].replace('_', '-')}#{named[2]}" in text.replace("_", "-").lower(), f"{path.name}: no report"
        assert re.search(rf"https://github.com/\S+/{named[2]}\b", text), f"{path.name}: no link"
