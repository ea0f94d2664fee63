"""Finished units on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.files import require_regular, write_whole
from mrecg_onnx.network import QuantizedWeight, State
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers import Grid

__all__ = ["Checkpoint"]


class Checkpoint:
    """A folder with one file for each finished unit, and a description of the run they belong to.

    Args:
        folder: made where it does not exist.
        run: what makes two runs the same, as plain JSON data.

    Raises:
        SettingsError: the folder holds units of another run; what differs is named.
    """

    def __init__(self, folder: str | Path, run: dict[str, Any]) -> None:
        self.folder = Path(folder)
        run = json.loads(json.dumps(run))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            description = self.folder / "run.json"
            require_regular(description)
            if not description.exists():
                write_whole(description, json.dumps(run, indent=1))
            found = dict(json.loads(description.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"--checkpoint {folder}: cannot be used ({error})") from error
        differ = sorted(k for k in {*found, *run} if found.get(k) != run.get(k))
        if differ:
            raise SettingsError(
                f"--checkpoint {folder}: the units in it belong to another run (different: {', '.join(differ)}); "
                "name another folder or remove this one"
            )

    def load(
        self, stage: str, number: int, layers: tuple[str, ...], device: torch.device
    ) -> tuple[UnitResult, State] | None:
        """What was kept of unit ``number`` of ``stage``, which has these ``layers``; None if it is not there.

        Raises:
            DataError: the file cannot be read, or is of another unit.
        """
        path = self._path(stage, number)
        if not path.exists():
            return None
        try:
            require_regular(path)
            found = torch.load(path, map_location=device, weights_only=True)
            result = UnitResult(**{**found["result"], "layers": tuple(found["result"]["layers"])})
            state = State(
                {n: Grid(**g) for n, g in found["activations"].items()},
                {n: QuantizedWeight(w["codes"], Grid(**w["grid"])) for n, w in found["weights"].items()},
                found["biases"],
            )
        except Exception as error:  # a torn or foreign file fails in many ways
            raise DataError(f"checkpoint '{path}' cannot be read ({error}): remove it and start again") from error
        if result.layers != layers:
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


def _plain(grid: Grid) -> dict[str, Tensor | int | bool | None]:
    return {f.name: getattr(grid, f.name) for f in dataclasses.fields(grid)}
