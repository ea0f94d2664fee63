"""Where a model with NonMaxSuppression inside is cut, and what is put behind the quantized part again."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from helpers.detectors import detector, finished_detector, listed_detector
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx import Settings
from mrecg_onnx.converters.errors import ExportError, ModelError
from mrecg_onnx.planning import cut_off, load_planned, outputs_without_rows, told_cut
from mrecg_onnx.running import open_session, run_outputs

FEED = np.random.default_rng(0).random((1, 3, 32, 32)).astype(np.float32)
FEED[0, 0, :8, :8] = FEED[0, 2, 8:16, 8:16] = 4


def run(model: onnx.ModelProto, feed: np.ndarray = FEED) -> dict[str, np.ndarray]:
    return run_outputs(open_session(model), {"images": feed})


def ends(model: onnx.ModelProto, *outputs: tuple[str, list[int | str]]) -> onnx.ModelProto:
    """``model`` with those float outputs, too."""
    for name, shape in outputs:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize("batch", [1, "N"])
def test_the_front_has_a_row_an_image_and_the_whole_is_what_it_was(batch: int | str) -> None:
    model = finished_detector(batch)
    front, tail = cut_off(model)
    assert tail is not None
    assert [value.name for value in front.graph.output] == ["boxes", "by_class"]
    assert tail.model.graph.node[0].op_type == "NonMaxSuppression"
    again = tail.behind(front)
    onnx.checker.check_model(again, full_check=True)
    assert [list(map(str, side)) for side in (again.graph.input, again.graph.output)] == [
        list(map(str, side)) for side in (model.graph.input, model.graph.output)
    ]
    wanted, found = run(model), run(again)
    assert len(wanted["found_boxes"]) == 2
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    told = told_cut({entry.key: entry.value for entry in front.metadata_props})
    assert told.startswith("at 'boxes', 'by_class': what comes from NonMaxSuppression ")


def test_models_with_rows_stay_whole() -> None:
    model = detector()
    assert cut_off(model) == (model, None)
    assert outputs_without_rows(model) == ()
    assert outputs_without_rows(finished_detector()) == ("found_boxes", "found_scores", "found_labels")


def test_outputs_with_rows_stay_outputs_of_the_front() -> None:
    model = ends(finished_detector("N"), ("scores", ["N", 16, 2]))
    front, tail = cut_off(model)
    assert tail is not None
    assert [value.name for value in front.graph.output] == ["scores", "boxes", "by_class"]
    assert outputs_without_rows(model) == ("found_boxes", "found_scores", "found_labels")
    again = tail.behind(front)
    assert [value.name for value in again.graph.output] == [value.name for value in model.graph.output]
    assert np.array_equal(run(model)["scores"], run(again)["scores"])


def test_what_has_no_row_any_more_belongs_to_the_tail_with_what_sizes_tell() -> None:
    """Boxes without their batch axis, and a scale made of the image's size, which the tail multiplies with."""
    model = finished_detector("N")
    graph = model.graph
    flat = next(node for node in graph.node if node.output[0] == "flat_boxes")
    gather = next(node for node in graph.node if node.op_type == "Gather")
    gather.input[0] = "scaled"
    graph.node.insert(list(graph.node).index(flat) + 1, helper.make_node("Mul", ["flat_boxes", "size_"], ["scaled"]))
    sizes = [
        helper.make_node("Shape", ["images"], ["dims"], start=2, end=3),
        helper.make_node("Cast", ["dims"], ["size_"], to=TensorProto.FLOAT),
    ]
    for node in reversed(sizes):
        graph.node.insert(0, node)
    front, tail = cut_off(model)
    assert tail is not None
    assert [value.name for value in front.graph.output] == ["boxes", "by_class"]
    assert {value.name for value in tail.model.graph.input} == {"images", "boxes", "by_class"}
    wanted, found = run(model), run(tail.behind(front))
    assert wanted["found_boxes"].max() > 32
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_inputs_of_the_tail_alone_are_not_asked_for_in_front() -> None:
    model = finished_detector("N")
    least = next(node for node in model.graph.node if list(node.output) == ["least"])
    model.graph.node.remove(least)
    model.graph.input.append(helper.make_tensor_value_info("least", TensorProto.FLOAT, [1]))
    front, tail = cut_off(model)
    assert tail is not None
    assert [value.name for value in front.graph.input] == ["images"]
    assert [value.name for value in tail.behind(front).graph.input] == ["images", "least"]


@pytest.mark.parametrize("shape", [[1, 2], [2]])
def test_what_is_made_of_a_setting_of_the_tail_has_no_row(shape: list[int]) -> None:
    """Boxes are divided by a scale, whose first size is no batch: images come with a free one."""
    model = finished_detector("N")
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    gather.output[0] = "unscaled"
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, shape))
    model.graph.node.append(helper.make_node("Concat", ["scale", "scale"], ["scales"], axis=-1))
    model.graph.node.append(helper.make_node("Div", ["unscaled", "scales"], ["found_boxes"]))
    front, tail = cut_off(model)
    assert tail is not None
    assert [value.name for value in front.graph.input] == ["images"]
    assert [value.name for value in tail.behind(front).graph.input] == ["images", "scale"]


def test_names_of_the_tail_give_way() -> None:
    model = finished_detector("N")
    front, tail = cut_off(model)
    assert tail is not None
    front.graph.initializer.append(numpy_helper.from_array(np.float32([9]), "overlap"))
    front.graph.node[0].name = "NonMaxSuppression_chosen"
    wanted, found = run(model), run(tail.behind(front))
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
    front.graph.initializer.append(numpy_helper.from_array(np.float32([9]), "found_scores"))
    with pytest.raises(ExportError, match="output 'found_scores' has the name of a tensor that quantization adds"):
        tail.behind(front)


