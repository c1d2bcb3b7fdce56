"""An optimizer class by its dotted path, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers.dotted_path import import_optimizer


def test_a_class() -> None:
    assert import_optimizer("torch.optim.Adam") is torch.optim.Adam
    assert import_optimizer("torch.optim.adam.Adam") is torch.optim.Adam
    assert import_optimizer("lightning_wd.AdamW") is wd.AdamW


def test_a_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_optimizers").mkdir()
    (tmp_path / "my_optimizers/signs.py").write_text("import torch\nclass Sign(torch.optim.SGD): pass\n")
    (tmp_path / "my_optimizers/broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_optimizer("my_optimizers.signs.Sign").__name__ == "Sign"
    for path, words in {
        "my_optimizers.sings.Sign": ["my_optimizers has no 'sings'", "nearest: 'my_optimizers.signs.Sign'"],
        "my_optimizers.broken.Sign": [
            "'my_optimizers.broken.Sign' cannot be imported: No module named 'not_installed_anywhere'",
            "found: ModuleNotFoundError from `import my_optimizers.broken`",
            "fix: mend `import my_optimizers.broken` first",
        ],
    }.items():
        with pytest.raises(wd.ConfigError) as caught:
            import_optimizer(path)
        assert all(part in str(caught.value) for part in words)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Adam", ["'Adam' is not the dotted path of a class.", "fix: write package.module.Class, as in torch.optim.A"]),
        ("torch.optim:Adam", ["is not the dotted path of a class"]),
        ("torch..Adam", ["is not the dotted path of a class"]),
        ("torhc.optim.Adam", ["No module named 'torhc'", "nearest: 'torch.optim.Adam'", "fix: write torch.optim.Adam"]),
        (
            "lion.Lion",
            ["No module named 'lion'\n  found: ModuleNotFoundError from `import lion`\n  fix: run this where"],
        ),
        ("xqzwv.Adam", ["No module named 'xqzwv'", "fix: run this where it can be imported, or install the package"]),
        ("torch.optm.Adam", ["torch has no 'optm'", "nearest: 'torch.optim.Adam'"]),
        ("torch.optim.AdmW", ["torch.optim has no 'AdmW'", "nearest: 'torch.optim.AdamW'"]),
        ("torch.optim.Xqzwv", ["fix: correct 'Xqzwv': the class is not in torch.optim"]),
        ("torch.optim", ["is no torch.optim.Optimizer class", "found: module", "torch.optim.AdamW, "]),
        ("torch.nn.Linear", ["'torch.nn.Linear' is no torch.optim.Optimizer class", "found: type"]),
    ],
)
def test_what_is_wrong_is_said(path: str, words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        import_optimizer(path)
    for part in words:
        assert part in str(caught.value)
