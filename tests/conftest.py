"""Settings that every test shares."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread of torch: sums in one order on every machine, and no fight for the cores of a small one."""
    torch.set_num_threads(1)
