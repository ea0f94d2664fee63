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

from mrecg_onnx.converters.errors import ConversionError
from mrecg_onnx.converters.ops.elementwise import OnnxCast, overwriting

__all__ = ["ActivationHook", "Network", "Step", "WeightHook"]

#: Batches on which steps are tried together; the second number of them is two.
RUNS = 3
#: Relative difference (L2) up to which a step gives the same for batches together, sums in another order allowed, and up to which
#: the rows of an image do not depend on the other images.
TOGETHER, SEPARATE = 1e-5, 1e-3
#: Steps that read sizes: those of one batch.
_SIZES = frozenset({"Shape", "Size"})

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
    """Runs the steps of a module made by :func:`mrecg_onnx.converters.to_torch`, on any number of images.

    A graph whose batch is fixed, and which computes something else on other batches, runs at its own
    (:meth:`run_at`): values then are those of several runs, joined along their first axis, and where the last run lacks
    images, the last one is repeated and what comes of it is cut off. Only the steps that need it are run several times: most,
    such as convolutions, compute the same on all images together.

    Attributes:
        steps: all steps in topological order.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
        device: where constants and weights are.
        batch: the batch at which the graph is run, None for any.
        rows: rows of a tensor that belong to one image, by name, of those that keep images apart along their first axis;
            filled by :meth:`measure` and :meth:`run_at`.
    """

    def __init__(self, module: fx.GraphModule, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.batch: int | None = None
        self.rows: dict[str, int] = {}
        # At a fixed batch: rows that a run makes of each tensor that depends on the images, None for one without axes.
        self._lead: dict[str, int | None] = {}
        self._apart: set[str] = set()  # nodes that cannot be run on several batches together
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
        over = ((step.node, overwriting(step.module)) for step in self.steps if len(step.arguments) == 1)
        self._over = {node: call for node, call in over if call is not None}

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
            activation: replaces each value as it is made (not the given ones). A copy is needed of what is to be looked at
                later: without gradients a Relu or Clip writes over what the layer in front of it made.
            weight: weight and bias of weighted steps; the module's own without.

        Returns:
            The kept tensors by name.
        """
        steps = self.steps if steps is None else steps
        wanted = dict.fromkeys(self.outputs if keep is None else keep)
        last = {name: i for i, step in enumerate(steps) for name in step.arguments if name is not None}
        images = 0 if self.batch is None else self._images(values)
        live: dict[str, Tensor] = {**self._constants, **self._filled(values, images)}
        fresh = dict.fromkeys(wanted, False)  # values in memory of their own, which nobody else holds or wants
        for i, step in enumerate(steps):
            call = _own(step) if weight is None or not step.weighted else _substituted(step, *weight(step))
            first = step.arguments[0] if step.arguments else None
            if first is not None and fresh.get(first) and last[first] == i:
                call = self._over.get(step.node, call)
            made = self._made(step, [None if name is None else live[name] for name in step.arguments], call)
            for name, value in zip(step.outputs, made, strict=True):
                live[name] = value if activation is None else activation(name, value)
                fresh.setdefault(name, self._is_fresh(step, value) and live[name] is value)
            for used in (*step.arguments, *step.outputs):
                if used is not None and last.get(used, -1) <= i and used not in wanted and used not in self._constants:
                    live.pop(used, None)
        return {name: self._cut(name, live[name], images) for name in wanted if name in live}

    def _is_fresh(self, step: Step, made: Tensor) -> bool:
        """True where the steps behind may write over what ``step`` made: a layer's output, while no gradients are wanted."""
        plain = self.batch is None and made.dtype == torch.float32 and not torch.is_grad_enabled()
        return plain and step.weighted

    def measure(self, images: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Note how many rows an image has in each of the tensors ``names`` (:attr:`rows`).

        A tensor without an entry then does not keep images apart along its first axis: two images give other rows than each of
        them alone.

        Args:
            images: two or more by input name, [N, ...].
            names: tensors of the graph.
        """
        names = list(names)
        with torch.no_grad():
            pair = {name: x[:2].to(self.device) for name, x in images.items()}
            first, second = (self.run({n: x[i : i + 1] for n, x in pair.items()}, keep=names) for i in (0, 1))
            both = self.run(pair, keep=names)
        self.rows = {}
        for name in names:
            one, other, joined = first[name], second[name], both[name]
            if not one.dim() or not len(one) or one.shape != other.shape or len(joined) != 2 * len(one):
                continue
            if len(one) == 1 or _close(torch.cat((one, other)), joined, SEPARATE):
                self.rows[name] = len(one)

    def run_at(self, batch: int, images: Mapping[str, Tensor]) -> None:
        """Run the graph at ``batch`` from now on.

        Which steps have to be run batch by batch is found out on ``images``: those that give something else, or fail, on two
        or three batches together.

        Args:
            batch: the model's own.
            images: by input name, [N, ...], N >= 1.

        Raises:
            ConversionError: a tensor has another shape on other images.
        """
        self.batch, self._apart = batch, set()
        self._lead = dict.fromkeys(self.inputs, batch)
        index = torch.arange(RUNS * batch) % len(next(iter(images.values())))
        inputs = {name: x[index.to(x.device)].to(self.device) for name, x in images.items()}
        live: dict[str, Tensor] = {**self._constants, **inputs}
        last = {name: i for i, step in enumerate(self.steps) for name in step.arguments if name is not None}
        with torch.no_grad():
            for i, step in enumerate(self.steps):
                made = self._tried(step, [None if name is None else live[name] for name in step.arguments])
                live.update(zip(step.outputs, made, strict=True))
                for name in (*step.arguments, *step.outputs):
                    if name is not None and last.get(name, -1) <= i and name not in self._constants:
                        live.pop(name, None)
        self.rows = {n: lead // batch if lead is not None else 1 for n, lead in self._lead.items() if self._whole(lead)}
        if batch > 1:
            self._keep_separate(inputs)

    def _whole(self, lead: int | None) -> bool:
        """True where the rows of a run are as many for each image."""
        assert self.batch is not None
        return self.batch == 1 if lead is None else lead > 0 and lead % self.batch == 0

    def _keep_separate(self, images: Mapping[str, Tensor]) -> None:
        """Take tensors out of :attr:`rows` whose rows of an image change with the other images of its batch."""
        batch = self.batch or 1
        one = {name: x[:batch] for name, x in images.items()}
        other = {name: torch.cat((x[: batch - 1], x[batch : batch + 1])) for name, x in images.items()}
        seen: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            if name in self.rows:
                seen[name] = value[: -self.rows[name]].clone()
            return value

        def compare(name: str, value: Tensor) -> Tensor:
            if name in self.rows and not _close(seen.pop(name), value[: -self.rows[name]], SEPARATE):
                del self.rows[name]
            return value

        with torch.no_grad():
            self.run(one, activation=keep)
            self.run(other, activation=compare)

    def _tried(self, step: Step, arguments: list[Tensor | None]) -> list[Tensor]:
        """Outputs of a step on :data:`RUNS` batches; notes what they are and whether they can be made together."""
        call = _own(step)
        if not any(name in self._lead for name in step.arguments) or step.op in _SIZES:
            return self._made(step, arguments, call)
        pieces = [_outputs(step, call(*part)) for part in self._parts(step, arguments)]
        for k, name in enumerate(step.outputs):
            shapes = {tuple(made[k].shape) for made in pieces}
            if len(shapes) > 1:
                raise ConversionError(
                    f"tensor '{name}' has the shapes {' and '.join(map(str, sorted(shapes)))} on different images, which "
                    "cannot be run at a fixed batch: export the model with a free batch"
                )
            self._lead[name] = pieces[0][k].shape[0] if pieces[0][k].dim() else None
        together = all(self._same_together(step, arguments, call, pieces[:count]) for count in (2, RUNS))
        if not together:
            self._apart.add(step.node)
        return [_joined([made[k] for made in pieces]) for k in range(len(step.outputs))]

    def _same_together(
        self, step: Step, arguments: list[Tensor | None], call: Callable[..., Any], pieces: list[list[Tensor]]
    ) -> bool:
        """Whether a step gives ``pieces``, its outputs on the first batches, also when it is called once."""
        parts = self._parts(step, arguments)[: len(pieces)]
        joined = [
            _joined([part[k] for part in parts]) if name in self._lead else argument  # type: ignore[misc]
            for k, (name, argument) in enumerate(zip(step.arguments, arguments, strict=True))
        ]
        try:
            found = _outputs(step, call(*joined))
        except Exception:  # noqa: BLE001 - a module raises whatever torch does about its inputs
            return False
        wanted = [_joined([made[k] for made in pieces]) for k in range(len(step.outputs))]
        return all(_close(a, b, TOGETHER) for a, b in zip(wanted, found, strict=True))

    def _made(self, step: Step, arguments: list[Tensor | None], call: Callable[..., Any]) -> list[Tensor]:
        """Outputs of a step."""
        if self.batch is not None and any(name in self._lead for name in step.arguments):
            if step.op in _SIZES:  # of one batch
                return _outputs(step, call(*self._parts(step, arguments)[0]))
            if step.node in self._apart:
                pieces = [_outputs(step, call(*part)) for part in self._parts(step, arguments)]
                return [_joined([made[k] for made in pieces]) for k in range(len(step.outputs))]
        return _outputs(step, call(*arguments))

    def _parts(self, step: Step, arguments: list[Tensor | None]) -> list[list[Tensor | None]]:
        """The arguments of a step for each batch."""
        cut: list[list[Tensor] | None] = []
        for name, value in zip(step.arguments, arguments, strict=True):
            if value is None or name not in self._lead:
                cut.append(None)
                continue
            lead = self._lead[name]
            cut.append(list(value.unbind(0)) if lead is None else list(torch.split(value, lead)) if lead else [value])
        count = max(len(pieces) for pieces in cut if pieces is not None)
        return [
            [
                value if pieces is None else pieces[min(i, len(pieces) - 1)]
                for value, pieces in zip(arguments, cut, strict=True)
            ]
            for i in range(count)
        ]

    def _images(self, values: Mapping[str, Tensor]) -> int:
        """How many images ``values`` are of."""
        assert self.batch is not None
        found = [(self._lead[n], x) for n, x in values.items() if n in self._lead and x.dim()]
        counts = [
            len(x) if lead is None else len(x) * self.batch // lead for lead, x in found if lead is None or lead > 0
        ]
        return min(counts, default=0)

    def _filled(self, values: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
        """``values``, with as many copies of the last image as the last batch lacks."""
        missing = -images % self.batch if self.batch else 0
        if not missing:
            return dict(values)
        filled = dict(values)
        for name, x in values.items():
            lead = self._lead.get(name)
            if lead and self._whole(lead):
                rows = lead // (self.batch or 1)
                filled[name] = torch.cat((x, x[-rows:].repeat(missing, *[1] * (x.dim() - 1))))
        return filled

    def _cut(self, name: str, value: Tensor, images: int) -> Tensor:
        """``value`` without what came of copies."""
        lead = self._lead.get(name) if self.batch is not None else None
        if not lead or not self._whole(lead):
            return value
        return value[: images * (lead // (self.batch or 1))]


def _own(step: Step) -> Callable[..., Any]:
    """The map of a step with its own weights."""
    return step.module


def _substituted(step: Step, own: Tensor, bias: Tensor | None) -> Callable[..., Any]:
    """The map of a weighted step with another weight and bias."""
    module: Any = step.module

    def call(x: Tensor, computed: Tensor | None = None) -> Any:
        # A second argument is a bias that the graph computes.
        return module.compute(x, own, bias if computed is None else computed)

    return call


def _outputs(step: Step, result: Any) -> list[Tensor]:
    """What a module returned, by the step's outputs."""
    return [result] if step.single else [result[k] for k in step.output_index]


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Values of several batches in one tensor."""
    return torch.cat(list(pieces)) if pieces[0].dim() else torch.stack(list(pieces))


def _close(wanted: Tensor, found: Any, tolerance: float) -> bool:
    """True where two tensors have one shape and differ by no more than ``tolerance``, relative (L2); integers are equal."""
    if not isinstance(found, Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.is_floating_point():
        return bool(torch.equal(wanted, found))
    a, b = wanted.double(), found.double()
    return bool(torch.linalg.vector_norm(a - b) <= tolerance * torch.linalg.vector_norm(a))


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
