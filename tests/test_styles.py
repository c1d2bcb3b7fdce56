"""What a step of each style removes, and how styles are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_wd.errors import ConfigError
from lightning_wd.styles import ALIASES, STYLES, check_style, kernel_coefficient, step_fraction

positive = st.floats(1e-6, 1e3)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("l2", 0.0),
        ("decoupled", 0.005 * 0.1),
        ("independent", 0.5 * 0.1),
        ("constant", 0.1),
        ("corrected", 0.005**2 / 0.01 * 0.1),
        ("none", 0.0),
    ],
)
def test_fraction_of_each_style(style: str, expected: float) -> None:
    """The table of styles.py at lr0 = .01, lr_t = .005, lam = .1."""
    assert step_fraction(style, weight_decay=0.1, lr=0.005, base_lr=0.01) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("style", STYLES)
def test_a_learning_rate_of_zero_is_finite(style: str) -> None:
    at_start = step_fraction(style, weight_decay=0.1, lr=0.0, base_lr=0.01)
    without_peak = step_fraction(style, weight_decay=0.1, lr=0.0, base_lr=0.0)
    assert at_start == without_peak == (0.1 if style == "constant" else 0.0)


@given(lr0=positive, lam=positive, eta=st.floats(0, 1))
def test_kernel_coefficient_times_lr_is_the_fraction(lr0: float, lam: float, eta: float) -> None:
    lr = lr0 * eta
    for style in ("decoupled", "independent", "corrected"):
        coefficient = kernel_coefficient(style, weight_decay=lam, lr=lr, base_lr=lr0)
        assert lr * coefficient == pytest.approx(step_fraction(style, weight_decay=lam, lr=lr, base_lr=lr0))
    independent = step_fraction("independent", weight_decay=lam, lr=lr, base_lr=lr0)
    assert independent == pytest.approx(step_fraction("decoupled", weight_decay=lam / lr0, lr=lr, base_lr=lr0))


def test_constant_has_no_kernel_coefficient() -> None:
    with pytest.raises(ConfigError, match="style 'constant' has no coefficient"):
        kernel_coefficient("constant", weight_decay=0.1, lr=0.0, base_lr=0.1)


def test_other_libraries_names_are_on_the_page_and_their_errors_say_the_style() -> None:
    """docs/names.md: the table of names that are errors, a row an alias."""
    page = (Path(__file__).parents[1] / "docs" / "names.md").read_text()
    table = page.partition("Typed as a style")[2].partition("Other libraries")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [row[0].strip("|` ") for row in rows] == list(ALIASES)
    for alias, row in zip(ALIASES, rows, strict=True):
        with pytest.raises(ConfigError) as caught:
            check_style("style", alias)
        assert f"style '{alias}' is unknown" in str(caught.value)
        assert f"fix: {ALIASES[alias]}" in str(caught.value)
        style = re.findall(r"style '(\w+)'", ALIASES[alias])[0]
        assert style in STYLES
        assert f"style `{style}`" in row[2]
