"""Finished units on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import DataError, SettingsError, first_line
from mrecg_onnx.converters.files import require_regular, write_whole
from mrecg_onnx.machine import short_digest
from mrecg_onnx.network import QuantizedWeight, Simulation, State
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers import Grid

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result", bound=UnitResult)

#: A larger description is not read: no run writes one.
LARGEST = 16 << 20


class Checkpoint:
    """A folder with one file for each finished unit, and a description of the run they belong to.

    A run that finds units of another one there, in whatever it differs, keeps its own in a folder beside them (``run-`` and a
    digest of its description), and goes on with those.

    Args:
        folder: made where it does not exist.
        run: what makes two runs the same, as plain JSON data.

    Raises:
        SettingsError: the folder cannot be used, or its description is damaged.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any]) -> None:
        self.folder = Path(folder)
        run = json.loads(json.dumps(run))
        differ = _different(self.folder, run)
        if differ:
            self.folder /= f"run-{short_digest([json.dumps(run, sort_keys=True)])[:16]}"
            logger.warning(
                "--checkpoint %s: the units in it belong to another run (different: %s); those of this one are in %s",
                folder,
                ", ".join(differ),
                self.folder,
            )
            differ = _different(self.folder, run)
        if differ:
            raise SettingsError(
                f"--checkpoint {self.folder}: the units in it belong to another run (different: {', '.join(differ)}); "
                "remove this folder"
            )

    def load(
        self,
        stage: str,
        number: int,
        layers: tuple[str, ...],
        device: torch.device,
        kind: type[Result] = UnitResult,  # type: ignore[assignment]
        simulation: Simulation | None = None,
    ) -> tuple[Result, State] | None:
        """What was kept of unit ``number`` of ``stage``, which has these ``layers``; None if it is not there.

        Its result is of the class that was saved, ``kind``, and its state has to fit ``simulation``. Nothing in the file is run:
        torch reads tensors and plain values alone.

        Raises:
            DataError: the file cannot be read, or is of another unit.
        """
        path = self._path(stage, number)
        if not path.exists():
            return None
        try:
            require_regular(path)
            found = torch.load(path, map_location=device, weights_only=True)
            result = _result(kind, found["result"])
            state = State(
                {n: Grid(**g) for n, g in found["activations"].items()},
                {n: QuantizedWeight(w["codes"], Grid(**w["grid"])) for n, w in found["weights"].items()},
                found["biases"],
            )
        except Exception as error:  # a torn or foreign file fails in many ways
            said = first_line(error)[:100]
            raise DataError(f"checkpoint '{path}' cannot be read ({said}): remove it and start again") from error
        if result.layers != layers or not _fits(state, simulation):
            raise DataError(f"checkpoint '{path}' is of another unit: remove the folder and start again")
        return result, state

    def save(self, stage: str, number: int, state: State, result: UnitResult) -> None:
        """Keep a finished unit; the file is there whole or not at all.

        Raises:
            DataError: the folder cannot be written.
        """
        content = {
            "result": dataclasses.asdict(result),
            "activations": {n: _plain(g) for n, g in state.activations.items()},
            "weights": {n: {"codes": w.codes, "grid": _plain(w.grid)} for n, w in state.weights.items()},
            "biases": state.biases,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        path = self._path(stage, number)
        try:
            write_whole(path, buffer.getvalue())
        except OSError as error:
            raise DataError(f"checkpoint '{path}' cannot be written ({error.strerror})") from error

    def _path(self, stage: str, number: int) -> Path:
        return self.folder / f"{stage}-{number:04d}.pt"


def _different(folder: Path, run: dict[str, Any]) -> list[str]:
    """What of the run described in ``folder`` is not as ``run`` has it; a folder without a description gets that of ``run``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        description = folder / "run.json"
        require_regular(description)
        if not description.exists():
            write_whole(description, json.dumps(run, indent=1))
        text = _text(description)
    except OSError as error:
        raise SettingsError(f"--checkpoint {folder}: cannot be used ({first_line(error)[:100]})") from error
    except ValueError as error:
        raise _damaged(description, error) from error
    try:
        found = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(description, error) from error
    return sorted(k for k in {*found, *run} if found.get(k) != run.get(k))


def _damaged(description: Path, error: Exception) -> SettingsError:
    folder = description.parent
    return SettingsError(
        f"--checkpoint {folder}: cannot be used: {description} is damaged ({first_line(error)[:60]}); remove the folder"
    )


def _text(path: Path) -> str:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} is longer than {LARGEST} bytes")
    return path.read_text(encoding="utf-8")


def _result(kind: type[Result], found: dict[str, Any]) -> Result:
    """The outcome that was kept.

    Raises:
        ValueError: its fields are not those of ``kind``.
        TypeError: likewise.
    """
    result = kind(**{**found, "layers": tuple(found["layers"])})
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
        wanted = kinds.get(str(field.type), (object,))
        if not isinstance(value, wanted):
            raise TypeError(f"{field.name} is {type(value).__name__}")
    return result


def _fits(found: State, simulation: Simulation | None) -> bool:
    """Whether a state can be one of the network: tensors that it has, of their sizes, on grids that are some."""
    if simulation is None:
        return True
    try:
        return _like(found, simulation)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # no tensors, or of other types
        return False


def _like(found: State, simulation: Simulation) -> bool:
    grids = [*found.activations.values(), *(w.grid for w in found.weights.values())]
    sound = all(bool(torch.isfinite(g.scale).all()) and bool((g.scale > 0).all()) for g in grids)
    if not sound or not found.activations.keys() <= simulation.activations.keys():
        return False
    for name, weight in found.weights.items():
        known = simulation.weights.get(name)
        if (
            known is None
            or weight.codes.shape != known.codes.shape
            or weight.grid.scale.shape != known.grid.scale.shape
        ):
            return False
    for name, bias in found.biases.items():
        own = simulation.bias(simulation.network.step(name)) if name in simulation.weights else None
        if own is not None and bias.numel() != own.numel():
            return False
    return found.biases.keys() <= simulation.weights.keys()


def _plain(grid: Grid) -> dict[str, Tensor | int | bool | None]:
    return {f.name: getattr(grid, f.name) for f in dataclasses.fields(grid)}
