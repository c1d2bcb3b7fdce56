"""Write docs/identify.md: what ``weight_decay`` means in public optimizer classes, found by stepping them.

    python docs/identify_table.py

It takes the packages of ``PACKAGES`` that are installed, each class in a process that ends after a minute.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import multiprocessing
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

import lightning_wd as wd

PACKAGES = (
    "torch.optim timm.optim pytorch_optimizer optimi torch_optimizer bitsandbytes.optim schedulefree dadaptation "
    "prodigyopt lion_pytorch adan_pytorch adabelief_pytorch adamp madgrad came_pytorch adam_mini dion"
).split()
# Keywords without which a class cannot be made or stepped here.
NEEDED: dict[str, dict[str, Any]] = {
    "optimi.StableAdamW": {"triton": False},
    "adam_mini.Adam_mini": {"dim": 64, "n_heads": 4},
    "pytorch_optimizer.Ranger21": {"num_iterations": 100},
    **{
        f"bitsandbytes.optim.{name}{bits}": {"momentum": 0.9}
        for name in ("LARS", "SGD")
        for bits in ("", "32bit", "8bit")
    },
    "bitsandbytes.optim.PytorchLARS": {"momentum": 0.9},
    "timm.optim.SGDP": {"momentum": 0.9},
}
# Keywords that change what weight_decay means.
ALSO: list[dict[str, Any]] = [
    {"decoupled_weight_decay": True},
    {"weight_decouple": True},
    {"weight_decouple": False},
    {"decoupled_decay": True},
    {"corrected_weight_decay": True},
    {"decouple_wd": True},
    {"decouple_lr": True},
    {"decouple": True},
    {"decouple": False},
]
SECONDS = 60  # a busy machine takes many times the seconds of an idle one


def classes(package: str) -> dict[str, type]:
    """Return the public optimizer classes of a package by name, each once."""
    with contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module(package)
    found: dict[int, tuple[str, type]] = {}
    for name in sorted(dir(module), key=str.lower):
        cls = getattr(module, name)
        own = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
        if own and not name.startswith("_") and cls.__module__.partition(".")[0] == package.partition(".")[0]:
            found.setdefault(id(cls), (name, cls))
    return dict(found.values())


def keyword_sets(cls: Any, needed: dict[str, Any]) -> list[dict[str, Any]]:
    known = inspect.signature(cls.__init__).parameters
    differ = [also for also in ALSO for key, value in also.items() if key in known and known[key].default != value]
    return [needed, *({**needed, **also} for also in differ)]


def answer(package: str, name: str, keywords: dict[str, Any]) -> tuple[str, str, str]:
    try:
        found = wd.identify(classes(package)[name], **keywords)
    except wd.ConfigError as error:
        return "not made", "", str(error).splitlines()[0]
    multiple = "" if found.multiple in (None, 0.0) else f"{found.multiple:g}"
    return f"`{found.style}`", multiple, note(found)


def note(found: Any) -> str:
    """Return the lines of evidence that say more than style and multiple do, without their measurements."""
    plain = (
        "A step removes the same fraction",
        "d = ",
        "The fraction of",
        "Steps with weight_decay equal",
        "No style fits",
    )
    more = [line for line in found.evidence if not line.startswith(plain)]
    if more and more[0] == "It could not be stepped.":
        more = more[:2]
    formula = [line.partition(":")[0] + "." for line in found.evidence if line.startswith("d = ")]
    return " ".join([*(formula if found.style == "unknown" else []), *more]).replace("|", "\\|")


def main() -> None:
    sections, versions = [], []
    context = multiprocessing.get_context("fork")
    for package in PACKAGES:
        try:
            public = classes(package)
        except ImportError as error:
            print(f"{package}: {error}", file=sys.stderr)
            continue
        root = package.partition(".")[0]
        distribution = packages_distributions().get(root, [root])[0]
        versions.append(f"{distribution} {version(distribution)}")
        rows = []
        for name, cls in public.items():
            for keywords in keyword_sets(cls, NEEDED.get(f"{package}.{name}", {})):
                given = ", ".join(f"{key}={value}" for key, value in keywords.items())
                with context.Pool(1) as pool:
                    try:
                        found = pool.apply_async(answer, (package, name, keywords)).get(SECONDS)
                    except multiprocessing.TimeoutError:
                        found = "`unknown`", "", f"More than {SECONDS} seconds."
                rows.append((f"`{name}({given})`" if given else f"`{name}`", *found))
                print(package, *rows[-1], file=sys.stderr)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        sections.append(
            "\n".join([f"## {package}", "", "| class | style | multiple | also |", "|---|---|---|---|", *lines])
        )
    page = Path(__file__).with_name("identify.md")
    head = page.read_text().partition("<!-- made by docs/identify_table.py -->")[0] if page.exists() else ""
    made = f"<!-- made by docs/identify_table.py -->\n\nVersions: {', '.join(versions)}.\n"
    page.write_text(f"{head}{made}\n" + "\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
