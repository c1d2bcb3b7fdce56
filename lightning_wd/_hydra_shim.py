"""Installed as ``hydra_plugins/lightning_wd_searchpath.py``, where Hydra 1.3 looks for plugins."""

from lightning_wd._hydra import LightningWDSearchPathPlugin as LightningWDSearchPathPlugin
