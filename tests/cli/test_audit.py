"""``lightning-wd audit``: its output, exit status and errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_wd.cli import main


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(Path(__file__).parents[1] / "helpers" / "audited.py", tmp_path)
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
    (package / "script.py").write_text("raise SystemExit(0)\n")
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
