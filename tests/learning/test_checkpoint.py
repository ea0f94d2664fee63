"""Checkpoints: a run that was stopped goes on where it was, and never with units of another run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers.architectures import residual
from helpers.stages import feeds

from mrecg_onnx.commands import main
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.learning import learner
from mrecg_onnx.learning.checkpoint import Checkpoint
from mrecg_onnx.network.simulation import QuantizedWeight, State
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers import Grid
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from mrecg_onnx.progress import Progress
    from mrecg_onnx.quantization import QuantizationResult

# What comes before the learning is made short.
QDROP = Settings(
    method="qdrop", wbits=2, iters=12, batch_size=8, threads=1, equalize="off", range="mse", range_samples=8
)
MRECG = replace(QDROP, method="mrecg", scheme="loss", merges=1, selection="eq4", iters=60, probe_fraction=0.9)
UNITS = 5


@dataclass
class Here:
    """A model, images and finished runs."""

    model: Path
    images: Path
    whole: dict[str, QuantizationResult]
    kept: dict[str, Path]

    def run(self, settings: Settings = QDROP, **more) -> QuantizationResult:
        return quantize(more.pop("model", self.model), more.pop("images", self.images), settings, **more)

    def copy(self, method: str, to: Path) -> Path:
        """The checkpoint of a finished run, to spoil."""
        return Path(shutil.copytree(self.kept[method], to))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Here:
    folder = tmp_path_factory.mktemp("checkpoint")
    onnx.save(residual(blocks=2), folder / "model.onnx")
    np.savez(folder / "calib.npz", **feeds(residual(blocks=2), 48))
    made = Here(folder / "model.onnx", folder / "calib.npz", {}, {})
    for settings in (QDROP, MRECG):
        kept = made.kept[settings.method] = folder / settings.method
        made.whole[settings.method] = made.run(settings, checkpoint=kept)
    return made


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the units that are trained from here on."""
    names: list[str] = []
    original = learner.reconstruct_unit

    def spy(unit, *arguments, **options) -> UnitResult:
        names.append(unit.name)
        return original(unit, *arguments, **options)

    monkeypatch.setattr(learner, "reconstruct_unit", spy)
    return names


def stop_after(stage: str, done: int):
    def report(progress: Progress) -> None:
        if progress.stage == stage and progress.done == done and progress.result is not None:
            raise KeyboardInterrupt

    return report


