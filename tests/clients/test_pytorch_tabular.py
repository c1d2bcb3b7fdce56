"""pytorch-tabular: deep learning on tables (https://github.com/pytorch-tabular/pytorch_tabular)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.clients import check, names

pytest.importorskip(
    "pytorch_tabular",
    reason="pytorch_tabular is not installed: make test-clients runs these in an environment of its own",
)


def build() -> tuple[Any, dict[str, Any]]:
    import numpy as np
    import pandas as pd
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import FTTransformerConfig
    from torch.utils.data import SequentialSampler

    noise = np.random.default_rng(0)
    table = pd.DataFrame({"a": noise.normal(size=40), "b": noise.normal(size=40), "kind": list("xyxzz") * 8})
    table["y"] = table["a"] - table["b"]
    model = TabularModel(
        data_config=DataConfig(target=["y"], continuous_cols=["a", "b"], categorical_cols=["kind"], num_workers=0),
        model_config=FTTransformerConfig(task="regression", input_embed_dim=8, num_heads=2, num_attn_blocks=1),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(batch_size=8, auto_lr_find=False),
        verbose=False,
    )
    in_order = SequentialSampler(table)  # a resumed run cannot continue a shuffle
    data = model.prepare_dataloader(table, validation=table[:8], train_sampler=in_order)
    return model.prepare_model(data), {
        "train_dataloaders": data.train_dataloader(),
        "val_dataloaders": data.val_dataloader(),
    }


def test_ft_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # TabularModel writes its version file into the working directory
    no_decay = names(
        "_backbone.add_cls.weight",  # the [CLS] token
        "_backbone.transformer_blocks.mha_block_0.mha.to_out.bias",
        "_backbone.transformer_blocks.mha_block_0.{attn,ff}_add_norm.ln.{weight,bias}",
        "{_backbone,_embedding_layer}.normalizing_batch_norm.bn.{weight,bias}",
        "_embedding_layer.{cat,cont}_embedding_bias",
        "_embedding_layer.cat_embedding_layers.0.shared_embed",  # one row for all values of a column
        "_head.layers.0.bias",
    )
    unused = tuple(names("_backbone.normalizing_batch_norm.bn.{weight,bias}"))  # the model never calls it
    check(build, tmp_path, no_decay, namespace="pytorch_lightning", untouched=unused)
