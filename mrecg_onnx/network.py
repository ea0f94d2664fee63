"""The converted graph as a list of steps that can be run whole or in part, with weights and activations replaced.

Every value is known by its ONNX tensor name, so that the plan, the simulation and the exporter speak of the same things.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from mrecg_onnx.converters.ops.elementwise import OnnxCast

__all__ = ["ActivationHook", "Network", "Step", "WeightHook"]

#: Called with (tensor name, value) after the value was made; returns what its readers see.
ActivationHook = Callable[[str, Tensor], Tensor]
#: Called with a step of a weighted layer; returns the weight and bias to compute with.
WeightHook = Callable[["Step"], "tuple[Tensor, Tensor | None]"]


@dataclass(frozen=True)
class Step:
    """One node: ``outputs = module(*arguments)``; arguments are tensor names, None for absent ones."""

    node: str
    op: str
    module: nn.Module
    arguments: tuple[str | None, ...]
    outputs: tuple[str, ...]
    output_index: tuple[int, ...]
    single: bool

    @property
    def weighted(self) -> bool:
        """True if the module holds a weight that can be substituted."""
        return hasattr(self.module, "compute") and isinstance(getattr(self.module, "weight", None), Tensor)


class Network:
    """Runs the steps of a module made by :func:`mrecg_onnx.converters.to_torch`.

    Attributes:
        steps: all steps in topological order.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
        device: where constants and weights are.
    """

    def __init__(self, module: fx.GraphModule, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        module = module.to(self.device)
        self._constants: dict[str, Tensor] = {}
        self.inputs: list[str] = []
        self.steps: list[Step] = []
        self.outputs: list[str] = []
        names: dict[fx.Node, str] = {}
        calls: dict[fx.Node, dict[str, Any]] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                names[node] = node.meta["onnx_tensor"]
                self.inputs.append(names[node])
            elif node.op == "get_attr":
                names[node] = node.meta["onnx_tensor"]
                self._constants[names[node]] = _attribute(module, str(node.target))
            elif node.op == "call_module":
                calls[node] = {"node": node.meta["onnx_node"], "op": node.meta["onnx_op_type"], "outputs": {}}
                calls[node]["module"] = module.get_submodule(str(node.target))
                calls[node]["arguments"] = _arguments(node, calls[node]["module"], names)
                made = node.meta["onnx_outputs"]
                if len([o for o in made if o]) == 1 and made[0]:
                    names[node] = made[0]
                    calls[node]["outputs"][0] = made[0]
            elif node.op == "call_function":  # one of several outputs
                names[node] = node.meta["onnx_tensor"]
                calls[node.args[0]]["outputs"][node.args[1]] = names[node]
            elif node.op == "output":
                made = node.args[0]
                self.outputs = [names[n] for n in (made if isinstance(made, tuple | list) else (made,))]
        for node, call in calls.items():
            outputs = dict(sorted(call.pop("outputs").items()))
            self.steps.append(
                Step(**call, outputs=tuple(outputs.values()), output_index=tuple(outputs), single=node in names)
            )
        self.steps = [self._unrounded(step) for step in self.steps]
        self._by_node = {step.node: step for step in self.steps}

    def _unrounded(self, step: Step) -> Step:
        """Outputs are compared and learned from in float32: the Cast that a model of half precision ends with is left out.

        Squares of what half precision holds are often more than it holds, gradients less.
        """
        cast = step.module
        if not isinstance(cast, OnnxCast) or cast.dtype not in {torch.float16, torch.bfloat16}:
            return step
        return dataclasses.replace(step, module=nn.Identity()) if step.outputs[0] in self.outputs else step

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """Constant arguments of steps by tensor name; weights are in the modules."""
        return self._constants

    def step(self, node: str) -> Step:
        """The step of the ONNX node called ``node``; KeyError without."""
        return self._by_node[node]

    def part(self, nodes: Iterable[str]) -> list[Step]:
        """Steps of ``nodes`` in topological order, with the shape computations they need from elsewhere."""
        wanted = set(nodes)
        return [step for step in self.steps if step.node in wanted]

    def helpers(self, inside: Sequence[Step], known: Iterable[str]) -> list[Step]:
        """``inside`` and the steps that make what it reads beyond ``known`` (shape arithmetic), in order."""
        maker = {name: step for step in self.steps for name in step.outputs}
        have = set(known) | {name for step in inside for name in step.outputs} | set(self._constants)
        wanted = {step.node for step in inside}
        queue = list(inside)
        while queue:
            for name in queue.pop().arguments:
                if name is not None and name not in have and name in maker:
                    have.update(maker[name].outputs)
                    wanted.add(maker[name].node)
                    queue.append(maker[name])
        return [step for step in self.steps if step.node in wanted]

    def run(
        self,
        values: Mapping[str, Tensor],
        steps: Sequence[Step] | None = None,
        *,
        keep: Iterable[str] | None = None,
        activation: ActivationHook | None = None,
        weight: WeightHook | None = None,
    ) -> dict[str, Tensor]:
        """Run ``steps`` (default: all) on ``values``.

        Args:
            values: tensors by name; graph inputs or the inputs of a unit. Not changed.
            steps: what to run, in topological order.
            keep: names to return; the graph's outputs by default. Everything else is freed after its last use.
            activation: replaces each value as it is made (not the given ones).
            weight: weight and bias of weighted steps; the module's own without.

        Returns:
            The kept tensors by name.
        """
        steps = self.steps if steps is None else steps
        wanted = dict.fromkeys(self.outputs if keep is None else keep)
        last = {name: i for i, step in enumerate(steps) for name in step.arguments if name is not None}
        live: dict[str, Tensor] = {**self._constants, **values}
        for i, step in enumerate(steps):
            arguments = [None if name is None else live[name] for name in step.arguments]
            if weight is not None and step.weighted:
                module: Any = step.module
                own, bias = weight(step)
                # A second argument is a bias that the graph computes.
                result = module.compute(arguments[0], own, arguments[1] if len(arguments) > 1 else bias)
            else:
                result = step.module(*arguments)
            made = (result,) if step.single else tuple(result[k] for k in step.output_index)
            for name, value in zip(step.outputs, made, strict=True):
                live[name] = value if activation is None else activation(name, value)
            for used in (*step.arguments, *step.outputs):
                if used is not None and last.get(used, -1) <= i and used not in wanted and used not in self._constants:
                    live.pop(used, None)
        return {name: live[name] for name in wanted if name in live}


def _arguments(node: fx.Node, module: nn.Module, names: Mapping[fx.Node, str]) -> tuple[str | None, ...]:
    """Names of what ``node`` calls its module with, by position; those behind an absent one come by keyword."""
    found = [names[a] if isinstance(a, fx.Node) else None for a in node.args]
    if node.kwargs:
        behind = list(inspect.signature(module.forward).parameters)[len(found) :]
        last = max(behind.index(key) for key in node.kwargs)
        given = [node.kwargs.get(key) for key in behind[: last + 1]]
        found += [names[a] if isinstance(a, fx.Node) else None for a in given]
    return tuple(found)


def _attribute(module: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    value = getattr(module.get_submodule(parent), name)
    assert isinstance(value, Tensor)
    return value
