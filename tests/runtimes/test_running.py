"""A session is run on any number of items, whatever batch the model fixes."""

from __future__ import annotations

import numpy as np
import pytest

from mrecg_onnx.runtimes.running import pad_batch


def test_pad_batch_repeats_the_last_row() -> None:
    assert pad_batch(np.array([[1], [2]]), 4).tolist() == [[1], [2], [2], [2]]
    assert pad_batch(np.array([1, 2]), 2).tolist() == [1, 2]
    for rows_, size in ((3, 2), (0, 2)):
        with pytest.raises(ValueError, match="cannot pad"):
            pad_batch(np.zeros(rows_), size)
