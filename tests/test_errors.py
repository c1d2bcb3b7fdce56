"""The four checks and how a message is built: exact values, and exact words."""

from __future__ import annotations

import inspect
import math
import pickle
from typing import Any

import pytest
import torch

import lightning_wd as wd
from lightning_wd.errors import (
    CheckpointMismatchError,
    ConfigError,
    ExplainedError,
    MaskError,
    as_typed,
    choice,
    explain,
    flag,
    keys,
    listed,
    number,
    warn,
)


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (0, {}, 0.0),
        (3, {}, 3.0),
        (1e-4, {"exclusive": True}, 1e-4),
        (5, {"whole": True}, 5),
        (5.0, {"whole": True}, 5),
        (-1, {"minimum": -1, "whole": True}, -1),
        (-0.8, {"minimum": -math.inf}, -0.8),
        (0.999, {"below": 1}, 0.999),
        (1, {"at_most": 1}, 1.0),
        (math.inf, {"infinite": True}, math.inf),
    ],
)
def test_a_number_in_range_is_returned(value: Any, bounds: dict[str, Any], expected: float) -> None:
    made = number("x", value, **bounds)
    assert (made, type(made)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "bounds", "problem", "fix"),
    [
        (-1, {}, "x must be a number >= 0 but got -1.", "write x=1, without the sign"),
        (0, {"exclusive": True}, "x must be a number > 0 but got 0.", "write x=<a finite number > 0>"),
        (1, {"below": 1}, "x must be a number >= 0 and < 1 but got 1.", "write x=<a finite number >= 0 and < 1>"),
        (1, {"minimum": -math.inf, "below": 1}, "x must be a number < 1 but got 1.", "write x=<a finite number < 1>"),
        (2, {"at_most": 1}, "x must be a number >= 0 and <= 1 but got 2.", "write x=<a finite number >= 0 and <= 1>"),
        (-2, {"at_most": 1}, "x must be a number >= 0 and <= 1 but got -2.", "write x=<a finite number >= 0 and <= 1>"),
        (1.6, {"whole": True}, "x must be a whole number >= 0 but got 1.6.", "write x=2"),
        (math.inf, {}, "x must be a number >= 0 but got inf.", "write x=<a finite number >= 0>"),
        (math.inf, {"infinite": True, "below": 1}, "x must be a number >= 0 and < 1 but got inf.", None),
        (math.inf, {"whole": True}, "x must be a whole number >= 0 but got inf.", "write x=<a whole number >= 0>"),
        (math.nan, {"infinite": True}, "x must be a number >= 0 but got nan.", "write x=<a number >= 0>"),
        (True, {}, "x must be a number >= 0 but got True.", "write x=<a finite number >= 0>"),
        (None, {}, "x must be a number >= 0 but got None.", "write x=<a finite number >= 0>"),
        ("1e-4", {}, "x must be a number >= 0 but got '1e-4'.", None),
        ("ten", {}, "x must be a number >= 0 but got 'ten'.", "write x=<a finite number >= 0>"),
    ],
)
def test_another_number_is_refused(value: Any, bounds: dict[str, Any], problem: str, fix: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        number("x", value, **bounds)
    first, *_, last = str(caught.value).split("\n  ")
    assert first == problem
    if fix is not None:
        assert last == f"fix: {fix}"
    assert last.endswith("1e-4 is text: write 1.0e-4") is (value == "1e-4")


@pytest.mark.parametrize("error", [ConfigError, MaskError, CheckpointMismatchError])
def test_each_check_raises_the_error_of_its_door(error: type[ExplainedError]) -> None:
    for check in (
        lambda: number("x", -1, error=error),
        lambda: choice("x", "b", ["a"], error=error),
        lambda: keys("x", ["b"], ["a"], error=error),
    ):
        with pytest.raises(error):
            check()


def test_a_choice_names_the_nearest_or_what_another_library_means() -> None:
    assert choice("style", "b", ["a", "b"]) == "b"
    with pytest.raises(ConfigError) as caught:
        choice("style", "constnat", ["l2", "constant"], aliases={"palm": "PaLM's is style 'corrected'"})
    assert str(caught.value) == (
        "style 'constnat' is unknown.\n  valid: l2, constant\n  nearest: 'constant'\n  fix: write style=constant"
    )
    with pytest.raises(ConfigError) as caught:
        choice("style", "palm", ["l2", "constant"], aliases={"palm": "PaLM's is style 'corrected'"})
    assert str(caught.value).endswith("valid: l2, constant\n  fix: PaLM's is style 'corrected'")
    with pytest.raises(ConfigError, match="PaLM's is style 'corrected'"):
        choice("style", "PaLM", ["l2", "constant"], aliases={"palm": "PaLM's is style 'corrected'"})
    with pytest.raises(ConfigError, match=r"style 'xyz' is unknown.\n  valid: l2\n  fix: write one of the valid names"):
        choice("style", "xyz", ["l2"])
    with pytest.raises(ConfigError, match=r"style \['l2'\] is unknown"):
        choice("style", ["l2"], ["l2"])
    with pytest.raises(ConfigError, match=r"valid: l2, a function\n  fix: write one of the valid names, or a function"):
        choice("style", "xyz", ["l2"], also="a function")


def test_a_flag_is_true_false_or_null() -> None:
    assert (flag("x", True), flag("x", False), flag("x", None, optional=True)) == (True, False, None)
    for value in (None, 1, 0, "true"):
        with pytest.raises(ConfigError, match=f"x must be true or false but got {value!r}.\n  fix: write x=true"):
            flag("x", value)
    with pytest.raises(ConfigError, match="x must be true, false or null but got 1"):
        flag("x", 1, optional=True)


def test_an_unknown_key_is_told_its_new_name_its_nearest_or_to_go() -> None:
    keys("x", ["a"], ["a", "b"])
    with pytest.raises(ConfigError) as caught:
        keys("mask rule", {"decay": 0}, ["name", "wd_mult"], renamed={"decay": "wd_mult"})
    assert str(caught.value) == (
        "mask rule has no key 'decay'.\n  valid: name, wd_mult\n  nearest: 'wd_mult'\n"
        "  fix: write wd_mult, or remove decay"
    )
    with pytest.raises(ConfigError, match=r"fix: remove a\.zzz$"):
        keys("a", ["zzz"], ["name"], typed="a.{}")
    with pytest.raises(ConfigError) as caught:
        keys("a", ["fixed_decay"], ["fix"], aliases={"fixed_decay": "use style 'constant'"})
    assert str(caught.value) == "a has no key 'fixed_decay'.\n  valid: fix\n  fix: use style 'constant'"


def test_a_message_has_its_parts_in_order() -> None:
    assert explain("a.", found="f", valid="v", nearest="n", fix="x") == (
        "a.\n  found: f\n  valid: v\n  nearest: 'n'\n  fix: x"
    )
    assert explain("a.", fix="x") == "a.\n  fix: x"
    assert explain("a.", nearest="'b' (2 matches)", fix="x") == "a.\n  nearest: 'b' (2 matches)\n  fix: x"


@pytest.mark.parametrize("error", [ConfigError, MaskError, CheckpointMismatchError])
def test_an_error_takes_the_parts_of_its_message_and_pickles(error: Any) -> None:
    made = error("a.", found="f", fix="x")
    assert str(made) == "a.\n  found: f\n  fix: x"
    assert str(pickle.loads(pickle.dumps(made))) == str(made)
    assert str(error("a.")) == "a."
    with pytest.raises(TypeError, match="fix"):
        error("a.", found="f")


def test_a_long_list_says_how_many_more_there_are() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcd", 2) == "a, b, and 2 more"


NESTED = {"optimizer": "optimizer.gen", "optimizer=": "optimizer@optimizer.gen=", "to": "--to"}


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("optimizer.lr must be a number.", "optimizer.gen.lr must be a number."),
        ("optimizer adamw has no key 'x'.", "optimizer.gen adamw has no key 'x'."),
        ("optimizer=sgdw is none.", "optimizer@optimizer.gen=sgdw is none."),
        ("use the optimizer. Then step.", "use the optimizer. Then step."),
        ("write self.hparams.optimizer.lr", "write self.hparams.optimizer.lr"),
        ("write wd.configure_optimizers, or /optimizer: x", "write wd.configure_optimizers, or /optimizer: x"),
        ("go to to=x, or --to=x", "go to --to=x, or --to=x"),
        ("to 'x' is unknown.", "--to 'x' is unknown."),
    ],
)
def test_a_message_spells_names_as_the_user_typed_them(text: str, spelled: str) -> None:
    with as_typed(NESTED):
        assert explain(text, fix="x") == f"{spelled}\n  fix: x"
    assert explain(text, fix="x") == f"{text}\n  fix: x"


