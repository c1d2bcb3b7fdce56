"""Every model type of transformers that can be built from a small configuration, on the meta device."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from groups import TRANSFORMERS
from torch import nn
from zoo import check_plan, outline

from lightning_wd import plan_decay
from lightning_wd.mask import peer_plan

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: make test-zoo runs the zoo in an environment of its own"
)

DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)


def build(model_type: str) -> nn.Module:
    config = transformers.AutoConfig.for_model(model_type)
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        for key in DEPTHS:
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, 2)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return transformers.AutoModel.from_config(config)  # type: ignore[no-any-return]


MODEL_TYPES = list(transformers.models.auto.modeling_auto.MODEL_MAPPING_NAMES)
PARTS = 20  # a part takes seconds on an idle machine, and xdist shares them out


def test_the_zoo_is_large() -> None:
    assert len(MODEL_TYPES) >= 300


@pytest.mark.parametrize("part", range(PARTS))
def test_every_parameter_of_every_model_type_is_placed_rightly(part: int) -> None:
    transformers.logging.set_verbosity_error()
    wrong: dict[str, str] = {}
    planned = 0
    model_types = MODEL_TYPES[part::PARTS]
    for model_type in model_types:
        try:
            model = build(model_type)
        except Exception:  # needs another library, weights, or a configuration of its own: not ours to judge
            continue
        try:
            check_plan(model)
            planned += 1
        except Exception as error:
            wrong[model_type] = str(error)
    assert wrong == {}
    assert planned >= len(model_types) / 2


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_exact_groups(name: str) -> None:
    plan = plan_decay(nn.ModuleDict({"model": build(name)}))
    for group, expected in zip(("decay", "no_decay"), TRANSFORMERS[name], strict=True):
        assert outline(row.name.removeprefix("model.") for row in plan if row.group == group) == expected


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_policy_called_transformers_is_the_trainers(name: str) -> None:
    from transformers import Trainer

    model = build(name)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    plan = peer_plan(model, "transformers")
    assert {row.name for row in plan if row.decay} == {row.name for row in plan if theirs.intersection(row.names)}


def test_a_tied_head_is_one_row_and_the_output_layer() -> None:
    config = transformers.AutoConfig.for_model("gpt2", n_layer=1)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    row = plan_decay(model, style="corrected")["lm_head.weight"]
    assert (row.names, row.style) == (("transformer.wte.weight", "lm_head.weight"), "decoupled")
