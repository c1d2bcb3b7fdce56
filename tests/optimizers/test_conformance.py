"""PyTorch's own optimizer inputs and error inputs, on every public optimizer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the module warns of other packages as it is imported
    common = pytest.importorskip("torch.testing._internal.common_optimizers", reason="needs expecttest")

INFOS = {info.optim_cls.__name__: info for info in common.optim_db}
NAMES = ["NAdam", "RAdam", "RMSprop", "Adagrad", "Adamax", "Adadelta", "ASGD", "Rprop", "Adafactor", "Muon"]
PUBLIC = [(wd.AdamW, "AdamW"), (AdamL2, "Adam"), (wd.SGDW, "SGD"), (SGDL2, "SGD")]
PUBLIC += [(wd.decoupled(getattr(torch.optim, n)), n) for n in NAMES if n in INFOS and hasattr(torch.optim, n)]
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def allowed(info: Any, implementation: str) -> bool:
    if implementation == "fused":
        return "fused" in info.supported_impls
    return implementation == "default" or "foreach" in info.supported_impls


CASES = [
    pytest.param(cls, name, impl, dtype, id=f"{cls.__name__}-{impl}-{dtype}")
    for cls, name in PUBLIC
    for impl in IMPLEMENTATIONS
    if allowed(INFOS[name], impl)
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
]


@pytest.mark.filterwarnings("ignore:the decay of group 0 is lost")  # some inputs are that small in bfloat16
@pytest.mark.parametrize(("cls", "name", "implementation", "dtype"), CASES)
def test_steps_on_torchs_inputs(cls: Any, name: str, implementation: str, dtype: torch.dtype) -> None:
    """Finite, moving downhill, and reproducible from a saved state, for each of torch's own inputs."""
    info = INFOS[name]
    count = 0
    for case in info.optim_inputs_func("cpu", dtype=dtype):
        settings = {**case.kwargs, **IMPLEMENTATIONS[implementation]}
        if implementation == "foreach" and isinstance(settings.get("lr"), torch.Tensor):
            continue  # torch refuses it for its own
        if implementation == "fused" and cls in (wd.SGDW, SGDL2) and dtype == torch.bfloat16:
            continue  # refused in words: torch's kernel does nothing
        if settings.pop("decoupled_weight_decay", None) and "NAdam" not in name and "RAdam" not in name:
            continue
        weight = torch.nn.Parameter(torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 6).to(dtype))
        optimizer = cls([("weight", weight)], **settings)
        sign = -1 if settings.get("maximize") else 1

        def step(optimizer: Any = optimizer, weight: torch.nn.Parameter = weight, sign: int = sign) -> float:
            optimizer.zero_grad()
            loss = sign * weight.float().square().sum()
            loss.backward()
            optimizer.step()
            return loss.item() * sign

        losses = [step() for _ in range(6)]
        twin = copy.deepcopy(optimizer)
        state = copy.deepcopy(optimizer.state_dict())
        losses.append(step())
        assert torch.isfinite(weight).all(), case
        assert losses[-1] <= losses[0] * 1.001, case  # Muon moves a bfloat16 weight up by a rounding
        other = twin.param_groups[0]["params"][0]
        twin.load_state_dict(state)
        step(twin, other)
        torch.testing.assert_close(other, weight, rtol=1e-6, atol=0)  # NAdam keeps a product in float32
        count += 1
    assert count or (implementation == "fused" and dtype == torch.bfloat16)


@pytest.mark.parametrize(("cls", "name"), PUBLIC, ids=lambda v: getattr(v, "__name__", v))
def test_torchs_error_inputs_keep_torchs_words(cls: Any, name: str) -> None:
    for case in INFOS[name].optim_error_inputs_func("cpu", torch.float64):
        given = case.optimizer_error_input
        if case.error_on is not common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            continue
        params = given.params
        if params is None:
            params = [torch.nn.Parameter(torch.randn(2, 2)) for _ in range(2)]
        if issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                cls(params, **given.kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                cls(params, **given.kwargs)
