"""What every test relies on: one thread per process, and slow tests first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(os.environ["OMP_NUM_THREADS"] != "1", reason="OMP_NUM_THREADS was set by hand")
def test_torch_computes_with_one_thread_here_and_in_child_processes() -> None:
    assert torch.get_num_threads() == 1
    child = subprocess.run([sys.executable, "-c", "import torch; print(torch.get_num_threads())"], capture_output=True)
    assert child.stdout.strip() == b"1", child.stderr


@pytest.mark.usefixtures("two_threads")
def test_a_test_may_ask_for_two_threads() -> None:
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_slow_tests_come_first(request: pytest.FixtureRequest) -> None:
    slow = [item.get_closest_marker("slow") is not None for item in request.session.items]
    assert slow == sorted(slow, reverse=True)
