"""Operators that move values: codes stay what they are, floats too.

Images lie with their channels last; an axis of ONNX is looked up in that order, and only what needs ONNX's own order of elements,
a change of sizes, gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import Held, Scales, channels_last, plain_order
from mrecg_onnx.litert.reading import constant_ints, constant_of, first_input, refused
from mrecg_onnx.litert.windows import pad
from mrecg_onnx.litert.writer import Out, Writer, activation, long_axes, raw_out

__all__ = ["alias", "concat", "cut", "moving", "pad_values", "reshape", "split", "transpose"]

_FUSED = "fusedActivationFunction"


def alias(w: Writer, node: ir.Node) -> None:
    """The output is the input."""
    source, made = first_input(node).name or "", node.outputs[0].name or ""
    for held in (w.codes, w.floats):
        if source in held:
            held[made] = held[source]  # type: ignore[assignment]
    if made not in w.codes and made not in w.floats:
        w.floats[made] = w.float(first_input(node), node)


def moving(
    w: Writer, node: ir.Node, order: Sequence[int], emit: Callable[[Held, Held], object], *, out: int = 0
) -> None:
    """An operator that moves values: of codes where there are some, ``emit`` is given what it reads and what it makes."""
    value = node.outputs[out]
    codes = w.ints(first_input(node))
    if codes is not None:
        held = w.ordered(codes, order, node)
        target = w.out(value, node)
        w.pass_codes(target, held, order, lambda to, _relu: emit(held, to))
    else:
        floats = w.ordered(w.float(first_input(node), node), order, node)
        w.write_float(Out(value, w.size(value, node)), order, lambda to, _relu: emit(floats, to))


def _held(w: Writer, node: ir.Node) -> Held:
    """The input: its codes where there are some, else its floats."""
    return w.ints(first_input(node)) or w.float(first_input(node), node)


def _resting(w: Writer, node: ir.Node) -> tuple[int, ...]:
    """The order in which the input lies."""
    return _held(w, node).order


def _let(w: Writer, node: ir.Node, made: Held) -> None:
    """``node`` makes ``made``: floats, or codes, which a quantizer behind it brings to its own grid."""
    name = node.outputs[0].name or ""
    if made.kind == "FLOAT32":
        w.floats[name] = made
        return
    out = w.out(node.outputs[0], node)
    if out.codes is None:
        w.codes[name] = made
    else:
        w.requantize(out, made)


def reshape(w: Writer, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the elements in ONNX's order with other sizes."""
    rank = len(w.size(first_input(node), node).shape)
    held = _held(w, node)
    order = held.order if long_axes(held) == sorted(long_axes(held)) else plain_order(rank)
    value = node.outputs[0]
    sizes = w.size(value, node)
    source = w.ordered(held, order, node)
    like = replace(held, shape=sizes.shape, free=sizes.free, order=plain_order(len(sizes.shape)))
    _let(w, node, w.reshaped(source, like, node, value.name))


def transpose(w: Writer, node: ir.Node) -> None:
    """Axes get other names; they are moved only where someone wants them in an order that they are not in."""
    rank = len(w.size(first_input(node), node).shape)
    moves = list(node.attributes.get_ints("perm", list(range(rank))[::-1]))
    sizes = w.size(node.outputs[0], node)
    held = _held(w, node)
    order = tuple(moves.index(axis) for axis in held.order)
    renamed = replace(held, shape=sizes.shape, free=sizes.free, order=order)
    if order not in {plain_order(rank), channels_last(rank)}:
        renamed = w.plain(renamed, node)
    _let(w, node, renamed)


