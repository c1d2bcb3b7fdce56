"""``lightning-wd identify``: its output and errors."""

from __future__ import annotations

import pytest

from lightning_wd.cli import main


def test_identify_prints_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", "torch.optim.NAdam", "decoupled_weight_decay=true", "betas=[0.9,0.99]", "eps=1e-6"]) == 0
    first, same, formula = capsys.readouterr().out.splitlines()
    assert first == "NAdam: decoupled"
    assert same == "  A step removes the same fraction d of all old weights: p95/p5 = 1."
    assert formula.startswith("  d = lr_t * weight_decay: 0.000122 at lr_t=0.015625, ")
    assert main(["identify", "torch.optim.Adam"]) == 0
    assert capsys.readouterr().out.startswith("Adam: l2\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torhc.optim.Adam"], ["'torhc.optim.Adam' cannot be imported", "fix: write torch.optim.Adam"]),
        (["torch.nn.Linear"], ["'torch.nn.Linear' is no torch.optim.Optimizer class"]),
        (["torch.optim.Adam", "bets=[0.9,0.9]"], ["Adam has no key 'bets'.", "nearest: 'betas'"]),
        (["torch.optim.Adam", "betas=[2,2]"], ["Adam cannot be made with betas=(2, 2)."]),
        (["torch.optim.Adam", "betas"], ["'betas' is not KEY=VALUE.", "fix: write for example momentum=0.9"]),
        (["torch.optim.Adam", "betas=[0.9"], ["the value of 'betas=[0.9' cannot be read as YAML."]),
        (["torch.optim.Adam", "eps=1", "eps=2"], ["'eps' is given twice.", "fix: write eps= once"]),
        (["torch.optim.swa_utils.Needs"], ["torch.optim.swa_utils has no 'Needs'"]),
    ],
)
def test_identify_says_what_is_wrong(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lightning-wd identify: ")
    for part in words:
        assert part in captured.err
