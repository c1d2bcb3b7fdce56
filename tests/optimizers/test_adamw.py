"""AdamW and AdamL2: a fused step is torch's, with no more Python calls."""

from __future__ import annotations

import functools
import gc
import sys
from typing import Any

import pytest
import torch

import lightning_wd as wd


def python_calls(function: Any) -> int:
    calls = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    gc.disable()  # the finalizers of what other tests have left would be counted
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return calls


@pytest.mark.parametrize("flags", [{}, {"amsgrad": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("l2", [False, True], ids=["AdamW", "AdamL2"])
def test_a_fused_step_is_torchs_to_the_last_bit_by_no_more_python(l2: bool, flags: dict[str, Any]) -> None:
    peer, style = (torch.optim.Adam, "l2") if l2 else (torch.optim.AdamW, "decoupled")
    params: list[list[torch.nn.Parameter]] = []
    optimizers: list[torch.optim.Optimizer] = []
    for make in (peer, functools.partial(wd.AdamW, style=style)):
        source = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in ((4, 3), (5,), (2, 2), (3,))]
        groups: list[dict[str, Any]] = [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}]
        params.append(weights)
        optimizers.append(make(groups, lr=0.1, weight_decay=0.1, fused=True, **flags))
    for _ in range(3):
        for pair in zip(*params, strict=True):
            gradient = torch.randn(pair[0].shape)
            for w in pair:
                w.grad = gradient.clone()
        theirs, ours = (python_calls(optimizer.step) for optimizer in optimizers)
        for theirs_w, ours_w in zip(*params, strict=True):
            assert torch.equal(theirs_w, ours_w)
            states = [optimizer.state[w] for optimizer, w in zip(optimizers, (theirs_w, ours_w), strict=True)]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert ours <= theirs
