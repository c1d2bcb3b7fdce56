"""A tuned learning rate and decay carried over to another batch and number of steps, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import lightning_wd as wd

TUNED = {"global_batch": 256, "steps": 1000}


@pytest.mark.parametrize(
    ("family", "style", "lr", "lam", "batch", "steps", "expected"),
    [
        ("adam", "decoupled", 1e-3, 0.1, 1024, 250, (2e-3, 0.2)),  # four times the batch, the same rows
        ("adam", "decoupled", 1e-3, 0.1, 1024, 1000, (2e-3, 0.05)),  # four times the batch and the rows
        ("adam", "decoupled", 1e-3, 0.1, 256, 4000, (1e-3, 0.025)),  # four times the steps
        ("adam", "decoupled", 1e-3, 0.1, 64, 1000, (5e-4, 0.2)),
        ("adam", "corrected", 1e-3, 0.1, 1024, 250, (2e-3, 0.2)),
        ("adam", "independent", 1e-3, 1e-4, 1024, 250, (2e-3, 4e-4)),
        ("adam", "constant", 1e-3, 1e-4, 1024, 250, (2e-3, 4e-4)),
        ("adam", "none", 1e-3, 0.1, 1024, 250, (2e-3, 0.1)),
        ("sgd", "decoupled", 0.1, 5e-4, 1024, 250, (0.4, 5e-4)),
        ("sgd", "l2", 0.1, 5e-4, 1024, 1000, (0.4, 1.25e-4)),
        ("sgd", "independent", 0.1, 1e-4, 512, 1000, (0.2, 1e-4)),
        ("adam", "decoupled", 0.0, 0.1, 256, 250, (0.0, 0.4)),
    ],
)
def test_numbers_worked_by_hand(
    family: str, style: str, lr: float, lam: float, batch: int, steps: int, expected: tuple[float, float]
) -> None:
    found = wd.carry_over(lr, lam, reference=TUNED, global_batch=batch, steps=steps, family=family, style=style)
    assert found == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize(("rule", "expected"), [("sqrt", (2e-3, 0.2)), ("linear", (4e-3, 0.1)), ("none", (1e-3, 0.4))])
def test_the_rule_can_be_chosen(rule: str, expected: tuple[float, float]) -> None:
    tuned = {**TUNED, "lr_rule": rule}
    for family in ("adam", "sgd"):
        found = wd.carry_over(1e-3, 0.1, reference=tuned, global_batch=1024, steps=250, family=family)
        assert found == pytest.approx(expected, rel=1e-15)


positive = st.floats(1e-9, 1e3)
counts = st.integers(1, 10**9)


@given(positive, positive, counts, counts, counts, counts, st.sampled_from(["adam", "sgd"]))
def test_nothing_changes_in_place_and_the_timescale_stays_elsewhere(
    lr: float, lam: float, batch: int, steps: int, other_batch: int, other_steps: int, family: str
) -> None:
    tuned = {"global_batch": batch, "steps": steps}
    assert wd.carry_over(lr, lam, reference=tuned, global_batch=batch, steps=steps, family=family) == (lr, lam)
    there = {"global_batch": other_batch, "steps": other_steps}
    found = wd.carry_over(lr, lam, reference=tuned, global_batch=other_batch, steps=other_steps, family=family)
    assert found.lr * found.weight_decay * other_steps == pytest.approx(lr * lam * steps, rel=1e-12)
    back = wd.carry_over(*found, reference=there, global_batch=batch, steps=steps, family=family)
    assert back == pytest.approx((lr, lam), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"reference": {"steps": 10}},
            ["reference has no global_batch.", "found: steps=10", "reference.global_batch=<"],
        ),
        ({"reference": {"global_batch": 10, "steps": None}}, ["reference has no steps.", "reference.steps=<optimizer"]),
        ({"reference": {}}, ["found: an empty mapping"]),
        ({"reference": 256}, ["reference must be a mapping but got 256", "write reference={global_batch: <rows"]),
        ({"reference": {**TUNED, "global_batch": 0}}, ["reference.global_batch must be a whole number >= 1 but got 0"]),
        (
            {"reference": {**TUNED, "steps": -5}},
            ["reference.steps must be", "write reference.steps=5, without the sign"],
        ),
        ({"reference": {**TUNED, "step": 5}}, ["reference has no key 'step'", "nearest: 'steps'"]),
        ({"reference": {"batch_size": 5, "steps": 1}}, ["no key 'batch_size'", "write reference.global_batch"]),
        ({"reference": {**TUNED, "lr_rule": "sqr"}}, ["reference.lr_rule 'sqr' is unknown", "nearest: 'sqrt'"]),
        ({"global_batch": 0}, ["global_batch must be a whole number >= 1 but got 0"]),
        ({"steps": 2.5}, ["steps must be a whole number >= 1 but got 2.5"]),
        ({"family": "adamw"}, ["family 'adamw' is unknown", "valid: adam, sgd", "nearest: 'adam'"]),
        ({"lr": -1.0}, ["lr must be a number >= 0"]),
        ({"stile": "l2"}, ["carry_over has no key 'stile'", "nearest: 'style'"]),
        ({"style": "l2"}, ["no tested rule for style 'l2' of an adaptive optimizer", "and none; l2 with SGD"]),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: list[str]) -> None:
    given = {"lr": 1e-3, "weight_decay": 0.1, "reference": TUNED, "global_batch": 512, "steps": 500, "family": "adam"}
    with pytest.raises(wd.ConfigError) as caught:
        wd.carry_over(**{**given, **change})
    assert [each for each in words if each not in str(caught.value)] == []


def test_the_page_about_it() -> None:
    """Its Python is run by tests/test_docs.py."""
    page = Path(__file__).parents[1] / "docs/carry_over.md"
    (block,) = (part.partition("```")[0] for part in page.read_text().split("```yaml")[1:])
    config = wd.OptimizerConfig(yaml.safe_load(block)["optimizer"])
    assert config["reference"] == {"global_batch": 256, "steps": 10000}
