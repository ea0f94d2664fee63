"""The packed size is known before the file is made."""

from __future__ import annotations

import pytest
from helpers.learned import results, small
from helpers.stages import simulated

from mrecg_onnx.widths.packed_size import PackedSize, stored_bits
from mrecg_onnx.writing.containers import contained

NEAREST = {"method": "nearest", "equalize": "off", "abits": 4}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("packed_size"))


def packed(result) -> int:
    return contained(result.model, "packed").model.ByteSize()


def test_three_bits_are_stored_as_four():
    assert [stored_bits(w) for w in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize("wbits", [2, 4, 8])
def test_size_is_known_before_the_file_is_made(quantized, wbits):
    result = quantized("nearest", wbits=wbits, residual="shared")
    stage = simulated(small(), wbits=wbits, residual="shared", **NEAREST)
    metadata = {p.key: p.value for p in result.model.metadata_props}
    planned = PackedSize.planned(stage.graph, stage.network, stage.plan, metadata)
    widths = {x.name: x.wbits for x in stage.plan.quantized_layers}
    # Offsets that all channels share are stored once, which only the codes decide, and the longest metadata are counted: at most
    # that much less.
    assert 0 <= planned.total(widths) - packed(result) <= 100 * len(widths)
