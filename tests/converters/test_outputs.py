"""Where a result may be written: by one run at a time, and where a link leads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mrecg_onnx import Settings, quantize
from mrecg_onnx.commands._files import write_text
from mrecg_onnx.converters import check_writable, save_model
from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.files import claimed, followed
from mrecg_onnx.converters.owners import Owner


def model() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- one run at a time -----------------------------------------------------------------------------------------------


def test_what_one_run_makes_no_other_does(tmp_path):
    out = tmp_path / "mobilenetv2_imagenet_mrecg_w4a4.onnx"
    with claimed(out):
        with pytest.raises(ExportError) as raised, claimed(out):
            pass
        with claimed(out.with_name("mobilenetv2_imagenet_mrecg_w2a4.onnx")):  # the same beginning
            save_model(model(), out)
    assert (
        str(raised.value)
        == f"{out}: process {os.getpid()} is making this file: wait for that run, or choose another path"
    )
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with claimed(out):
        pass


def test_a_link_to_it_is_the_same_file(tmp_path):
    (tmp_path / "link.onnx").symlink_to("out.onnx")
    refused = pytest.raises(ExportError, match=r"link\.onnx: process \d+ is making")
    with claimed(tmp_path / "out.onnx"), refused, claimed(tmp_path / "link.onnx"):
        pass


def test_a_second_run_ends_before_it_begins(tmp_path):
    with claimed(tmp_path / "out.onnx"), pytest.raises(ExportError, match="is making this file"):
        quantize(tmp_path / "not even there.onnx", tmp_path, Settings(), output=tmp_path / "out.onnx")


@pytest.mark.parametrize("again", range(5))
def test_of_those_that_come_at_once_one_goes_on(tmp_path, again):
    count, went, refused = 8, [], []
    start, ended = threading.Barrier(count), threading.Barrier(count)

    def run() -> None:
        start.wait()
        try:
            with claimed(tmp_path / "out.onnx"):
                went.append(1)
                ended.wait()
        except ExportError:
            refused.append(1)
            ended.wait()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(went), len(refused)) == (1, count - 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "owner",
    [Owner(Owner.this().place, 2**22 + 1, 5), Owner("0" * 8, os.getpid(), 5)],
    ids=["dead", "another machine's"],
)
def test_nobody_is_kept_out_by_who_is_not_there(tmp_path, owner):
    """Of another machine, or a container that was killed, nobody can say whether it is there."""
    with claimed(tmp_path / "out.onnx"):
        (mine,) = tmp_path.iterdir()
        name = mine.name.partition(".mrecg-")[0]
    (tmp_path / f"{name}.mrecg-{owner.place}-{owner.pid}-{owner.started}-abcd1234").mkdir()
    with claimed(tmp_path / "out.onnx"):
        pass


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    with pytest.raises(ExportError, match="there is no folder"), claimed(tmp_path / "none" / "out.onnx"):
        pass


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
@pytest.mark.parametrize("what", ["model", "text"])
def test_a_result_is_written_where_a_link_leads(tmp_path, there, what):
    (tmp_path / "else").mkdir()
    target, link = tmp_path / "else" / "target.onnx", tmp_path / "link.onnx"
    link.symlink_to("else/target.onnx")
    if there:
        target.write_bytes(b"old")
    check_writable(link)
    if what == "model":
        save_model(model(), link)
        assert onnx.load(target) == onnx.load(link) == model()
    else:
        write_text("text", link)
        assert target.read_text() == "text"
    assert link.readlink() == Path("else/target.onnx")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["else", "link.onnx", "target.onnx"]


def test_a_link_into_a_folder_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "link.onnx").symlink_to("none/target.onnx")
    with pytest.raises(ExportError, match=r"link\.onnx: there is no folder .*none"):
        check_writable(tmp_path / "link.onnx")
    assert followed(tmp_path / "plain.onnx") == tmp_path / "plain.onnx"
