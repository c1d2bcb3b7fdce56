"""The command line: audit and convert, their output, exit status and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_wd
from lightning_wd.cli import main

MODEL = """
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
        self.fc = nn.Linear(4, "4" + 4)


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
        return torch.utils.data.DataLoader(self.rows, 16)

    def setup(self, stage):
        self.rows = torch.randn(64, 4)


class Dataless(Lit):
    train_dataloader = L.LightningModule.train_dataloader

    def training_step(self, batch):
        return super().training_step(batch, 0)["loss"]


class Involved(Dataless):
    def training_step(self, batch, batch_idx):
        assert self.trainer.training
        return super().training_step(batch["x"])

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch["b"]

    def train_dataloader(self):
        rows = torch.utils.data.DataLoader([{"x": row} for row in self.rows], 16)
        return {"a": torch.utils.data.DataLoader(self.rows, 2), "b": rows}


class Rows(L.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(64, 4), 16)


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
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "audited.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "audited", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    return main(["audit", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        "audited:Lit --batch",
        "audited:Involved --batch",  # several loaders, a hook on the batch, the trainer
        "audited:Dataless --batch audited:rows",
        "audited:Dataless --batch audited:Rows",
    ],
)
def test_what_decays_only_as_a_learning_rate(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments.split()) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    shares = {row[0]: row[6] for row in rows if len(row) == 8}
    assert float(shares["net.0.weight"]) < 1e-6
    assert float(shares["net.2.weight"]) > 1e-3
    assert (shares["net.3.weight"], shares["net.1.bias"]) == ("-", "-")  # unused; zero
    said = "Tensors that decay only as a learning rate (scale_invariance below 1e-05): 1\n  net.0.weight\n"
    assert out.endswith(said)
    assert run(*arguments.split(), "--json") == 0
    data = {row["name"]: row["scale_invariance"] for row in json.loads(capsys.readouterr().out)["parameters"]}
    assert data["net.0.weight"] < 1e-6
    assert data["net.3.weight"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "audited:Model --batch",
            "no training loss of Model can be computed: it is no LightningModule.\n  fix: name a L",
        ),
        ("audited:Manual --batch", "no training loss of Manual can be computed: it steps its optimizers itself.\n"),
        (
            "audited:Dataless --batch",
            "Dataless has no train_dataloader to take a batch from.\n  fix: write --batch my_",
        ),
        ("audited:Lossless --batch", "training_step of Lossless returned no loss.\n  fix: return the loss, or a d"),
        ("audited:Lit --batch audited", "--batch 'audited' is not MODULE:NAME.\n  fix: write my_pkg.data:batch, as"),
        ("audited:Lit --batch audited:row", "'audited' has no 'row'.\n  nearest: 'rows'\n"),
    ],
)
def test_a_batch_that_gives_no_loss(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments.split()) == 2
    assert capsys.readouterr().err.startswith(f"lightning-wd audit: {words}")


