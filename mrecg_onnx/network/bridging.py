"""A float graph in torch, at the batch at which it computes what ONNX Runtime does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch

from mrecg_onnx.converters import check_parity, to_torch
from mrecg_onnx.converters.errors import ConversionError, ModelError, first_line
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.network.steps import Network

__all__ = ["PARITY_TOLERANCE", "bridged", "own_batch", "rebridged"]

logger = logging.getLogger(__name__)

#: Largest relative error of the bridge, and of the rescaled float network, against the user's model in float32.
PARITY_TOLERANCE = 1e-4
#: Images of the second comparison with ONNX Runtime where a fixed batch was freed: what is right on all may be wrong on fewer.
FEWER = 3

Arrays = Mapping[str, npt.NDArray[Any]]


def bridged(
    original: onnx.ModelProto,
    graph: Callable[[bool], ir.Model],
    few: Arrays,
    device: torch.device,
    kept: Callable[[ir.Model], Collection[str]],
) -> tuple[ir.Model, Network, float]:
    """The graph in torch: for any batch where that can be, else at the model's own.

    Args:
        original: the model as it is.
        graph: makes the graph; with True its fixed batch is freed (:func:`mrecg_onnx.converters.normalize`).
        few: some images by input name, [N, ...], N >= 2.
        device: where to run it.
        kept: names of a graph's tensors that should keep images apart along their first axis; those that belong to a whole batch
            are not in :attr:`Network.rows` in the end.

    Returns:
        The graph, its network, and its parity: the relative error between ONNX Runtime and torch.

    Raises:
        ConversionError: a node cannot be converted, or torch differs from ONNX Runtime at the model's own batch, too.
        ModelError: ONNX Runtime does not run the model, or an output has no row for each image.
    """
    made, fixed = graph(True), own_batch(original)
    wanted = kept(made)
    try:
        network, parity = _compared(original, made, few, device, None, freed=fixed is not None)
        network.measure(_tensors(few), [*wanted, *network.outputs])
        _require_rows(network, few)
        lost = [name for name in wanted if name not in network.rows]
        if not lost:
            return made, network, parity
        reason = f"'{lost[0]}' does not have the batch in its first dimension"
    except ConversionError as error:
        if fixed is None:
            raise
        reason = first_line(error)
    except ModelError as error:
        if fixed is None and _runs_alone(original, few):
            raise ModelError(
                "its batch is declared free, but it only runs image by image: export it again, or set the first dimension of its "
                f"in- and outputs to 1 ({first_line(error)})"
            ) from error
        raise
    batch = fixed or 1
    if fixed is not None:
        made = graph(False)
    network, parity = _compared(original, made, few, device, batch, freed=False)
    _require_rows(network, few)
    logger.warning(
        "the network runs %s, which is slower: %s; %s",
        "image by image" if batch == 1 else f"at its own batch of {batch}",
        reason,
        "export it with a free batch if you can" if fixed is not None else "nothing is lost but time",
    )
    return made, network, parity


def rebridged(original: onnx.ModelProto, graph: ir.Model, few: Arrays, before: Network) -> tuple[Network, float]:
    """``graph`` in torch again, after its constants were changed: at the batch of the network of ``before``; and its parity.

    Raises:
        MrecgError: as :func:`bridged`.
    """
    network, parity = _compared(original, graph, few, before.device, before.batch, freed=False)
    if network.batch is None:
        network.rows = dict(before.rows)
    return network, parity


def own_batch(model: onnx.ModelProto) -> int | None:
    """The batch that all inputs of ``model`` fix, None where they do not."""
    given = {tensor.name for tensor in model.graph.initializer}
    sizes = set()
    for value in model.graph.input:
        if value.name not in given:
            axes = value.type.tensor_type.shape.dim
            sizes.add(axes[0].dim_value if len(axes) else 0)
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None


def _compared(
    original: onnx.ModelProto, graph: ir.Model, few: Arrays, device: torch.device, batch: int | None, *, freed: bool
) -> tuple[Network, float]:
    module = to_torch(graph)
    parity = check_parity(original, module, few, PARITY_TOLERANCE, batch=batch)
    if freed:
        fewer = {name: array[:FEWER] for name, array in few.items()}
        parity = max(parity, check_parity(original, module, fewer, PARITY_TOLERANCE))
    network = Network(module, device)
    if batch is not None:
        network.run_at(batch, _tensors(few))
    return network, parity


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def _runs_alone(original: onnx.ModelProto, few: Arrays) -> bool:
    """True if ONNX Runtime runs ``original`` on one image and not on several."""

    def runs(count: int) -> bool:
        try:
            run_onnx(original, {name: array[:count] for name, array in few.items()})
        except ModelError:
            return False
        return True

    return runs(1) and not runs(len(next(iter(few.values()))))


def _require_rows(network: Network, few: Arrays) -> None:
    """Refuse outputs without a row for each image now: verification would, after all the work.

    Raises:
        ModelError: the batch is not the first dimension of an output, or an output depends on no input.
    """
    lost = [name for name in network.outputs if network.rows.get(name) != 1]
    if not lost:
        return
    count = network.batch or 2
    with torch.no_grad():
        found = network.run({name: x[:count].to(network.device) for name, x in _tensors(few).items()})
    raise ModelError(
        f"output '{lost[0]}' has shape {list(found[lost[0]].shape)} for a batch of {count}, its first dimension has to be the "
        "batch: take it off the model's outputs"
    )
