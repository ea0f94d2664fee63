"""The network run part by part: what the steps in front hand to those behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mrecg_onnx.network.steps import Network, Step

__all__ = ["advance", "read_behind"]


def read_behind(network: Network, rest: Sequence[Step]) -> set[str]:
    """Names of the tensors that ``rest``, the last steps of ``network``, read, and of the network's outputs."""
    return {name for step in rest for name in step.arguments if name is not None} | set(network.outputs)


def advance(network: Network, live: Mapping[str, Tensor], step: Step, rest: Sequence[Step]) -> dict[str, Tensor]:
    """``live``, values by name, one ``step`` further: with what it makes, without what ``rest`` behind it does not read."""
    made = network.run(live, [step], keep=step.outputs)
    needed = read_behind(network, rest)
    return {name: value for name, value in {**live, **made}.items() if name in needed}
