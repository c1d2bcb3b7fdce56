"""The configs of an installed search-path plugin share one space with the configs of every app.

https://github.com/facebookresearch/hydra/issues/1880 (hydra#1880)

There: a framework that makes its configs available by a plugin must keep them in a namespace of their own, or they meet
those of the app.
Here: there is no plugin. In an app that has groups and options of our names and does not ask for ours, nothing changes:
not what it composes from its folder, ``hydra.searchpath``, ``--config-dir`` and the ConfigStore, not ``--help``, not
``glob(*)``; the package is not even imported. tests/test_package.py holds the same for the wheel.
"""

from __future__ import annotations

from pathlib import Path

from helpers.bystander import assert_left_alone


def test_an_app_that_does_not_ask_is_left_alone(tmp_path: Path) -> None:
    assert_left_alone(tmp_path / "app")
