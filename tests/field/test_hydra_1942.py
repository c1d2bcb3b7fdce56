"""A ``glob(*)`` sweep did not see the options of a package on ``hydra.searchpath``.

https://github.com/facebookresearch/hydra/issues/1942 (hydra#1942)

There: with ``hydra: {searchpath: [pkg://...]}`` in the primary config, ``group=glob(*)`` lists the options of the app's
own folder only, and a sweep over none of them ends at once, with exit code 0. Hydra 1.4 looks there too.
Here: the recipe asks for the pack in just this way, and refuses such a sweep with the options to name.
"""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from helpers.recipe import train_here

pytestmark = pytest.mark.skipif(hydra.__version__ >= "1.4", reason="from Hydra 1.4 on a glob finds the pack's options")


@pytest.mark.parametrize(
    ("key", "glob", "found", "options"),
    [
        (
            "optimizer/mask",
            "glob(*)",
            "no option",
            ["adapters", "all", "matrices", "no_embeddings", "none", "standard"],
        ),
        (
            "lr_scheduler",
            "glob([d*,w*])",
            "drop_step",
            ["drop_step", "warmup_cosine", "warmup_linear", "warmup_one_minus_sqrt", "wsd"],
        ),
        ("optimizer@optimizer", "glob(adam*,exclude=adam_l2)", "no option", ["adamaxw", "adamw"]),
    ],
)
def test_a_glob_that_misses_options_of_the_pack_is_refused(
    key: str, glob: str, found: str, options: list[str], tmp_path: Path
) -> None:
    done = train_here("-m", f"{key}={glob}", cwd=tmp_path, ok=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{key}={glob} misses options of the pack: Hydra does not look for them on hydra.searchpath.\n"
        f"  found: {found}\n"
        f"  valid: {', '.join(options)}\n"
        f"  fix: name them: {key}={','.join(options)}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_glob_in_the_config_of_the_sweeper_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "more/experiment").mkdir(parents=True)
    swept = "# @package _global_\nhydra: {sweeper: {params: {optimizer: glob(adamw)}}}\n"
    (tmp_path / "more/experiment/swept.yaml").write_text(swept)
    done = train_here("--config-dir", str(tmp_path / "more"), "-m", "experiment=swept", cwd=tmp_path, ok=False)
    assert "fix: name them: optimizer=adamw\n" in done.stderr


def test_a_glob_over_the_recipes_own_group_runs(tmp_path: Path) -> None:
    train_here("-m", "model=glob(ml*)", "callbacks=none", "trainer.max_steps=1", cwd=tmp_path)
    assert [path.name for path in tmp_path.glob("multirun/*/*/0")] == ["0"]
