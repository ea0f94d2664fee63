"""Tensors on another device than the CPU are fetched, wherever they lie in what is handed over.

No such device is needed: a tensor that NumPy cannot read before ``cpu()`` was called on it, as one on a GPU, stands in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import RAW, one_line, spec

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import open_calibration, open_validation

X = torch.arange(6 * 3 * 4 * 4, dtype=torch.float32).reshape(6, 3, 4, 4)
INPUT = [spec(None, 3, 4, 4)]


class Elsewhere(torch.Tensor):
    """Numbers that lie on another device, with a gradient."""

    @staticmethod
    def of(values: torch.Tensor) -> Any:
        return values.clone().as_subclass(Elsewhere)  # type: ignore[arg-type]

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def numpy(self, **_: Any) -> Any:
        return self.__array__()

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def __getitem__(self, index: Any) -> Any:
        return Elsewhere.of(super().__getitem__(index).as_subclass(torch.Tensor))


def box(number: int) -> dict[str, Any]:
    return {"boxes": Elsewhere.of(torch.full((1, 4), number)), "labels": [Elsewhere.of(torch.tensor(number))]}


@pytest.mark.parametrize(
    "data",
    [
        Elsewhere.of(X),
        {"x": Elsewhere.of(X)},
        [Elsewhere.of(one) for one in X],
        [{"x": Elsewhere.of(one)} for one in X],
        (Elsewhere.of(X[i : i + 2]) for i in range(0, 6, 2)),
        [[Elsewhere.of(X[0]), Elsewhere.of(X[1]), Elsewhere.of(X[2])], [Elsewhere.of(X[3])], Elsewhere.of(X[4:])],
    ],
    ids=["tensor", "dict", "list", "list of dicts", "generator", "lists"],
)
def test_inputs(data: Any) -> None:
    found = open_calibration(data, INPUT, RAW)
    assert np.array_equal(found.load()["x"], X.numpy())


@pytest.mark.parametrize("kind", ["pair", "pairs", "batches", "dict", "labels="])
def test_labels(kind: str) -> None:
    y = torch.arange(6)
    there = Elsewhere.of(y)
    data: Any = {
        "pair": lambda: (Elsewhere.of(X), there),
        "pairs": lambda: [(one, label) for one, label in zip(X, there, strict=True)],
        "batches": lambda: [(X[:4], there[:4]), (X[4:], there[4:])],
        "dict": lambda: {"x": X, "labels": there},
        "labels=": lambda: X,
    }[kind]()
    found = open_validation(data, INPUT, RAW, there if kind == "labels=" else None)
    seen = [int(label) for _, indices in found.batches(2) for label in found.targets_of(indices) or []]
    assert seen == y.tolist()


def test_targets_of_ones_own() -> None:
    found = open_validation([(one, box(i)) for i, one in enumerate(X)], INPUT, RAW, classes=False)
    seen = [target for _, indices in found.batches(4) for target in found.targets_of(indices) or []]
    assert [int(np.asarray(target["boxes"])[0, 0]) for target in seen] == list(range(6))
    assert [int(np.asarray(target["labels"][0])) for target in seen] == list(range(6))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (torch.empty(6, 3, 4, 4, device="meta"), "the Tensor"),
        ([torch.empty(3, 4, 4, device="meta")] * 6, "sample 0 of the list"),
        ([(one, {"boxes": torch.empty(1, 4, device="meta")}) for one in X], "the target of sample 0 of the list"),
    ],
)
def test_tensors_that_hold_no_numbers_are_refused(data: Any, what: str) -> None:
    with pytest.raises(DataError, match=rf"^{what} is a tensor on the device meta, which holds no numbers") as error:
        list(open_validation(data, INPUT, RAW, classes=False).batches(2))
    assert one_line(error)


def test_what_cannot_be_fetched_is_named() -> None:
    class Lost(Elsewhere):
        def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")

        def detach(self) -> Any:
            return self

    with pytest.raises(
        DataError, match="the Lost is a tensor on cpu that cannot be fetched: CUDA error: an illegal"
    ) as error:
        open_calibration(X.clone().as_subclass(Lost), INPUT, RAW)  # type: ignore[arg-type]
    assert one_line(error)
