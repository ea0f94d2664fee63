"""Variants of images: what each kind may do to them, in both layouts, by the seed."""

from __future__ import annotations

import pytest
import torch

from mrecg_onnx.network import Mixing, augmented, mirrored

#: Every pixel its own value, so that it can be followed.
SIDE = 16
IMAGES = torch.arange(32 * 2 * SIDE * SIDE, dtype=torch.float32).view(32, 2, SIDE, SIDE)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plane(count: int) -> torch.Tensor:
    """Images whose first channel is the row and whose second is the column of a pixel."""
    rows, columns = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    return torch.stack((rows, columns)).expand(count, -1, -1, -1).clone()


@pytest.mark.parametrize("kind", ["flip", "shift", "crop"])
def test_a_seed_gives_the_same_variants_in_both_layouts(kind):
    once = augmented(IMAGES, kind, seeded(3))
    assert torch.equal(once, augmented(IMAGES, kind, seeded(3)))
    assert not torch.equal(once, augmented(IMAGES, kind, seeded(4)))
    nhwc = augmented(IMAGES.permute(0, 2, 3, 1), kind, seeded(3), "nhwc")
    assert torch.equal(nhwc.permute(0, 3, 1, 2), once)
    assert once.shape == IMAGES.shape


@pytest.mark.parametrize("kind", ["flip", "shift", "crop"])
def test_types_and_single_pixels_stay(kind):
    pixels = torch.randint(0, 256, (8, 3, 9, 7), dtype=torch.uint8, generator=seeded())
    made = augmented(pixels, kind, seeded())
    assert made.dtype == torch.uint8
    assert made.shape == pixels.shape
    one = torch.full((4, 1, 1, 1), 7.0)
    assert torch.equal(augmented(one, kind, seeded()), one)


def test_flips_are_images_or_their_mirror_images_half_each():
    images = IMAGES.repeat(8, 1, 1, 1)
    made = augmented(images, "flip", seeded())
    flipped = [torch.equal(x, y) for x, y in zip(made, mirrored(images), strict=True)]
    same = [torch.equal(x, y) for x, y in zip(made, images, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 0.35 < sum(flipped) / len(images) < 0.65


def test_shifts_move_by_up_to_an_eighth_and_reflect_the_border():
    made = augmented(plane(200), "shift", seeded())
    seen = set()
    for image in made:
        rows, columns = image[0, :, 0], image[1, 0, :]
        if columns[8] > columns[9]:
            columns = columns.flip(0)
        down, right = int(rows[8] - 8), int(columns[8] - 8)
        places = torch.arange(SIDE)
        for line, offset in ((rows, down), (columns, right)):
            wanted = (places + offset).abs()
            assert torch.equal(line, torch.minimum(wanted, 2 * (SIDE - 1) - wanted).float())
        seen |= {down, right}
    assert seen == {-2, -1, 0, 1, 2}


def test_crops_are_parts_of_half_the_area_or_more_at_full_size():
    made = augmented(plane(200), "crop", seeded())
    assert made.amin() >= 0
    assert made.amax() <= SIDE - 1
    # Steps between neighbours inside are the sides of the crop as shares of the image's.
    height, width = (made[:, 0, 8, 8] - made[:, 0, 7, 8]), (made[:, 1, 8, 8] - made[:, 1, 8, 7])
    area, ratio = height * width.abs(), width.abs() / height
    assert area.min() >= 0.5 - 1e-4
    assert area.min() < 0.55
    assert area.max() <= 1.0 + 1e-4
    assert ratio.max() <= 4 / 3 + 1e-3
    assert ratio.min() >= 3 / 4 - 1e-3
    assert 0.35 < (width < 0).float().mean() < 0.65


def test_a_mirror_image_is_its_own_way_back():
    assert torch.equal(mirrored(mirrored(IMAGES)), IMAGES)
    assert torch.equal(mirrored(IMAGES.permute(0, 2, 3, 1), "nhwc").permute(0, 3, 1, 2), mirrored(IMAGES))


def test_half_of_a_batch_is_mixed_at_shares_between_both():
    count = 400
    mixing = Mixing.draw(count, seeded())
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    made = mixing.mix(images)
    assert made.shape == images.shape
    assert torch.equal(made, made[:, :1, :1, :1].expand_as(made))
    value, partner = made[:, 0, 0, 0], mixing.partner.float()
    torch.testing.assert_close(value, mixing.share * images[:, 0, 0, 0] + (1 - mixing.share) * partner)
    whole = (value == images[:, 0, 0, 0]).float().mean()
    assert 0.4 < whole < 0.6
    assert sorted(mixing.partner.tolist()) == list(range(count))
    assert torch.equal(mixing.partner, Mixing.draw(count, seeded()).partner)


def test_mixtures_keep_type_and_order_in_memory():
    pixels = torch.randint(0, 256, (8, 3, 9, 7), dtype=torch.uint8, generator=seeded())
    assert Mixing.draw(8, seeded()).mix(pixels).dtype == torch.uint8
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    assert Mixing.draw(len(images), seeded()).mix(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(Mixing.draw(1, seeded()).mix(IMAGES[:1]), IMAGES[:1])
