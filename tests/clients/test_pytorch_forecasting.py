"""pytorch-forecasting: time series (https://github.com/sktime/pytorch-forecasting)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.clients import check, names

pytest.importorskip(
    "pytorch_forecasting",
    reason="pytorch_forecasting is not installed: make test-clients runs these in an environment of its own",
)


def build() -> tuple[Any, dict[str, Any]]:
    import numpy as np
    import pandas as pd
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

    time, shop = np.meshgrid(np.arange(20), ["a", "b"])
    table = pd.DataFrame({"time": time.ravel(), "shop": shop.ravel()})
    table["sold"] = np.sin(table["time"]) + (table["shop"] == "b")
    series = TimeSeriesDataSet(
        table, time_idx="time", target="sold", group_ids=["shop"], max_encoder_length=6, max_prediction_length=2,
        static_categoricals=["shop"], time_varying_known_reals=["time"], time_varying_unknown_reals=["sold"],
    )  # fmt: skip
    module = TemporalFusionTransformer.from_dataset(
        series, hidden_size=8, hidden_continuous_size=4, attention_head_size=2, log_interval=-1
    )
    return module, {"train_dataloaders": series.to_dataloader(train=True, batch_size=8, num_workers=0, shuffle=False)}


def test_temporal_fusion_transformer(tmp_path: Path) -> None:
    gated = (  # each gated residual network
        "{encoder,decoder}_variable_selection.single_variable_grns.time",
        "encoder_variable_selection.single_variable_grns.sold",
        "encoder_variable_selection.flattened_grn",
        "static_context_{variable_selection,initial_hidden_lstm,initial_cell_lstm,enrichment}",
        "static_enrichment",
        "pos_wise_ff",
    )
    no_decay = names(
        "prescalers.{time,sold}.bias",
        "static_variable_selection.single_variable_grns.shop.{mask,norm.weight,norm.bias}",
        *(f"{one}.resample_norm.{{mask,norm.weight,norm.bias}}" for one in gated[:3]),
        *(f"{one}.{{fc1.bias,fc2.bias,gate_norm.glu.fc.bias}}" for one in gated),
        *(f"{one}.gate_norm.add_norm.norm.{{weight,bias}}" for one in gated),
        "lstm_{encoder,decoder}.bias_{ih,hh}_l0",
        "post_lstm_gate_encoder.fc.bias",
        "post_lstm_add_norm_encoder.norm.{weight,bias}",
        "multihead_attn.{v_layer,q_layers.0,q_layers.1,k_layers.0,k_layers.1}.bias",
        "{post_attn,pre_output}_gate_norm.{glu.fc.bias,add_norm.norm.weight,add_norm.norm.bias}",
        "output_layer.bias",
    )
    check(build, tmp_path, no_decay)
