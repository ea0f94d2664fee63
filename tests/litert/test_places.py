"""Bounds of codes in int8: what kernels saturate, a fused Relu, and one step more give what Clip gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrecg_onnx.litert.places import HIGHEST, LOWEST, place_of
from mrecg_onnx.litert.reading import Codes


@st.composite
def quantizers(draw: st.DrawFn) -> Codes:
    low = draw(st.integers(0, 255))
    high = draw(st.integers(low, 255))
    zero = draw(st.integers(low, high))
    return Codes(np.array(0.1, np.float32), zero, low, high, None, (), "x")


@given(quantizers(), st.booleans(), st.booleans())
def test_codes_end_where_the_file_says(codes: Codes, fuses: bool, floor: bool) -> None:
    place = place_of(codes, fuses=fuses, floor=floor)
    reached = np.arange(codes.zero if floor else codes.zero - 600, codes.zero + 600)
    assert LOWEST <= codes.zero + place.offset <= HIGHEST  # a zero point has to be a code
    written = np.clip(reached + place.offset, LOWEST, HIGHEST)
    if place.relu:
        assert fuses
        written = np.maximum(written, codes.zero + place.offset)
    offset = place.offset
    if place.moved is not None:
        written = np.clip(written + place.moved - offset, LOWEST, HIGHEST)
        offset = place.moved
    assert np.array_equal(written - offset, np.clip(reached, codes.low, codes.high))


@given(quantizers())
def test_behind_a_relu_every_width_costs_nothing(codes: Codes) -> None:
    from_zero = Codes(codes.scale, codes.low, codes.low, codes.high, None, (), "x")
    assert place_of(from_zero, fuses=True).moved is None
    assert place_of(from_zero, fuses=False, floor=True).moved is None
    whole = Codes(codes.scale, codes.zero, 0, 255, None, (), "x")
    assert place_of(whole, fuses=False).offset == -128
