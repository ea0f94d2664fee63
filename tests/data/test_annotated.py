"""Boxes and masks beside image files: found by name, and where the image's pixels go."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import RAW, one_line, spec, write
from PIL import Image

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Dataset, Preprocess, open_validation

#: Ways an image of 40 x 30 becomes an input of 24 x 20.
WAYS = {
    "the default": RAW,
    "squeezed": replace(RAW, resize=(20, 24)),
    "cut out of it": replace(RAW, resize="off"),
    "shorter side": replace(RAW, resize=22),
}


def annotations(path: Path, boxes: dict[str, list[Any]], size: tuple[int, int] | None = (40, 30), **more: Any) -> Path:
    """A file of COCO's: boxes as x, y, width, height, category (and crowd) by the image's name."""
    sides = {} if size is None else {"width": size[0], "height": size[1]}
    entries = [{"id": 100 + i, "file_name": name, **sides} for i, name in enumerate(boxes)]
    drawn = [
        {"id": 7, "image_id": 100 + i, "bbox": box[:4], "category_id": box[4], "iscrowd": (*box, 0)[5],
         "segmentation": [[1, 2, 3, 4]], "area": 1}
        for i, name in enumerate(boxes) for box in boxes[name]
    ]  # fmt: skip
    path.write_text(json.dumps({"info": {}, "images": entries, "annotations": drawn, **more}), encoding="utf-8")
    return path


def opened(root: Path, labels: Path, preprocess: Preprocess = RAW, **more: Any) -> Dataset:
    return open_validation(root, [spec(None, 3, 20, 24)], preprocess, str(labels), classes=False, **more)


def target(dataset: Dataset, index: int = 0) -> Any:
    (found,) = dataset.targets_of([index]) or []
    return found


def painted(path: Path, box: tuple[int, int, int, int]) -> Path:
    """A black image of 40 x 30 with a white box: x, y, width, height."""
    image = Image.new("RGB", (40, 30))
    image.paste((255, 255, 255), (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    path.parent.mkdir(exist_ok=True, parents=True)
    image.save(path)
    return path


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_box_is_where_its_pixels_are(tmp_path: Path, way: Preprocess) -> None:
    box = (14, 8, 9, 12)
    painted(tmp_path / "val" / "a.png", box)
    data = opened(tmp_path / "val", annotations(tmp_path / "a.json", {"a.png": [[*box, 3]]}), way)
    white = data.batch([0])["x"][0, 0] > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    found = target(data)
    wanted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(found["boxes"][0] - wanted).max() <= 0.51
    assert found["labels"].tolist() == [3]
    assert found["iscrowd"].tolist() == [0]


def test_boxes_are_cut_off_at_the_edges_and_left_out_beyond_them(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))
    boxes = [[0, 0, 40, 30, 1, 1], [0, 0, 5, 5, 2], [20, 10, 0, 4, 3], [30, 20, 10, 10, 4]]
    data = opened(tmp_path / "val", annotations(tmp_path / "a.json", {"a.png": boxes}), WAYS["cut out of it"])
    found = target(data)  # the window begins at (8, 5)
    assert found["boxes"].tolist() == [[0, 0, 24, 20], [22, 15, 24, 20]]
    assert found["labels"].tolist() == [1, 4]
    assert found["iscrowd"].tolist() == [1, 0]


def test_boxes_belong_to_upright_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    (tmp_path / "val").mkdir()
    Image.new("RGB", (30, 40)).save(tmp_path / "val" / "a.jpg", exif=exif)
    upright = annotations(tmp_path / "a.json", {"a.jpg": [[0, 0, 40, 30, 1]]})
    assert target(opened(tmp_path / "val", upright, WAYS["squeezed"]))["boxes"].tolist() == [[0, 0, 24, 20]]
    stored = annotations(tmp_path / "a.json", {"a.jpg": [[0, 0, 30, 40, 1]]}, size=(30, 40))
    with pytest.raises(
        DataError, match=r"a\.jpg has 40x30 pixels, and .*a\.json says 30x40: give the images that were"
    ):
        target(opened(tmp_path / "val", stored))


def test_categories_are_their_ids_or_counted_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))
    categories = [{"id": i, "name": str(i)} for i in (90, 1, 17)]
    path = annotations(tmp_path / "a.json", {"a.png": [[9, 9, 20, 10, i] for i in (17, 90, 1)]}, categories=categories)
    assert target(opened(tmp_path / "val", path))["labels"].tolist() == [17, 90, 1]
    assert target(opened(tmp_path / "val", Path(f"{path}:order")))["labels"].tolist() == [1, 2, 0]


def test_images_are_found_by_path_and_by_bare_name(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.png", "deep/c.png", "other/c.png"):
        write(tmp_path / "val" / name, size=(40, 30))
    boxes = {"train/a.png": 1, "b.png": 2, "deep/c.png": 3, "other\\c.png": 4, "elsewhere.png": 9}
    path = annotations(tmp_path / "a.json", {name: [[9, 9, 20, 10, i]] for name, i in boxes.items()})
    data = opened(tmp_path / "val", path)
    assert [target(data, i)["labels"].tolist() for i in range(4)] == [[1], [2], [3], [4]]
    shared = annotations(tmp_path / "a.json", {"a.png": [], "b.png": [], "c.png": []})
    with pytest.raises(DataError, match=r"several files are called c\.png: name them with the folder") as error:
        opened(tmp_path / "val", shared)
    assert one_line(error)
    with pytest.raises(DataError, match=r"a\.json has nothing for deep/b\.png: give it an entry in 'images'"):
        opened(tmp_path / "val", annotations(tmp_path / "a.json", {"a.png": []}))


def test_a_part_of_the_data_is_found_among_names_with_the_folders_above_it(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png"):
        write(tmp_path / "val" / name, size=(40, 30))
    path = annotations(
        tmp_path / "a.json", {name: [[9, 9, 20, 10, i]] for i, name in enumerate(("a/0.png", "b/0.png"))}
    )
    assert target(opened(tmp_path / "val" / "b", path))["labels"].tolist() == [1]
    path = annotations(tmp_path / "a.json", {f"val/{n}/0.png": [[9, 9, 20, 10, i]] for i, n in enumerate("ab")})
    assert [target(opened(tmp_path / "val", path), i)["labels"].tolist() for i in range(2)] == [[0], [1]]


def test_an_image_without_boxes_has_none(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))
    found = target(opened(tmp_path / "val", annotations(tmp_path / "a.json", {"a.png": []}, size=None)))
    assert {name: values.shape for name, values in found.items()} == {"boxes": (0, 4), "labels": (0,), "iscrowd": (0,)}


def test_targets_stay_with_their_images(tmp_path: Path) -> None:
    """In a subset, in shares of it, and behind an image that cannot be read."""
    for i in range(40):
        write(tmp_path / "val" / f"{i:02d}.png", (i, 0, 0), size=(40, 30))
    (tmp_path / "val" / "30.png").write_bytes(b"no image")
    path = annotations(tmp_path / "a.json", {f"{i:02d}.png": [[9, 9, 20, 10, i]] for i in range(40)})
    data = opened(tmp_path / "val", path, limit=20)
    assert data.labels is None
    for some in (data, data.shard(1, 3)):
        seen = 0
        for inputs, indices in some.batches(4):
            reds = inputs["x"][:, 0, 10, 12].astype(int).tolist()
            assert [int(t["labels"][0]) for t in some.targets_of(indices) or []] == reds
            seen += len(reds)
        assert seen == len(some) - len(some.skipped)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, r"annotations\[0\]: image_id is 1"),
        ({"annotations": 3}, "annotations is 3: a list of objects"),
        ({"images": [3]}, r"images\[0\] is 3: an object"),
        ({"images": [{"id": 1}]}, r"images\[0\]: file_name is None"),
        ({"images": [{"file_name": "a.png"}]}, r"images\[0\]: id is None"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, r"images\[1\] has the id 1 of an image before it"),
        ({"images": [{"id": i, "file_name": "a.png"} for i in (1, 2)]}, r"images\[1\] names 'a.png', as an image before it does"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": -4, "height": 3}]}, r"images\[0\]: width is -4"),
    ],
)  # fmt: skip
def test_what_is_none_of_cocos_is_named_with_its_entry(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))
    path = annotations(tmp_path / "a.json", {"a.png": []}, **change)
    with pytest.raises(DataError, match=rf"a\.json: {says}") as error:
        opened(tmp_path / "val", path)
    assert one_line(error)


@pytest.mark.parametrize(
    ("box", "says"),
    [
        (
            [0, 0, float("nan"), 1, 1],
            r"bbox is \[0, 0, nan, 1\]: a list of x, y, width and height in pixels is expected",
        ),
        ([0, 0, float("inf"), 1, 1], "bbox is"),
        ([0, 0, -1, 1, 1], "bbox is"),
        ([0, 0, 10**400, 1, 1], "bbox is"),
        ([0, 0, 1, 1, -1], "category_id is -1"),
        ([0, 0, 1, 1, 1, 5], "iscrowd is 5"),
    ],
)
def test_a_box_that_is_none(tmp_path: Path, box: list[Any], says: str) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))
    path = annotations(tmp_path / "a.json", {"a.png": [[9, 9, 20, 10, 1], box]})
    with pytest.raises(DataError, match=rf"annotations\[1\]: {says}") as error:
        opened(tmp_path / "val", path)
    assert one_line(error)


def test_categories_that_are_not_listed_have_no_order(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))
    path = annotations(tmp_path / "a.json", {"a.png": [[9, 9, 20, 10, 5]]}, categories=[{"id": 4}])
    with pytest.raises(DataError, match="category_id is 5: the id of an entry in 'categories'"):
        opened(tmp_path / "val", Path(f"{path}:order"))
    path = annotations(tmp_path / "a.json", {"a.png": [[9, 9, 20, 10, 5]]})
    with pytest.raises(DataError, match="categories is None: a list of objects"):
        opened(tmp_path / "val", Path(f"{path}:order"))


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a.png")
    (tmp_path / "a.json").write_bytes(b"")
    os.truncate(tmp_path / "a.json", 1 << 40)
    with pytest.raises(DataError, match=r"a\.json has 1,099,511,627,776 bytes, .* are the most that is read here"):
        opened(tmp_path / "val", tmp_path / "a.json")


# --- masks -------------------------------------------------------------------------------------------------------------------


def classes(height: int = 30, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9, (height, width)).astype(np.uint8)


def paint(path: Path, value: int) -> None:
    """A mask of one class."""
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("L", (24, 20), value).save(path)


def with_mask(folder: Path, mask: Image.Image, name: str = "a.png") -> Path:
    """An image whose red values are the classes of its mask, in ``val``; the folder of masks."""
    (folder / "val").mkdir(exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.repeat(classes()[:, :, None], 3, 2)).save(folder / "val" / "a.png")
    mask.save(folder / "masks" / name)
    return folder / "masks"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_mask_goes_where_the_image_goes(tmp_path: Path, way: Preprocess) -> None:
    masks = with_mask(tmp_path, Image.fromarray(classes()))
    data = opened(tmp_path / "val", masks, replace(way, interpolation="nearest"))
    found = target(data)
    assert found.dtype == np.uint8
    assert np.array_equal(found, data.batch([0])["x"][0, 0])


def test_what_lies_outside_of_the_image_does_not_count(tmp_path: Path) -> None:
    masks = with_mask(tmp_path, Image.fromarray(classes()))
    data = open_validation(tmp_path / "val", [spec(None, 3, 34, 50)], replace(RAW, resize="off"), masks, classes=False)
    found = target(data)
    assert np.array_equal(found[2:32, 5:45], classes())
    assert (np.delete(found[2:32], range(5, 45), 1) == 255).all()
    assert (np.delete(found, range(2, 32), 0) == 255).all()


def test_masks_in_palettes_of_one_bit_and_of_sixteen(tmp_path: Path) -> None:
    palette = Image.fromarray(classes(), "P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
    way = replace(RAW, resize="off")
    for mask, wanted in {
        "palette": (palette, classes()),
        "one bit": (Image.fromarray(classes() > 4), classes() > 4),
        "sixteen": (Image.fromarray(classes().astype(np.uint16) * 300), classes().astype(int) * 300),
    }.values():
        found = target(opened(tmp_path / "val", with_mask(tmp_path, mask), way))
        assert np.array_equal(found, wanted[5:25, 8:32])


def test_masks_are_found_by_path_and_by_bare_name(tmp_path: Path) -> None:
    for i, name in enumerate(("a.jpg", "b.v2.jpg", "x/c.jpg")):
        write(tmp_path / "val" / name, size=(24, 20))
        mask = tmp_path / "masks" / ("sub" if i == 1 else ".") / Path(name).with_suffix(".png")
        mask.parent.mkdir(exist_ok=True, parents=True)
        Image.new("L", (24, 20), i).save(mask)
    data = opened(tmp_path / "val", tmp_path / "masks")
    assert [int(target(data, i)[0, 0]) for i in range(3)] == [0, 1, 2]
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"masks has nothing for a: each image needs a PNG of its name") as error:
        opened(tmp_path / "val", tmp_path / "masks")
    assert one_line(error)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (
            ("f/f_1_leftImg8bit.png", "f/f_2_leftImg8bit.png"),
            ("f/f_1_gtFine_labelIds.png", "f/f_2_gtFine_labelIds.png"),
        ),
        (
            ("f_1_leftImg8bit.png", "f_2_leftImg8bit.png"),
            ("sub/f_1_gtFine_labelIds.png", "sub/f_2_gtFine_labelIds.png"),
        ),
        (("0001TP_1.png", "0001TP_2.png"), ("0001TP_1_L.png", "0001TP_2_L.png")),
        (("a.jpg", "a_b.jpg"), ("a_mask.png", "a_b_mask.png")),
        (("a-image.jpg", "b-image.jpg"), ("a.png", "b.png")),
        (("one.jpg",), ("one.mask.png",)),
    ],
)
def test_masks_whose_names_end_otherwise_are_found(
    tmp_path: Path, images: tuple[str, ...], masks: tuple[str, ...]
) -> None:
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        write(tmp_path / "val" / image, size=(24, 20))
        paint(tmp_path / "masks" / mask, i + 1)
    data = opened(tmp_path / "val", tmp_path / "masks")
    assert [int(target(data, i)[0, 0]) for i in range(len(images))] == list(range(1, len(images) + 1))


def test_masks_of_several_kinds_are_told_apart_by_their_ending(tmp_path: Path) -> None:
    for i in (1, 2):
        write(tmp_path / "val" / f"f_{i}_leftImg8bit.png", size=(24, 20))
        for kind, ending in enumerate(("_gtFine_instanceIds", "_gtFine_labelIds", "_gtFine_labelTrainIds")):
            paint(tmp_path / "masks" / f"f_{i}{ending}.png", 10 * kind + i)
    folder = tmp_path / "masks"
    says = (
        rf"{folder} has several masks for each image, which end in _gtFine_instanceIds\.png, _gtFine_labelIds\.png, .*: say "
        rf"which, as in {folder}:_gtFine_instanceIds"
    )
    for labels in (folder, f"{folder}:Ids"):
        with pytest.raises(DataError, match=says) as error:
            opened(tmp_path / "val", Path(labels))
        one_line(error)
    for ending in ("_gtFine_labelTrainIds", "TrainIds.png"):
        data = opened(tmp_path / "val", Path(f"{folder}:{ending}"))
        assert [int(target(data, i)[0, 0]) for i in range(2)] == [21, 22]
    with pytest.raises(DataError, match=r"masks has no mask whose name ends in _color\.png"):
        opened(tmp_path / "val", Path(f"{folder}:_color"))
    (folder / "f_3_gtFine_labelIds.png").write_bytes((folder / "f_2_gtFine_labelIds.png").read_bytes())
    write(tmp_path / "val" / "f_4_leftImg8bit.png", size=(24, 20))
    with pytest.raises(
        DataError, match=r"masks has nothing for f_4_leftImg8bit: each image needs a PNG of its name, or"
    ):
        opened(tmp_path / "val", Path(f"{folder}:labelIds"))


def test_masks_of_other_images_are_not_taken(tmp_path: Path) -> None:
    """Names that differ in numbers, and a lone image whose last part could be an ending."""
    for images, mask in ((("a_1.png", "b_1.png"), "a_2.png"), (("street_berlin.png",), "street_munich.png")):
        folder = tmp_path / images[0]
        for image in images:
            write(folder / "val" / image, size=(24, 20))
        paint(folder / "masks" / mask, 1)
        paint(folder / "masks" / mask.replace("a", "b"), 1)
        with pytest.raises(DataError, match="masks has nothing for"):
            opened(folder / "val", folder / "masks")


@pytest.mark.parametrize(
    ("mask", "name", "says"),
    [
        (Image.new("RGB", (40, 30)), "a.png", "its pixels are RGB: a class for each is wanted, as grey"),
        (Image.new("L", (80, 60)), "a.png", "it has 80x60 pixels, its image 40x30: one size is wanted"),
        (Image.new("L", (40, 30)), "a.jpg", r"masks are PNG files, and .* holds others: .*a\.jpg"),
    ],
)
def test_masks_that_are_none(tmp_path: Path, mask: Image.Image, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        target(opened(tmp_path / "val", with_mask(tmp_path, mask, name)))
    assert one_line(error)


def test_without_a_metric_it_is_said_that_nothing_counts_them(tmp_path: Path) -> None:
    masks = with_mask(tmp_path, Image.fromarray(classes()))
    data = open_validation(tmp_path / "val", [spec(None, 3, 20, 24)], RAW, masks)
    assert data.labels is None
    (said,) = data.doubts
    assert f"the targets of {masks} are no classes (whole numbers from 0): there is no accuracy" in said


def test_the_key_of_a_data_set_changes_with_its_targets(tmp_path: Path) -> None:
    write(tmp_path / "val" / "a.png", size=(40, 30))

    def key(box: list[Any]) -> bytes:
        return opened(tmp_path / "val", annotations(tmp_path / "a.json", {"a.png": [box]})).labels_key()

    assert key([9, 9, 20, 10, 5]) == key([9, 9, 20, 10, 5]) != key([9, 9, 20, 11, 5])
    pairs = [(tmp_path / "val" / "a.png", {"boxes": np.ones((1, 4)), "labels": [3]})]
    handed = [open_validation(pairs, [spec(None, 3, 20, 24)], RAW, classes=False).labels_key() for _ in range(2)]
    pairs[0][1]["labels"] = [4]
    changed = open_validation(pairs, [spec(None, 3, 20, 24)], RAW, classes=False).labels_key()
    assert handed[0] == handed[1] != changed