def concat(w: Writer, node: ir.Node) -> None:
    """Concat; codes on other grids than that of the result are brought to it."""
    out = w.out(node.outputs[0], node)
    rank = len(out.sizes.shape)
    axis = node.attributes.get_int("axis", 0) % rank
    codes = [w.ints(v) for v in node.inputs]
    on_codes = out.codes is not None and all(held is not None for held in codes)
    held = [
        c if on_codes and c is not None else w.float(v, node)
        for c, v in zip(codes, node.inputs, strict=True)
        if v is not None
    ]
    order = (
        channels_last(rank) if any(h.order == channels_last(rank) for h in held) and rank == 4 else plain_order(rank)
    )
    held = [w.ordered(h, order, node) for h in held]
    options = ("ConcatenationOptions", {"axis": order.index(axis), _FUSED: activation(relu=False)})

    def joined(parts: Sequence[Held], to: Held) -> None:
        w.flat.operator("CONCATENATION", parts, to, options)

    if not on_codes:
        w.write_float(raw_out(w, node), order, lambda to, _relu: joined(held, to))
        return
    assert out.codes is not None
    grid = held[0].scales
    assert grid is not None
    for part in held:
        if part.scales != grid and (part.zero != grid.zero or part.scales.scale.tobytes() != grid.scale.tobytes()):  # type: ignore[union-attr]
            grid = Scales(out.codes.scale, out.codes.zero - 128)
            break
    if grid.scale.tobytes() != out.codes.scale.tobytes():
        grid = Scales(out.codes.scale, out.codes.zero - 128)
    alike = [_on(w, part, grid) for part in held]
    like = replace(alike[0], low=min(p.low for p in alike), high=max(p.high for p in alike))
    w.pass_codes(out, like, order, lambda to, _relu: joined(alike, to))


def _on(w: Writer, held: Held, grid: Scales) -> Held:
    """``held`` with codes of ``grid``."""
    assert held.scales is not None
    if held.zero == grid.zero and held.scales.scale.tobytes() == grid.scale.tobytes():
        return held
    return w.move(
        held, w.flat.tensor(f"{w.flat.tensors[held.index].name}_moved", replace(held, scales=grid, low=-128, high=127))
    )


def cut(w: Writer, node: ir.Node) -> None:
    """Slice with constant bounds."""
    sizes = w.size(first_input(node), node)
    rank = len(sizes.shape)
    starts, ends = constant_ints(node, 1) or [], constant_ints(node, 2) or []
    axes = constant_ints(node, 3) or list(range(len(starts)))
    steps = constant_ints(node, 4) or [1] * len(starts)
    taken = {axis: slice(0, None, 1) for axis in range(rank)}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1 or sizes.free[axis % rank]:
            raise refused(node, "it goes backwards, or along the batch")
        taken[axis % rank] = slice(*slice(start, end, step).indices(sizes.shape[axis % rank]))
    _cut(w, node, taken)


def _cut(w: Writer, node: ir.Node, taken: dict[int, slice], out: int = 0) -> None:
    order = _resting(w, node)
    whole = sum(1 << i for i, axis in enumerate(order) if taken[axis] == slice(0, None, 1))
    ends = [[taken[a].start, taken[a].stop or 0, taken[a].step] for a in order]
    begin, end, step = (w.flat.constant("places", np.array(row, np.int32)) for row in zip(*ends, strict=True))
    options = ("StridedSliceOptions", {"beginMask": whole, "endMask": whole})
    moving(
        w,
        node,
        order,
        lambda x, to: w.flat.operator("STRIDED_SLICE", [x, begin, end, step], to, options),
        out=out,
    )


def split(w: Writer, node: ir.Node) -> None:
    """Split: a slice for each output."""
    sizes = w.size(first_input(node), node)
    axis = node.attributes.get_int("axis", 0) % len(sizes.shape)
    start = 0
    for i, value in enumerate(node.outputs):
        length = w.size(value, node).shape[axis]
        taken = {a: slice(0, None, 1) for a in range(len(sizes.shape))}
        taken[axis] = slice(start, start + length, 1)
        _cut(w, node, taken, out=i)
        start += length


def pad_values(w: Writer, node: ir.Node) -> None:
    """Pad with a constant: of codes, of values on a grid with 0, or of floats."""
    counts = constant_ints(node, 1) or []
    if node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) > 3:
        raise refused(node, "it pads by reflection or along some axes")
    filler = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    name = node.outputs[0].name or ""
    source = first_input(node).name or ""
    held = w.codes.get(source)
    on_codes = source not in w.values  # the codes themselves, not what they stand for
    if held is not None and (on_codes or filler is None or not filler.any()):
        made = pad(w, held, counts, node)
        if on_codes:
            w.codes[name] = made
        else:
            _let(w, node, made)
        return
    value = float(filler.reshape(())) if filler is not None else 0.0
    w.floats[name] = pad(w, w.float(first_input(node), node), counts, node, value or None)
