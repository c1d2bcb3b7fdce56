"""Every model type of transformers that can be built from a small configuration, on the meta device."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from helpers.zoo import check_plan, outline
from helpers.zoo_groups import TRANSFORMERS
from torch import nn

from lightning_wd import Mask, plan_decay
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
# Some of the rest need another library, weights, or a configuration of their own; these must be built and planned.
MUST = (
    "albert", "align", "bart", "beit", "bert", "big_bird", "bit", "blip", "blip-2", "bloom", "clap", "clip", "clvp",
    "codegen", "conditional_detr", "convbert", "convnext", "convnextv2", "cvt", "data2vec-audio", "deberta-v2", "deit",
    "detr", "dinov2", "distilbert", "dpt", "efficientnet", "electra", "falcon", "falcon_mamba", "focalnet", "gemma",
    "gpt2", "gpt_neo", "gpt_neox", "gptj", "hiera", "hubert", "jamba", "layoutlm", "levit", "llama", "longformer",
    "mamba", "mamba2", "mistral", "mixtral", "mobilevit", "mpnet", "mpt", "opt", "owlvit", "perceiver", "phi", "pvt",
    "qwen2_moe", "qwen3", "recurrent_gemma", "resnet", "roberta", "roformer", "rwkv", "sam", "segformer", "siglip",
    "swin", "swinv2", "t5", "videomae", "vit", "vits", "wav2vec2", "wav2vec2-conformer", "whisper", "xlnet", "yolos",
    "zamba",
)  # fmt: skip
PARTS = 20  # a part takes seconds on an idle machine, and xdist shares them out


def test_the_zoo_is_large() -> None:
    assert len(MODEL_TYPES) >= 300
    assert set(MUST) <= set(MODEL_TYPES)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_parameter_of_every_model_type_is_placed_correctly(part: int) -> None:
    transformers.logging.set_verbosity_error()
    wrong: dict[str, str] = {}
    planned = 0
    model_types = MODEL_TYPES[part::PARTS]
    for model_type in model_types:
        try:
            model = build(model_type)
        except Exception:
            if model_type in MUST:
                raise
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


# With two layers and a rate of 0.5: the number of halvings under each prefix.
LAYERS = {
    "bert": {"embeddings": 3, "encoder.layer.0": 2, "encoder.layer.1": 1, "pooler": 0},
    "gpt2": {"wte": 3, "wpe": 3, "h.0": 2, "h.1": 1, "ln_f": 0},
    "llama": {"embed_tokens": 3, "layers.0": 2, "layers.1": 1, "norm": 0},
    "vit": {"embeddings": 3, "layers.0": 2, "layers.1": 1, "layernorm": 0, "pooler": 0},
    "dinov2": {"embeddings": 3, "encoder.layer.0": 2, "encoder.layer.1": 1, "layernorm": 0},
    "distilbert": {"embeddings": 2, "transformer.layer.0": 1, "transformer.layer.1": 0},
    "mamba": {"embeddings": 3, "layers.0": 2, "layers.1": 1, "norm_f": 0},
    "t5": {"shared": 3, "encoder.block.0": 2, "encoder.block.1": 1, "encoder.final_layer_norm": 0,
           "decoder.block.0": 2, "decoder.block.1": 1, "decoder.final_layer_norm": 0},
    "clip": {"text_model.embeddings": 3, "text_model.encoder.layers.0": 2, "text_model.encoder.layers.1": 1,
             "text_model.final_layer_norm": 0, "vision_model.embeddings": 3, "vision_model.pre_layrnorm": 3,
             "vision_model.encoder.layers.0": 2, "vision_model.encoder.layers.1": 1,
             "vision_model.post_layernorm": 0, "visual_projection": 0, "text_projection": 0, "logit_scale": 0},
    "segformer": {"stages.0.patch_embeddings": 3, "stages.0.blocks.0": 3, "stages.0.layer_norm": 3,
                  "stages.0.blocks.1": 2, "stages.1.patch_embeddings": 1, "stages.1.blocks.0": 1,
                  "stages.1.layer_norm": 1, "stages.1.blocks.1": 0},
    "pvt": {"encoder.patch_embeddings": 5, "encoder.block.0": 4, "encoder.block.1": 3, "encoder.block.2": 2,
            "encoder.block.3": 1, "encoder.layer_norm": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layerwise_rates_follow_the_naming(name: str) -> None:
    for row in plan_decay(build(name), Mask.layerwise(0.5)):
        prefix = next(prefix for prefix in LAYERS[name] if f"{row.name}.".startswith(f"{prefix}."))
        assert (row.name, row.lr_mult) == (row.name, 0.5 ** LAYERS[name][prefix])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_policy_called_transformers_is_the_trainers(name: str) -> None:
    from transformers import Trainer

    model = build(name)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    plan = peer_plan(model, "transformers")
    assert {row.name for row in plan if row.wd_mult} == {row.name for row in plan if theirs.intersection(row.names)}


def test_a_tied_head_is_one_row_and_the_output_layer() -> None:
    config = transformers.AutoConfig.for_model("gpt2", n_layer=1)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    row = plan_decay(model, style="corrected")["lm_head.weight"]
    assert (row.names, row.style) == (("transformer.wte.weight", "lm_head.weight"), "decoupled")
