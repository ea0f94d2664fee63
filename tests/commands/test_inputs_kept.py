"""Nothing that a command reads is written over, whatever option names it, and with --force, too."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from mrecg_onnx.commands import main

RULES = files("mrecg_onnx.targets") / "rules"
SAMPLES = Path(__file__).parents[2] / "samples"


def run(*arguments: object) -> Result:
    """The command line ``arguments``."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with its tensors beside it, images, labels, rules and options, in the folder of the process."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(SAMPLES / "digits.onnx")
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    images = sorted((SAMPLES / "calib").rglob("*.png"))[:3]
    Path("c").mkdir()
    for number, image in enumerate(images):
        shutil.copy(image, f"c/{number}.png")
    Path("l.csv").write_text("0.png,1\n", encoding="utf-8")
    shutil.copy(str(RULES / "ort.toml"), "t.toml")
    Path("o.toml").write_text("wbits = 3\nabits = 8\n", encoding="utf-8")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


QUANTIZE = ("quantize", "m.onnx", "--calib", "c", "--method", "nearest")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("inspect", "m.onnx", "--json", "m.data"), "tensors of m.onnx"),
        ((*QUANTIZE, "-o", "m.data", "--force"), "tensors of m.onnx"),
        ((*QUANTIZE, "--report", "m.data"), "tensors of m.onnx"),
        (("sensitivity", "m.onnx", "--calib", "c", "--json", "./m.data"), "tensors of m.onnx"),
        (("benchmark", "m.onnx", "m.onnx", "--json", "m.data"), "tensors of m.onnx"),
        ((*QUANTIZE, "--json", "c/0.png"), "is in c, which is read (--calib)"),
        ((*QUANTIZE, "-o", "c/../c/0.png", "--force"), "is in c, which is read (--calib)"),
        ((*QUANTIZE, "--data", "c", "--labels", "l.csv", "--max-drop", "5", "--json", "l.csv"), "(--labels)"),
        ((*QUANTIZE, "--target", "t.toml", "--json", "t.toml"), "(--target)"),
        ((*QUANTIZE, "--target", "t.toml", "-o", "t.onnx", "--force"), "(--target)"),
        ((*QUANTIZE, "--config", "o.toml", "-o", "p.onnx", "--json", "o.toml"), "(--config)"),
        (("validate", "m.onnx", "m.onnx", "--data", "c", "--labels", "l.csv", "--report", "l.csv"), "(--labels)"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_is_read_stays(here: Path, arguments: tuple[str, ...], says: str) -> None:
    before = contents(here)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert contents(here) == before


def test_a_file_beside_the_images_is_no_image(here: Path) -> None:
    Path("c/r.json").write_text("{}", encoding="utf-8")
    result = run("inspect", "m.onnx", "--calib", "c", "--json", "c/r.json")
    assert result.exit_code == 0, result.output
    assert (here / "c" / "r.json").stat().st_size > 2


def test_options_beside_a_result_are_those_that_made_it(here: Path) -> None:
    changed = (*QUANTIZE, "--config", "o.toml", "-o", "o.onnx", "--wbits", "2")
    before = contents(here)
    result = run(*changed)
    assert result.exit_code == 2
    assert "o.toml would stay beside o.onnx" in result.output
    assert contents(here) == before
    assert run(*changed, "--force").exit_code == 0
    assert "wbits = 2" in Path("o.toml").read_text(encoding="utf-8")