def test_spellings_nest_and_end() -> None:
    with as_typed({"lr": "--lr"}):
        with as_typed({"to": "--to"}):
            assert explain("x.", fix="write lr=1 to=2") == "x.\n  fix: write --lr=1 --to=2"
        assert explain("x.", fix="write lr=1 to=2") == "x.\n  fix: write --lr=1 to=2"


def test_an_unknown_keyword_of_anything_public_is_refused_in_words() -> None:
    """Classes whose settings are those of another class or of a mapping check them with what they belong to."""
    bare = []
    for name in wd.__all__:
        made = getattr(wd, name)
        if not callable(made) or (isinstance(made, type) and issubclass(made, Exception)) or name == "DecayPlan":
            continue
        given = [torch.optim.AdamW] if name == "identify" else []  # the keywords are those of the class
        try:
            made(*given, no_such_keyword=1)
        except (ConfigError, MaskError) as error:
            if "no key 'no_such_keyword'" not in str(error):
                bare.append(name)
        except TypeError:
            bare.append(name)
    assert bare == []


def test_a_constructor_keeps_its_signature_and_its_positions() -> None:
    assert list(inspect.signature(wd.DecaySchedule).parameters)[:3] == ["shape", "start", "end"]
    assert wd.DecaySchedule("linear", 1.0, 0.5).curve.end == 0.5
    with pytest.raises(ConfigError) as caught:
        wd.DecayMonitor(every_n_step=1)  # type: ignore[call-arg]
    assert str(caught.value) == (
        "DecayMonitor has no key 'every_n_step'.\n  valid: every_n_steps\n  nearest: 'every_n_steps'\n"
        "  fix: write every_n_steps, or remove every_n_step"
    )


def test_a_warning_points_at_the_code_that_called_the_package() -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.warns(UserWarning, match="peak learning rate of 1, more than 100 times") as caught:
        wd.configure_optimizers(model, {"lr": 1e-3, "mask": {"rules": [{"name": "weight", "lr": 1.0}]}})
    assert [warning.filename for warning in caught] == [__file__]
    averaging = type("Averaging", (torch.optim.SGD,), {"train": lambda self: None, "eval": lambda self: None})
    with pytest.warns(UserWarning, match="Averaging keeps its own decay") as caught:
        wd.decoupled(averaging)(model.parameters(), lr=0.1, weight_decay=0.1)  # through torch's add_param_group
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="fix: y") as caught:
        warn("x.", fix="y")
    assert caught[0].filename == __file__


def test_hydra_shows_an_error_line_by_line() -> None:
    """It puts the ``repr`` of what a target raises into its own message."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    with pytest.raises(InstantiationException) as caught:
        instantiate({"_target_": "lightning_wd.OptimizerConfig", "name": "adamw", "lr": "abc"})
    assert "ConfigError: optimizer.lr must be a number >= 0 but got 'abc'.\n  found: str\n" in str(caught.value)
