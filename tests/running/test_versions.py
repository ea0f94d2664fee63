"""A file that a newer ONNX Runtime is needed for is refused in one line before it is run, or a note says that it is slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command_line import fails, works
from helpers.stages import feeds
from helpers.targets import SAMPLES, on_sample, quantized
from helpers.versions import skip_where_too_old, too_old

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import REQUIRES_KEY
from mrecg_onnx.running import fused_op_counts, input_specs, noise, open_session, slower_here
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.containers import contained
from mrecg_onnx.writing.retargeting import retarget

WRONG = (
    r"activations in 4-bit types need onnxruntime 1\.31 or newer, 1\.30\.0 computes wrong values without an error: "
    r"install a newer one, or make an int8 file of it with mrecg-onnx convert --container int8 \(in Python: container=\)$"
)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that computes typed files wrong."""
    monkeypatch.setattr("onnxruntime.__version__", "1.30.0")


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("form", ["file", "bytes", "model"])
@pytest.mark.parametrize("noted", [True, False])
def test_wrong_values_are_refused_at_levels_that_compute_them(form: str, noted: bool, tmp_path: Path) -> None:
    """Files of older versions say nothing of it in their metadata: then their graph does."""
    typed = contained(quantized("residual"), "typed").model
    if not noted:
        kept = [entry for entry in typed.metadata_props if entry.key != REQUIRES_KEY]
        del typed.metadata_props[:]
        typed.metadata_props.extend(kept)
    path = tmp_path / "typed.onnx"
    onnx.save(typed, path)
    model = {"file": path, "bytes": path.read_bytes(), "model": typed}[form]
    for opening in (open_session, fused_op_counts):
        with pytest.raises(ModelError, match=WRONG) as raised:
            opening(model)
        assert str(raised.value).startswith(f"{path}: " if form == "file" else "the model: ")
    open_session(model, level="off").run(None, feeds(typed, 2))


def test_new_versions_and_other_files_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.31.0")
    open_session(contained(quantized("residual"), "typed").model)
    monkeypatch.setattr("onnxruntime.__version__", "1.30.0")
    for container in ("int8", "packed"):
        open_session(contained(quantized("residual"), container).model)
    open_session(contained(quantized("residual", "ort", 4, 8), "typed").model)


@pytest.mark.parametrize(("bits", "version"), [((4, 4), "1.23"), ((2, 4), "1.24")])
def test_what_is_not_opened_says_why(bits: tuple[int, int], version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("Could not find an implementation for Cast(21) node with name ''")

    packed = contained(quantized("residual", "ort", *bits), "packed").model
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    monkeypatch.setattr("onnxruntime.InferenceSession", refuses)
    with pytest.raises(
        ModelError, match=rf"need onnxruntime {version} or newer, 1\.22\.1 does not open it: install a newer"
    ):
        open_session(packed)
    monkeypatch.setattr("onnxruntime.__version__", "1.31.1")
    with pytest.raises(ModelError, match="ONNX Runtime cannot open it: Could not find"):
        open_session(packed)


@pytest.mark.parametrize("bits", [(4, 4), (2, 4)])
@pytest.mark.parametrize("pattern", ["residual", "average_pool"])
def test_as_written_old_versions_compute_the_same(
    pattern: str, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 1.31 a tensor of 8 bits may take the buffer of one of 4 bits, which is half as long: each then has its own."""
    plain = quantized(pattern, "ort", *bits)
    typed, fed = contained(plain, "typed").model, feeds(plain, 4)
    expected = open_session(plain, level="off", threads=1).run(None, fed)
    for version in (None, "1.30.0"):  # the installed one, and what is done on an old one
        if version is not None:
            monkeypatch.setattr("onnxruntime.__version__", version)
        opened = open_session(typed, level="off", threads=1)
        assert opened.get_session_options().enable_mem_reuse is (not too_old(typed))
        for x, y in zip(expected, opened.run(None, fed), strict=True):
            np.testing.assert_array_equal(x, y)


def test_slower_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    aimed = retarget(quantized("residual", "portable", 8, 8), load_target("portable"))
    assert slower_here(aimed) == ()
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    (line,) = slower_here(aimed)
    assert line == (
        "the model: Clips at the ends of 8 bits need onnxruntime 1.23 or newer, 1.22.1 runs it slower: install a newer one"
    )
    open_session(aimed)


@pytest.mark.slow
def test_the_commands_refuse_and_convert_helps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_where_too_old(contained(quantized("residual"), "typed").model)
    fp32, images = str(SAMPLES / "digits.onnx"), str(SAMPLES / "val")
    said = works(*on_sample("--container", "typed", "-o", "typed.onnx")).stdout
    assert "activations in 4-bit types need onnxruntime 1.31 or newer (older: wrong values)" in " ".join(said.split())
    plain = works(*on_sample("-o", "plain.onnx"))
    assert "need onnxruntime" not in plain.stdout
    monkeypatch.setattr("onnxruntime.__version__", "1.30.0")
    says = ("activations in 4-bit types need onnxruntime 1.31", "1.30.0 computes wrong values")
    fails("validate", fp32, "typed.onnx", "--data", images, "--limit", "8", says=says)
    fails("benchmark", fp32, "typed.onnx", "--runs", "1", says=says)
    fails("convert", "plain.onnx", "--container", "typed", "-o", "again.onnx", says=says)
    assert not (here / "again.onnx").exists()
    works("convert", "typed.onnx", "--container", "int8", "-o", "back.onnx")
    fed = noise(input_specs(open_session("plain.onnx")), 4)
    back, first = (open_session(name).run(None, fed) for name in ("back.onnx", "plain.onnx"))
    np.testing.assert_array_equal(back[0], first[0])