def names(folder: Path) -> list[str]:
    """Files in it, without those in folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def others(folder: Path) -> list[Path]:
    """Folders of runs that found units of another one there."""
    return sorted(folder.glob("run-*/"))


# --- going on ----------------------------------------------------------------------------------------------------


def test_keeping_units_changes_nothing(here):
    plain = here.run()
    assert plain.model.SerializeToString() == here.whole["qdrop"].model.SerializeToString()
    assert [replace(u, seconds=0) for u in plain.units] == [replace(u, seconds=0) for u in here.whole["qdrop"].units]


def test_one_file_a_unit_and_a_description(here):
    assert names(here.kept["qdrop"]) == [*(f"reconstruct-{i:04d}.pt" for i in range(UNITS)), "run.json"]
    described = json.loads((here.kept["qdrop"] / "run.json").read_text())
    assert (described["method"], described["iters"], described["seed"]) == ("qdrop", 12, 0)


@pytest.mark.parametrize("done", [1, 3])
def test_stopped_run_goes_on_where_it_was(here, tmp_path, trained, done):
    whole = here.whole["qdrop"]
    with pytest.raises(KeyboardInterrupt):
        here.run(checkpoint=tmp_path, progress=stop_after("reconstruct", done))
    assert trained == [unit.name for unit in whole.units[:done]]
    assert names(tmp_path) == [*(f"reconstruct-{i:04d}.pt" for i in range(done)), "run.json"]
    trained.clear()
    told: list[Progress] = []
    again = here.run(checkpoint=tmp_path, progress=told.append, output=tmp_path / "out.onnx")
    assert trained == [unit.name for unit in whole.units[done:]]
    assert (tmp_path / "out.onnx").read_bytes() == whole.model.SerializeToString()
    assert [(u.name, u.loss, u.loss_nearest, u.kept) for u in again.units] == [
        (u.name, u.loss, u.loss_nearest, u.kept) for u in whole.units
    ]
    finished = [p.result for p in told if p.result is not None]
    assert finished == list(again.units)  # those that were read are reported, too
    assert [p.earlier for p in told if p.result is not None] == [True] * done + [False] * (UNITS - done)
    assert "kept from an earlier run" in str(next(p for p in told if p.result is not None))


def test_finished_run_only_writes(here, trained):
    again = here.run(checkpoint=here.kept["qdrop"])
    assert trained == []
    assert again.model.SerializeToString() == here.whole["qdrop"].model.SerializeToString()
    assert again.units == here.whole["qdrop"].units


@pytest.mark.parametrize(("stage", "done"), [("probe", 2), ("reconstruct", 1)])
def test_probing_run_is_kept_as_well(here, tmp_path, trained, stage, done):
    whole = here.whole["mrecg"]
    assert len(whole.units) == UNITS - 1
    assert len(whole.probe) == UNITS
    with pytest.raises(KeyboardInterrupt):
        here.run(MRECG, checkpoint=tmp_path, progress=stop_after(stage, done))
    before = len(trained)
    assert before == (done if stage == "probe" else UNITS + done)
    again = here.run(MRECG, checkpoint=tmp_path)
    assert len(trained) == UNITS + UNITS - 1
    assert again.model.SerializeToString() == whole.model.SerializeToString()
    assert again.plan == whole.plan
    expected = [f"probe-{i:04d}.pt" for i in range(UNITS)] + [f"reconstruct-{i:04d}.pt" for i in range(UNITS - 1)]
    assert names(tmp_path) == [*expected, "run.json"]


def test_stopped_within_a_unit_the_unit_starts_again(here, tmp_path, trained):
    def stop(progress: Progress) -> None:
        if progress.stage == "reconstruct" and progress.done == 1 and progress.iteration:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.run(checkpoint=tmp_path, progress=stop)
    assert names(tmp_path) == ["reconstruct-0000.pt", "run.json"]
    trained.clear()
    again = here.run(checkpoint=tmp_path)
    assert len(trained) == UNITS - 1
    assert again.model.SerializeToString() == here.whole["qdrop"].model.SerializeToString()


def test_memory_threads_and_device_may_differ(here, trained):
    again = here.run(replace(QDROP, memory=8 * 10**9, threads=None, device="cpu"), checkpoint=here.kept["qdrop"])
    assert trained == []
    assert again.units == here.whole["qdrop"].units


def test_folders_are_made(here, tmp_path):
    here.run(checkpoint=tmp_path / "not" / "yet", settings=replace(QDROP, iters=1))
    assert len(names(tmp_path / "not" / "yet")) == UNITS + 1


def test_nothing_learned_no_units_kept(here, tmp_path):
    here.run(Settings(method="nearest"), checkpoint=tmp_path / "none")
    assert names(tmp_path / "none") == []


def test_command_line_goes_on(here, tmp_path, trained):
    command = ["quantize", str(here.model), "--calib", str(here.images), "--method", "qdrop", "--equalize", "off"]
    command += ["--iters", "2", "--threads", "1", "--checkpoint", str(tmp_path / "kept")]
    for name in ("first.onnx", "second.onnx"):
        done = CliRunner().invoke(main, [*command, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    assert len(trained) == UNITS
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    other = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "other.onnx"), "--seed", "1"])
    assert other.exit_code == 0
    told = [
        line for line in other.output.splitlines() if line.startswith(f"Warning: --checkpoint {tmp_path / 'kept'}: ")
    ]
    assert len(told) == 1
    assert "different: seed)" in told[0]
    assert len(trained) == 2 * UNITS


# --- other runs --------------------------------------------------------------------------------------------------

FAST = replace(QDROP, iters=1)


@pytest.fixture
def fast(here, tmp_path) -> Path:
    """The checkpoint of a short run."""
    here.run(FAST, checkpoint=tmp_path / "fast")
    return tmp_path / "fast"


def own_folder(folder: Path, caplog: pytest.LogCaptureFixture, different: str) -> None:
    """The last run kept its units in a folder of its own beside those that are there, and said what differs."""
    assert f"--checkpoint {folder}: the units in it belong to another run (different: {different}); " in caplog.text
    assert len(others(folder)) == 1
    assert str(others(folder)[0]) in caplog.text
    assert names(others(folder)[0]) == names(folder)


@pytest.mark.parametrize(
    "change",
    [{"iters": 2}, {"seed": 1}, {"wbits": 3, "batch_size": 16}, {"learn_bias": False}, {"first_last_bits": 7}],
    ids=str,
)
def test_units_of_other_settings_are_left_alone(here, fast, trained, caplog, change):
    before = {name: (fast / name).read_bytes() for name in names(fast)}
    other = here.run(replace(FAST, **change), checkpoint=fast)
    own_folder(fast, caplog, ", ".join(sorted(change)))
    assert len(trained) == UNITS
    assert before == {name: (fast / name).read_bytes() for name in names(fast)}
    assert other.model.SerializeToString() == here.run(replace(FAST, **change)).model.SerializeToString()


def test_either_of_two_runs_goes_on_in_one_folder(here, fast, trained):
    other = replace(FAST, seed=1)
    made = {seed: here.run(replace(FAST, seed=seed), checkpoint=fast) for seed in (1, 0)}
    trained.clear()
    for seed in (1, 0):
        again = here.run(replace(other, seed=seed), checkpoint=fast)
        assert again.model.SerializeToString() == made[seed].model.SerializeToString()
    assert trained == []
    assert len(others(fast)) == 1


def test_units_of_another_model_are_left_alone(here, fast, tmp_path, caplog):
    onnx.save(residual(seed=1, blocks=2), tmp_path / "other.onnx")
    here.run(FAST, model=tmp_path / "other.onnx", checkpoint=fast)
    own_folder(fast, caplog, "model")


@pytest.mark.parametrize("change", [{"count": 47}, {"seed": 1}], ids=str)
def test_units_of_other_images_are_left_alone(here, fast, tmp_path, caplog, change):
    np.savez(tmp_path / "calib.npz", **feeds(residual(blocks=2), **{"count": 48} | change))
    here.run(FAST, images=tmp_path / "calib.npz", checkpoint=fast)
    own_folder(fast, caplog, "images")


def test_units_of_more_of_the_same_images_are_left_alone(here, fast, caplog):
    here.run(replace(FAST, samples=40), checkpoint=fast)
    own_folder(fast, caplog, "images, samples")


def test_same_model_and_images_elsewhere_are_the_same(here, tmp_path, trained):
    """Paths do not count, nor how the model was handed over."""
    images = Path(shutil.copy(here.images, tmp_path))
    here.run(images=images, model=onnx.load(here.model), checkpoint=here.kept["qdrop"])
    assert trained == []


def test_units_of_other_decisions_before_the_learning_are_left_alone(here, tmp_path, monkeypatch, caplog):
    """Units learned on a rescaled network do not fit one that is not, however that came about."""
    chosen = replace(QDROP, equalize="auto", iters=1, abits=3)
    first = here.run(chosen, checkpoint=tmp_path)
    assert any(entry.alpha for entry in first.equalized)
    (tmp_path / "prepared" / "equalization.json").unlink()
    monkeypatch.setattr("mrecg_onnx.preparation.choose_scales", lambda *_: [])
    here.run(chosen, checkpoint=tmp_path)
    own_folder(tmp_path, caplog, "equalized")


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x02]q\x00."], ids=["empty", "torn", "foreign"])
def test_torn_file_is_named(here, tmp_path, content):
    folder = here.copy("qdrop", tmp_path / "kept")
    torn = folder / "reconstruct-0001.pt"
    torn.write_bytes(content)
    with pytest.raises(DataError) as raised:
        here.run(checkpoint=folder)
    assert str(torn) in str(raised.value)


def test_half_a_file_is_named(here, tmp_path):
    folder = here.copy("qdrop", tmp_path / "kept")
    torn = folder / "reconstruct-0002.pt"
    torn.write_bytes(torn.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"reconstruct-0002\.pt"):
        here.run(checkpoint=folder)


def test_file_of_another_unit_is_named(here, tmp_path):
    folder = here.copy("qdrop", tmp_path / "kept")
    shutil.copy(folder / "reconstruct-0002.pt", folder / "reconstruct-0001.pt")
    with pytest.raises(DataError, match=r"reconstruct-0001\.pt' is of another unit"):
        here.run(checkpoint=folder)


def test_removed_unit_is_learned_again(here, tmp_path, trained):
    folder = here.copy("qdrop", tmp_path / "kept")
    (folder / "reconstruct-0001.pt").unlink()
    again = here.run(checkpoint=folder)
    assert trained == [here.whole["qdrop"].units[1].name]
    assert again.model.SerializeToString() == here.whole["qdrop"].model.SerializeToString()


@pytest.mark.parametrize("content", [b"", b'{"version": "0', b"\xff\xfe\x00", b"[1, 2]", b"7"], ids=repr)
def test_damaged_description_is_named(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(SettingsError, match=f"--checkpoint {tmp_path}: cannot be used") as raised:
        Checkpoint(tmp_path, {"seed": 0})
    assert "\n" not in str(raised.value)


def test_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(SettingsError, match=f"--checkpoint {tmp_path / 'kept'}: cannot be used"):
        Checkpoint(tmp_path / "kept", {})


def unit() -> tuple[State, UnitResult]:
    per_channel = Grid(torch.rand(3) + 0.1, torch.tensor([0.0, 1.0, 3.0]), 2, axis=0)
    state = State(
        {"x": Grid(torch.tensor(0.1), torch.tensor(4.0), 4)},
        {"conv": QuantizedWeight(torch.randint(0, 4, (3, 2, 1, 1)).float(), per_channel)},
        {"conv": torch.randn(3)},
    )
    return state, UnitResult("conv", ("conv",), 5, 0.5, 0.25, "learned", 0.01, 1.5)


def test_what_is_saved_is_loaded(tmp_path):
    state, result = unit()
    kept = Checkpoint(tmp_path, {"seed": 0})
    kept.save("probe", 7, state, result)
    assert kept.load("reconstruct", 7, ("conv",), torch.device("cpu")) is None
    assert kept.load("probe", 6, ("conv",), torch.device("cpu")) is None
    found = Checkpoint(tmp_path, {"seed": 0}).load("probe", 7, ("conv",), torch.device("cpu"))
    assert found is not None
    assert found[0] == result
    assert found[1].activations == state.activations
    weight, wanted = found[1].weights["conv"], state.weights["conv"]
    assert torch.equal(weight.codes, wanted.codes)
    assert torch.equal(weight.grid.scale, wanted.grid.scale)
    assert (weight.grid.bits, weight.grid.axis, weight.grid.symmetric) == (2, 0, False)
    assert torch.equal(found[1].biases["conv"], state.biases["conv"])


def test_unit_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path, {"seed": 0})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"reconstruct-0003.pt' cannot be written \(No space left on device\)"):
        kept.save("reconstruct", 3, *unit())
    assert names(tmp_path) == ["run.json"]


def test_order_and_tuples_make_no_other_run(tmp_path):
    Checkpoint(tmp_path, {"a": (1, 2), "b": None})
    Checkpoint(tmp_path, {"b": None, "a": [1, 2]})
    assert others(tmp_path) == []
    other = Checkpoint(tmp_path, {"a": [1], "b": None, "c": 1})
    assert others(tmp_path) == [other.folder]
    assert Checkpoint(tmp_path, {"c": 1, "b": None, "a": (1,)}).folder == other.folder
    assert Checkpoint(tmp_path, {"a": [1], "b": None, "c": 2}).folder not in {tmp_path, other.folder}


def test_description_in_a_folder_of_another_run_is_refused(tmp_path):
    Checkpoint(tmp_path, {"seed": 0})
    other = Checkpoint(tmp_path, {"seed": 1}).folder
    (other / "run.json").write_text('{"seed": 2}')
    with pytest.raises(SettingsError, match=r"--checkpoint .*run-.*\(different: seed\)"):
        Checkpoint(tmp_path, {"seed": 1})