@pytest.mark.parametrize("target", ["audited:Model", "audited:ready"])
def test_the_plan_is_printed_with_its_totals(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(target) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows == [
        ["pos_embed", "1 x 3 x 4", "no_decay", "0", "1", "-", "hook Model.no_weight_decay()"],
        ["fc.weight", "4 x 4", "decay", "1", "1", "-", "weight"],
        ["fc.bias", "4", "no_decay", "0", "1", "-", "bias"],
        ["norm.weight", "4", "no_decay", "0", "1", "-", "norm layer BatchNorm1d"],
        ["norm.bias", "4", "no_decay", "0", "1", "-", "bias"],
        ["no_decay", "4", "24"],
        ["decay", "1", "16"],
        ["all", "5", "40"],
    ]
    assert "Tensors by kind: 1 decayed weight, 2 excluded bias, 1 excluded norm, 1 excluded table" in out


def test_the_difference_to_another_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audited:Wrapped", "--against", "timm") == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-2:] == [
        "Parameters treated differently by timm (this plan / timm): 1",
        "  model.pos_embed: no_decay (hook Model.no_weight_decay()) / decay (timm)",
    ]
    assert run("audited:Model", "--against", "transformers", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["against"]["policy"] == "transformers"
    assert [(d["name"], d["this"]["group"], d["other"]["group"]) for d in data["against"]["differences"]] == [
        ("pos_embed", "no_decay", "decay"),
    ]


def test_a_policy_knows_no_styles_and_no_rates(capsys: pytest.CaptureFixture[str]) -> None:
    rule = "{rules: [{name: fc.*, lr_mult: 2}]}"
    assert run("audited:Model", "--style", "decoupled", "--mask", rule, "--against", "ndim") == 0
    assert "Parameters treated differently by ndim (this plan / ndim): 1" in capsys.readouterr().out


def test_json_is_the_plan_as_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audited:Model", "--json", "--style", "corrected") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["style"], data["failures"]) == ("corrected", {})
    assert [(row["name"], row["group"]) for row in data["parameters"]][1] == ("fc.weight", "decay_decoupled")


def test_fail_on_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audited:Model", "--fail-on", "decayed:norm", "--fail-on", "decayed:bias") == 0
    assert run("audited:Model", "--mask", "all", "--fail-on", "decayed:norm", "--fail-on", "excluded:weight") == 1
    assert capsys.readouterr().err == "--fail-on decayed:norm: 2 parameters: norm.weight, norm.bias\n"
    rule = "{rules: [{name: norm.bias, wd_mult: 1}]}"
    assert run("audited:Model", "--mask", rule, "--fail-on", "decayed:norm") == 1
    assert capsys.readouterr().err == "--fail-on decayed:norm: 1 parameter: norm.bias\n"
    assert run("audited:Late", "--mask", "all", "--fail-on", "decayed:norm") == 1
    assert run("audited:Part", "--mask", "all", "--fail-on", "decayed:norm") == 1
    capsys.readouterr()
    for condition in ("decayed:embedding", "decayed:weight"):  # a tied tensor is both
        assert run("audited:Tied", "--fail-on", condition) == 1
        assert capsys.readouterr().err == f"--fail-on {condition}: 1 parameter: head.weight\n"
    assert run("audited:Model", "--style", "none", "--fail-on", "decayed:weight") == 0
    assert run("audited:Model", "--style", "none", "--fail-on", "excluded:weight") == 1


@pytest.mark.parametrize("output", [[], ["--json"]])
@pytest.mark.parametrize(("condition", "status"), [("decayed:bias", 0), ("decayed:weight", 1)])
def test_a_reader_that_leaves_changes_no_status(output: list[str], condition: str, status: int, package: Path) -> None:
    """As ``lightning-wd audit ... | head``; a writer's own status for it is 1, that of a finding."""
    command = [sys.executable, "-c", "import sys; from lightning_wd.cli import main; sys.exit(main())", "audit"]
    path = os.pathsep.join([str(package), str(Path(__file__).parents[1])])
    with subprocess.Popen(
        [*command, "audited:Large", "--fail-on", condition, *output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == status
    assert err.startswith(f"--fail-on {condition}: 2000 parameters: " if status else "")
    assert "Error" not in err


def test_what_the_models_own_code_does_cannot_pass_for_a_result(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("audited:Loud", "--json") == 0
    out, err = capsys.readouterr()
    assert (len(json.loads(out)["parameters"]), err) == (5, "building\n")
    (package / "script.py").write_text(f"{MODEL}\nraise SystemExit(0)\n")
    assert run("script:Model", "--fail-on", "decayed:norm") == 2
    assert "'script:Model' exits with status 0 when it is imported or built." in capsys.readouterr().err
    assert run("audited:ends", "--fail-on", "decayed:norm") == 2
    assert "'audited:ends' exits with status 0 when it is imported or built." in capsys.readouterr().err
    assert run("torch.nn:Identity", "--fail-on", "decayed:norm") == 2
    assert "'torch.nn:Identity' has no parameters." in capsys.readouterr().err


def test_masks_come_from_a_mapping_or_a_file(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "mask.yaml").write_text('base: none\nrules:\n  - {name: "*.norm.*", wd_mult: 1e-1}\n')
    assert run("audited:Model", "--mask", "mask.yaml", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert run("audited:Model", "--mask", '{base: none, rules: [{name: "*.norm.*", wd_mult: 1e-1}]}', "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {row["name"]: row["wd_mult"] for row in first["parameters"] if row["wd_mult"]} == {
        "norm.weight": 0.1, "norm.bias": 0.1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["audited"],
            "model 'audited' is not MODULE:NAME.\n  fix: write my_pkg.module:Model, as in an entry point",
        ),
        (["audited:Modle"], "'audited' has no 'Modle'.\n  nearest: 'Model'\n  fix: write audited:Model"),
        (["audited:number"], "'audited:number' is not a model.\n  found: int\n  fix: name a class, function or module"),
        (["audited:text"], "'audited:text' built no torch.nn.Module.\n  found: str\n  fix: return the model itself"),
        (
            ["audited:Args"],
            "'audited:Args' cannot be built without arguments: Args.__init__() missing 1 required positional argument: "
            "'width'\n  fix: write a function without arguments that returns the model, and name that",
        ),
        (
            ["audited:Model", "--fail-on", "decayed:nrom"],
            "--fail-on 'decayed:nrom' is not STATE:KIND: 'nrom' is unknown.\n"
            "  valid: bias, adapter, norm, magnitude, state, scale, vector, table, embedding, weight\n"
            "  nearest: 'norm'\n  fix: write decayed:norm",
        ),
        (
            ["audited:Model", "--fail-on", "norm:norm"],
            "--fail-on 'norm:norm' is not STATE:KIND: 'norm' is unknown.\n"
            "  valid: decayed, excluded, frozen\n  fix: write decayed:norm",
        ),
        (
            [".audited:Model"],
            "model '.audited:Model' is not MODULE:NAME.\n  fix: write my_pkg.module:Model, as in an entry point",
        ),
        (
            ["audited:Model", "--mask", "[{name: '*.norm.*', wd_mult: 0}]"],
            "mask \"[{name: '*.norm.*', wd_mult: 0}]\" is a list.\n"
            "  fix: write {rules: [{name: '*.norm.*', wd_mult: 0}]}",
        ),
        (
            ["audited:Model", "--against", "tim"],
            "--against 'tim' is unknown.\n  valid: timm, transformers, ndim\n"
            "  nearest: 'timm'\n  fix: write --against=timm",
        ),
        (
            ["audited:Model", "--mask", "no.yaml"],
            "mask file 'no.yaml' does not exist.\n  fix: correct the path, or name a preset",
        ),
        (
            ["audited:Model", "--mask", "{rules: [{name: '*.nrom.*', wd_mult: 0}]}"],
            "mask pattern '*.nrom.*' matched no parameter.\n  found: 5 trainable parameters, 0 matches\n"
            "  nearest: '*.norm.*' (2 matches: norm.weight, ...)\n  fix: correct the pattern, or remove it",
        ),
    ],
)
def test_errors_say_what_to_do_and_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err == f"lightning-wd audit: {message}\n"


@pytest.mark.parametrize("mask", ["{base: [none}", "bad.yaml", "{base: '${oc.env:NO_SUCH_VARIABLE}'}"])
def test_a_mask_that_is_no_yaml(mask: str, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "bad.yaml").write_text("base: [none\n")
    assert run("audited:Model", "--mask", mask) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"lightning-wd audit: mask {mask!r} cannot be read as YAML.\n  found: ")
    assert "\n  fix: write {base: standard, rules: [" in err
    assert "Traceback" not in err


def test_a_model_that_fails_shows_where_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own status for it is 1, which a CI job would read as a finding of --fail-on."""
    assert run("audited:Broken", "--fail-on", "decayed:norm") == 2
    err = capsys.readouterr().err
    assert 'self.fc = nn.Linear(4, "4" + 4)' in err
    assert "without arguments" not in err


def test_brackets_in_names_and_reasons_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rule = r"{rules: [{name: 'regex:^blocks\.\[[/ab]*\]\.weight', wd_mult: 0.5}]}"
    assert run("audited:Bracketed", "--mask", rule) == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows if row and row[0].endswith("weight")] == [
        ("blocks.[a].weight", r"rule name 'regex:^blocks\\.\\[[/ab]*\\]\\.weight'"),
        ("blocks.[/b].weight", r"rule name 'regex:^blocks\\.\\[[/ab]*\\]\\.weight'"),
    ]


def test_a_module_that_cannot_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("no_such_package.models:Model") == 2
    assert (
        "module 'no_such_package.models' cannot be imported: No module named 'no_such_package'"
        in capsys.readouterr().err
    )


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from lightning_wd import cli; sys.modules['torch'] = None\nsys.exit(cli.main(['audit', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--fail-on" in done.stdout
    broken = code.replace("'audit', '--help'", "'audit', 'audited:Model'")  # the proof can fail
    assert subprocess.run([sys.executable, "-c", broken], capture_output=True, check=False).returncode != 0


# --- convert ----------------------------------------------------------------------------------------------------------


CARRY = "--from-batch 256 --from-steps 1000 --batch 1024 --steps 250 --family adam"


@pytest.mark.parametrize(
    ("amount", "printed"),
    [
        ("0.1 --from decoupled --to independent", "lr               0.002\n0.0004\n"),
        ("1e-4 --from independent --to independent", "lr               0.002\n0.0004\n"),
        ("0.05 --from normalized --to normalized", "lr               0.002\n0.05\n"),
        ("2 --from timescale_runs --to timescale_runs", "lr               0.002\n2.0\n"),
    ],
)
def test_convert_carries_over(amount: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"convert {amount} --lr 1e-3 {CARRY}".split()) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(("rule", "printed"), [("linear", "0.004\n0.1\n"), ("none", "0.001\n0.4\n")])
def test_convert_takes_a_rule(rule: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"convert 0.1 --from decoupled --to decoupled --lr 1e-3 {CARRY} --lr-rule {rule}".split()) == 0
    assert capsys.readouterr().out == f"lr               {printed}"


def test_convert_carries_over_in_every_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"convert 0.1 --from decoupled --lr 1e-3 {CARRY}".split()) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lr               0.002",
        "decoupled        0.2",
        "independent      0.0004",
        "normalized       0.00632456",
        "timescale_epochs needs --steps-per-epoch",
        "timescale_runs   10",
        "sgd_l2           needs --momentum",
    ]


def test_convert(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "5e-4", "--from", "sgd_l2", "--to", "decoupled", "--lr", "0.1", "--momentum", "0.9"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(5e-3, rel=1e-12)
    steps = ["--lr", "1e-3", "--total-steps", "10000"]
    assert main(["convert", "0.05", "--from", "normalized", "--to", "independent", *steps]) == 0
    assert float(capsys.readouterr().out) == 0.0005
    assert main(["convert", "0.05", "--from", "normalised", "--to", "independent", *steps]) == 2
    assert "nearest: 'normalized'" in capsys.readouterr().err


def test_all_units_of_an_amount(capsys: pytest.CaptureFixture[str]) -> None:
    """d = 1e-3 * 0.1 = 1e-4; normalized 1e-4 * sqrt(10000); timescale 1e4 steps of 100; SGD's L2 d * (1 - 0.9) / lr."""
    command = "convert 0.1 --from decoupled --lr 1e-3 --momentum 0.9 --total-steps 10000 --steps-per-epoch 100"
    assert main(command.split()) == 0
    assert capsys.readouterr().out.split() == (
        "decoupled 0.1 independent 0.0001 normalized 0.01 timescale_epochs 100 timescale_runs 1 sgd_l2 0.01".split()
    )


def test_units_that_need_steps_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("convert 0.1 --from decoupled --lr 1e-3".split()) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "normalized       needs --total-steps",
        "timescale_epochs needs --steps-per-epoch",
        "timescale_runs   needs --total-steps",
        "sgd_l2           needs --momentum",
    ]


def test_one_unit_is_a_plain_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("convert 0.1 --from decoupled --to independent --lr 1e-3".split()) == 0
    assert capsys.readouterr().out == "0.0001\n"
    assert main("convert 0.1 --from decoupled --to decoupledd --lr 1e-3".split()) == 2
    assert "nearest: 'decoupled'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("0.1 --from decopled --lr 1", "--from 'decopled' is unknown.\n"),
        ("0.1 --from decoupled --to sgdl2 --lr 1", "--to 'sgdl2' is unknown.\n"),
        ("0.1 --from decoupled --lr -1", "--lr must be a number >= 0 but got -1.0.\n"),
        ("nan --from decoupled --lr 1", "the amount must be a number >= 0 but got nan.\n"),
        ("0.1 --from sgd_l2 --lr 1 --momentum 1", "--momentum must be a number >= 0 and < 1 but got 1.0.\n"),
        (
            "0.1 --from sgd_l2 --to decoupled --lr 1",
            "unit 'sgd_l2' needs --momentum.\n  fix: add --momentum <number>\n",
        ),
        ("1 --from decoupled --to timescale_runs --lr 1", "unit 'timescale_runs' needs --total-steps.\n"),
        (
            "1 --from timescale_epochs --lr 1 --steps-per-epoch 0",
            "--steps-per-epoch must be a number > 0 but got 0.0.\n",
        ),
        ("1 --from decoupled --lr 1 --total-steps -5", "--total-steps must be a number > 0 but got -5.\n"),
        ("1 --from palm --lr 1", "--from 'palm' is unknown.\n"),
        (f"1 --from palm --lr 1 {CARRY}", "--from 'palm' is unknown.\n"),
        ("1 --from decoupled --lr 1 --batch 8", "nothing can be carried over without --from-batch, --from-steps, "),
        (f"1 --from decoupled --lr 1 {CARRY} --from-batch 0", "--from-batch must be a whole number >= 1 but got 0.\n"),
        (f"1 --from decoupled --lr 1 {CARRY} --batch 0", "--batch must be a whole number >= 1 but got 0.\n"),
        (f"1 --from decoupled --lr 1 {CARRY} --family adamw", "--family 'adamw' is unknown.\n  valid: adam, sgd\n"),
        (
            f"1 --from decoupled --lr 1 {CARRY} --lr-rule lin",
            "--lr-rule 'lin' is unknown.\n  valid: sqrt, linear, none\n",
        ),
        (
            "1 --from decoupled --lr 1 --lr-rule none",
            "nothing can be carried over without --from-batch, --from-steps, ",
        ),
        (f"1 --from decoupled --lr 1 {CARRY} --total-steps 9", "--steps and --total-steps are one number.\n"),
        (f"1 --from sgd_l2 --lr 1 {CARRY}", "reference has no tested rule for style 'l2' of an adaptive optimizer.\n"),
        ("1 --from independent --to decoupled --lr 0", "--lr is 0, so no 'decoupled' coefficient gives"),
    ],
)
def test_errors_name_what_was_typed(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(f"lightning-wd convert: {message}")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--mask standrd", ["--mask 'standrd' is unknown.", "fix: write --mask=standard\n"]),
        ("--style corected", ["--style 'corected' is unknown.", "fix: write --style=corrected\n"]),
        ("--against tim", ["--against 'tim' is unknown.", "fix: write --against=timm\n"]),
    ],
)
def test_an_audit_names_the_option(option: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "lightning.pytorch.demos.boring_classes:BoringModel", *option.split()]) == 2
    printed = capsys.readouterr().err
    assert [word for word in words if word not in printed] == []


