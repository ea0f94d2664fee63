"""Drop masks: their share, and none where nothing is dropped."""

from __future__ import annotations

import pytest
import torch

from mrecg_onnx.learning.masks import Masks


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5])
def test_masks_keep_their_share_and_change_from_draw_to_draw(probability):
    masks = Masks(probability, torch.device("cpu"), torch.Generator().manual_seed(0))
    like = torch.zeros(16, 8, 12, 12)
    drawn = [masks.draw(like) for _ in range(20)]
    assert all(mask.shape == like.shape for mask in drawn)
    assert set(torch.stack(drawn).unique().tolist()) <= {0.0, 1.0}
    assert float(torch.stack(drawn).float().mean()) == pytest.approx(probability, abs=0.02)
    assert probability == 0 or not any(torch.equal(a, b) for a, b in zip(drawn, drawn[1:], strict=False))


def test_without_drop_there_is_no_mask():
    assert Masks(1.0, torch.device("cpu"), torch.Generator()).draw(torch.zeros(3)) is None
