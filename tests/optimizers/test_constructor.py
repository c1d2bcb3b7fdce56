"""What a constructor takes, also where it takes any keyword."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers.constructor import keywords_of, missing_keywords


class Swallows(torch.optim.Optimizer):
    """It takes any keyword, as those of pytorch_optimizer do, and reads some of them."""

    def __init__(self, params: Any, size: int, lr: float = 1e-3, **kwargs: Any) -> None:
        self.clip = kwargs.get("clip", 0.0)
        super().__init__(params, {"lr": lr, "size": size, **kwargs})

    def step(self, closure: Any = None) -> Any:
        for g in self.param_groups:
            g["count"] = g.get("count", 0) + 1  # it writes this one
            if "centred" in g or g["nesterov"] or self.defaults.get("cautious"):
                self.state[g["params"][0]]["exp_avg"] = self.state[g["params"][0]]["size_avg"]


class Passes(torch.optim.AdamW):
    def __init__(self, params: Any, *args: Any, depth: int = 2, **settings: Any) -> None:
        super().__init__(params, *args, **settings)


def test_what_nothing_reads_is_no_keyword() -> None:
    assert set(keywords_of(Swallows)) == {"size", "lr", "clip", "centred", "nesterov", "cautious"}
    assert missing_keywords(Swallows, {"lr": 0.1}) == ["size"]


def test_any_keyword_may_be_one_of_a_base() -> None:
    assert {"depth", "lr", "betas", "eps", "amsgrad"} <= keywords_of(Passes).keys()
    assert not {"settings", "args", "params", "defaults"} & keywords_of(Passes).keys()


def test_a_class_without_source_has_what_it_names() -> None:
    made: dict[str, Any] = {"torch": torch, "__name__": "typed_in"}
    exec("class Typed(torch.optim.SGD):\n    def __init__(self, params, beta=0.9, **more): ...", made)
    assert {"beta", "momentum"} <= keywords_of(made["Typed"]).keys()


def test_identify_refuses_what_is_swallowed() -> None:
    with pytest.raises(wd.ConfigError, match=r"Swallows has no key 'nestrov'(?s:.*)nearest: 'nesterov'"):
        wd.identify(Swallows, size=2, nestrov=True)


@pytest.mark.parametrize(
    ("name", "read", "misspelt"), [("AdaBelief", "adanorm", "adanrom"), ("Adan", "use_gc", "weight_decuple")]
)
def test_pytorch_optimizer_keeps_what_it_swallows_in_its_groups(name: str, read: str, misspelt: str) -> None:
    module = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    named = keywords_of(getattr(module, name))
    assert read in named
    assert misspelt not in named
    assert misspelt in getattr(module, name)([torch.nn.Parameter(torch.ones(1))], **{misspelt: True}).param_groups[0]
