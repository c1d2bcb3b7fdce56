"""What the tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports torch: each worker, and each process that a test starts, computes with one thread. Two workers
# with two threads each wait for each other on two cores. A test that needs two threads asks for `two_threads`.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# The same examples in every run, so that a red run means a change; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

# Programs that tests start in processes of their own, and shared code: doctests are collected everywhere else.
collect_ignore_glob = ["stranger/*", "bystander/*", "ddp_app/*", "helpers/*", "soak.py"]

pytest.register_assert_rewrite("helpers")  # a failed assert in a helper shows its values, as one in a test does


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests first, so that no worker ends alone with a long one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let torch compute with two threads in this test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of this process alone."""
    import torch

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()
