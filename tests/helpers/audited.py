"""Models that a user of ``lightning-wd audit`` may name, right and wrong."""

import lightning as L
import torch
from torch import nn


class MyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 3, 4))
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def no_weight_decay(self):
        return {"pos_embed"}


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Model()


class Args(nn.Module):
    def __init__(self, width):
        super().__init__()


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, "4" + 4)  # type: ignore[operator]


class Bracketed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"[a]": nn.Linear(2, 2), "[/b]": nn.Linear(2, 2)})


class Late(nn.Module):
    def configure_model(self):
        self.norm = nn.LayerNorm(4)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def configure_model(self):
        self.norm = nn.LayerNorm(4)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.wte = nn.Linear(4, 8, bias=False), nn.Embedding(8, 4)
        self.wte.weight = self.head.weight


class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(2000))


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, eps=1e-9), nn.Linear(8, 1), nn.Linear(3, 3))

    def training_step(self, batch, batch_idx):
        loss = self.net[:3](batch).sub(1).square().mean()
        self.log("loss", loss)
        return {"loss": loss}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.rows, 16)  # type: ignore[arg-type]

    def setup(self, stage):
        self.rows = torch.randn(64, 4)


class Dataless(Lit):
    train_dataloader = L.LightningModule.train_dataloader

    def training_step(self, batch):  # type: ignore[override]
        return super().training_step(batch, 0)["loss"]


class Involved(Dataless):
    def training_step(self, batch, batch_idx):  # type: ignore[override]
        assert self.trainer.training
        return super().training_step(batch["x"])

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch["b"]

    def train_dataloader(self):
        rows = torch.utils.data.DataLoader([{"x": row} for row in self.rows], 16)  # type: ignore[var-annotated, arg-type]
        return {"a": torch.utils.data.DataLoader(self.rows, 2), "b": rows}  # type: ignore[arg-type]


class Rows(L.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(64, 4), 16)  # type: ignore[arg-type]


class Manual(Lit):
    automatic_optimization = False


class Lossless(Lit):
    def training_step(self, batch, batch_idx):
        return None


def rows():
    return torch.randn(16, 4)


class Loud(Model):
    def __init__(self):
        super().__init__()
        print("building")


ready = Model()
number = 3


def ends():
    raise SystemExit(0)


def text():
    return "model"