def test_nodes_that_both_sides_need_are_there_twice() -> None:
    """A Squeeze that the tail reads and an output with rows, too."""
    model = ends(finished_detector("N"), ("again", ["N", 16, 4]))
    model.graph.node.append(helper.make_node("Unsqueeze", ["flat_boxes", "zero"], ["again"]))
    front, tail = cut_off(model)
    assert tail is not None
    whole = tail.behind(front)
    assert sum(node.op_type == "Squeeze" and node.input[0] == "boxes" for node in whole.graph.node) == 2
    wanted, found = run(model), run(whole)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_a_loop_with_it_inside_counts() -> None:
    """Exporters put NonMaxSuppression into If where nothing may be found."""
    model = finished_detector("N")
    chosen = next(node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    position = list(model.graph.node).index(chosen)
    branch = helper.make_graph([chosen], "then", [], [helper.make_tensor_value_info("chosen", TensorProto.INT64, None)])
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["nothing"], value=numpy_helper.from_array(np.zeros((0, 3), np.int64)))],
        "else",
        [],
        [helper.make_tensor_value_info("nothing", TensorProto.INT64, None)],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.remove(chosen)
    branched = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=other, name="maybe")
    model.graph.node.insert(position, branched)
    front, tail = cut_off(model)
    assert tail is not None
    assert {value.name for value in front.graph.output} == {"boxes", "by_class"}
    wanted, found = run(model), run(tail.behind(front))
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[1]", '{"node": 3, "at": []}', '{"node": "n"}', "[" * 100_000], ids=range(6)
)
def test_metadata_of_no_sense_tell_nothing(text: str) -> None:
    assert told_cut({"mrecg_onnx.cut": text}) == ""


def test_layers_behind_the_cut_are_counted_and_tensors_of_which_sizes_are_read_are_not_named() -> None:
    """A second stage: what was found is looked at again, by a layer of 4 x 5; anchors are made from the size of a map."""
    model = finished_detector("N")
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.ones((4, 5), np.float32), "again"))
    graph.node.extend(
        [
            helper.make_node("Shape", ["features"], ["dims"], start=2, end=3),
            helper.make_node("Cast", ["dims"], ["cells_a_side"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["found_boxes", "again"], ["looked_at"]),
            helper.make_node("Mul", ["looked_at", "cells_a_side"], ["judged"]),
        ]
    )
    front, tail = cut_off(ends(model, ("judged", ["K", 5])))
    assert tail is not None
    assert {value.name for value in tail.model.graph.input} == {"features", "boxes", "by_class"}
    told = told_cut({entry.key: entry.value for entry in front.metadata_props})
    assert told.startswith("at 'boxes', 'by_class': what comes from ")
    assert "(1 layer with 20 parameters) stays as it was, in float" in told


def test_sizes_that_are_known_are_constants_in_the_tail() -> None:
    """Anchors laid over a map of a fixed size: the map is no place to cut at, where it would be written in float."""
    model = finished_detector(1)
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["features"], ["dims"], start=2),
            helper.make_node("Cast", ["dims"], ["cells_a_side"], to=TensorProto.FLOAT),
            helper.make_node("Size", ["features"], ["all"]),
            helper.make_node("Cast", ["all"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["cells_a_side", "numbers_"], ["both"], axis=0),
            helper.make_node("Mul", ["found_scores_", "both"], ["judged"]),
        ]
    )
    model.graph.node.insert(len(model.graph.node) - 2, helper.make_node("Reshape", ["numbers", "one"], ["numbers_"]))
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("Reshape", ["found_scores", "column"], ["found_scores_"])
    )
    for name, value in (("one", [1]), ("column", [-1, 1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    front, tail = cut_off(ends(model, ("judged", ["K", 3])))
    assert tail is not None
    assert [value.name for value in front.graph.output] == ["boxes", "by_class"]
    again = run(tail.behind(front))["judged"]
    assert np.array_equal(run(model)["judged"], again)
    assert (again[0] / again[0, 2] * 64).tolist() == pytest.approx([4, 4, 64])


def test_what_only_a_branch_in_the_tail_reads_is_not_in_front() -> None:
    """An If keeps what its branches read; removed, it let nodes in front of it stay, which the front was run with."""
    model = finished_detector()
    branch = onnx.parser.parse_graph("branch () => (float[1, 3] b) { b = Identity(weighed) }")
    branch.output[0].CopyFrom(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    other = onnx.GraphProto()
    other.CopyFrom(branch)
    other.node[0].output[0] = other.output[0].name = "c"
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["found_scores"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["found_scores", "sum"], ["weighed"]),
            helper.make_node("Cast", ["sum"], ["some"], to=TensorProto.BOOL),
            helper.make_node("If", ["some"], ["judged"], then_branch=branch, else_branch=other),
        ]
    )
    front, tail = cut_off(ends(model, ("judged", ["K"])))
    assert tail is not None
    assert not {"NonMaxSuppression", "If", "Mul"} & {node.op_type for node in front.graph.node}
    assert np.array_equal(run(model)["judged"], run(tail.behind(front))["judged"])


@pytest.mark.parametrize("free", [False, True])
def test_an_image_without_a_batch_is_told(free: bool) -> None:
    model = listed_detector(batch=False)
    if free:
        for axis, name in ((1, "H"), (2, "W")):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    sizes = "3, H, W" if free else "3, 32, 32"
    with pytest.raises(ModelError, match=re.escape(f"input 'images' [{sizes}] is one image without a batch")) as caught:
        load_planned(model, Settings())
    assert f"[1, {sizes}]" in str(caught.value)
    load_planned(listed_detector(), Settings())