# --- identify -------------------------------------------------------------------------------------------------------


def test_identify_prints_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", "torch.optim.NAdam", "decoupled_weight_decay=true", "betas=[0.9,0.99]", "eps=1e-6"]) == 0
    first, same, formula = capsys.readouterr().out.splitlines()
    assert first == "NAdam: decoupled"
    assert same == "  A step removes the same fraction d of all old weights: p95/p5 = 1."
    assert formula.startswith("  d = lr_t * weight_decay: 0.000122 at lr_t=0.015625, ")
    assert main(["identify", "torch.optim.Adam"]) == 0
    assert capsys.readouterr().out.startswith("Adam: l2\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torhc.optim.Adam"], ["'torhc.optim.Adam' cannot be imported", "fix: write torch.optim.Adam"]),
        (["torch.nn.Linear"], ["'torch.nn.Linear' is no torch.optim.Optimizer class"]),
        (["torch.optim.Adam", "bets=[0.9,0.9]"], ["Adam has no key 'bets'.", "nearest: 'betas'"]),
        (["torch.optim.Adam", "betas=[2,2]"], ["Adam cannot be made with betas=(2, 2)."]),
        (["torch.optim.Adam", "betas"], ["'betas' is not KEY=VALUE.", "fix: write for example momentum=0.9"]),
        (["torch.optim.Adam", "betas=[0.9"], ["the value of 'betas=[0.9' cannot be read as YAML."]),
        (["torch.optim.swa_utils.Needs"], ["torch.optim.swa_utils has no 'Needs'"]),
    ],
)
def test_identify_says_what_is_wrong(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["identify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lightning-wd identify: ")
    for part in words:
        assert part in captured.err


def test_the_version_and_the_examples_of_each_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"lightning-wd {lightning_wd.__version__}\n"
    for name in ("audit", "convert", "identify", "heatmap", "curves"):
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
        assert len(shown) >= 2
        assert all(line.startswith(f"  lightning-wd {name} ") for line in shown)
