"""The official data sets, which lie outside the repository; tests of them are skipped where they are missing."""

from __future__ import annotations

import pytest
from helpers.recipe import ROOT

REAL = ROOT.parent / "shared/data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no folder ../shared/data with the official files")
