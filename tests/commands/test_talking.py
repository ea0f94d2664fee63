"""How much a command says, where to, and what it does not write over."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock, patch

import numpy as np
import onnx
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from helpers.command_line import fails, run, works
from helpers.detectors import segmenter
from helpers.targets import SAMPLES, on_sample

from mrecg_onnx import Settings, __version__
from mrecg_onnx.commands import main
from mrecg_onnx.commands._names import Names
from mrecg_onnx.commands._summary import _remedies
from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.files import claimed
from mrecg_onnx.converters.module_names import module_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

NEAREST = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--samples", "8", "--threads", "1")


def plainly(*arguments: object, columns: str | None = None) -> Result:
    """Without the details that :func:`works` asks for."""
    result = CliRunner().invoke(main, list(map(str, arguments)), env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output
    return result


def test_a_summary_fits_a_screen_and_details_are_there_when_asked_for(here: Path) -> None:
    short = plainly(
        *NEAREST, "--exclude", "conv[34]", "--bits", "conv1=W8A8", "--wbits", "2", "--abits", "2", columns="80"
    )
    lines = short.stdout.splitlines()
    assert lines[-1].startswith("Next: mrecg-onnx validate model.onnx model_nearest_w2a2.onnx --data")
    assert sum(-(-len(line) // 80) for line in lines) <= 24
    for text in (
        "model_nearest_w2a2.onnx, ",
        "on calibration images: ",
        "--exclude 'conv[34]' matched 2: conv3, conv4",
        "--bits 'conv1' matched 1: conv1",
        "layers run on integer kernels",
    ):
        assert text in short.stdout
    assert "parity" not in short.stdout
    long = plainly(*NEAREST, "-v", "--force", "--exclude", "conv[34]", "--wbits", "2", "--abits", "2")
    assert "parity" in long.stdout


def test_the_next_command_runs_as_it_is_printed(here: Path) -> None:
    (here / "model.onnx").rename(here / "-m m.onnx")
    for options, commands in (((), 1), (("--target", "qonnx", "--container", "qonnx"), 2)):
        said = plainly("quantize", "./-m m.onnx", *NEAREST[2:], *options, "--force").stdout
        (told,) = (line.removeprefix("Next: ") for line in said.splitlines() if line.startswith("Next: "))
        parts = [shlex.split(part) for part in told.split(" && ")]
        assert len(parts) == commands
        for part in parts:
            assert "./-m m_nearest_w4a4.onnx" in part or "./-m m_nearest_w4a4_int8.onnx" in part
            stands_for = {"LABELLED_IMAGES/": "images", "MODULE:FUNCTION": "top-1"}
            plainly(*(stands_for.get(word, word) for word in part[1:]))


def test_what_is_better_on_onnx_runtime_is_said_once_and_only_there(here: Path) -> None:
    hint = "--abits 8 takes the same size and time or less"
    assert plainly(*NEAREST).stdout.count(hint) == 1
    for other in (("--abits", "8"), ("--target", "qonnx"), ("-q",), ("--json", "-")):
        found = plainly(*NEAREST, "--force", *other)
        assert hint not in found.stdout + found.stderr


def test_the_page_is_named_in_the_column_of_the_others(here: Path) -> None:
    pytest.importorskip("jinja2")
    lines = plainly(*NEAREST, "--report", "page.html").stdout.splitlines()
    (page,) = (line for line in lines if line.startswith("page "))
    (time,) = (line for line in lines if line.startswith("time "))
    assert page.index("page.html") == len(time) - len(time[len("time") :].lstrip())


def test_what_was_found_is_shown_where_its_page_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the end of an hour: the file is there, and how to make the page later is said."""
    full = Mock(side_effect=ExportError("page.html: cannot be written: No space left on device"))
    monkeypatch.setattr("mrecg_onnx.reporting.report_quantization", full)
    result = run(*NEAREST, "-o", "q.onnx", "--report", "page.html")
    assert result.exit_code == 1
    assert result.stdout.startswith("output")
    assert "page.html" not in result.stdout
    assert "No space left on device; q.onnx is written, and `mrecg-onnx report q.onnx -o PAGE" in result.stderr
    assert Path("q.onnx").is_file()
    monkeypatch.setattr("mrecg_onnx.reporting.report_validation", full)
    result = run("validate", "model.onnx", "q.onnx", "--data", "images", "--repeats", "0", "--report", "page.html")
    assert result.exit_code == 1
    assert "agreement" in result.stdout
    assert result.stderr.rstrip().endswith("No space left on device")


def test_much_loss_says_what_to_do_and_little_does_not(here: Path) -> None:
    from mrecg_onnx.commands._summary import WORDS

    assert "sensitivity` names" in plainly(*NEAREST, "--wbits", "2", "--abits", "2", "--range", "minmax").stdout
    found = plainly(*NEAREST, "--wbits", "8", "--abits", "8").stdout
    assert any(f"{word} on calibration images" in found for _, _, word in WORDS[:3])
    assert "sensitivity` names" not in found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(wbits=4, abits=4), "--abits 8, a higher --wbits or more --iters"),
        (Settings(wbits=4, abits=8), "a higher --wbits or more --iters"),
        (Settings(wbits=8, abits=8), "more --iters"),
        (Settings(wbits=8, abits=8, method="nearest"), "a method that learns (--preset fast)"),
    ],
)
def test_what_a_run_has_already_is_no_advice(settings: Settings, said: str) -> None:
    assert _remedies(settings) == said


def test_equal_predictions_are_told_where_there_are_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = plainly(*on_sample("--json", "r.json", "--wbits", "4", "--abits", "4", "-o", "q.onnx"))
    share = json.loads((tmp_path / "r.json").read_text())["verification"]["agreement_float"]
    assert 0.7 < share < 1
    assert f"{share:.2%} of 64 calibration images get FP32's prediction" in result.stdout


def test_quiet_says_errors_and_nothing_else(here: Path) -> None:
    result = plainly(*NEAREST, "-q", "--iters", "3")
    assert (result.stdout, result.stderr) == ("", "")
    assert (here / "model_nearest_w4a4.onnx").is_file()
    result = plainly("validate", "model.onnx", "model_nearest_w4a4.onnx", "--data", "images", "--repeats", "0", "-q")
    assert (result.stdout, result.stderr) == ("", "")
    failed = run(*NEAREST[:2], "--calib", "nowhere", "-q")
    assert failed.exit_code == 2
    assert failed.stderr.startswith("Error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_json_to_stdout_is_alone_there(here: Path, quiet: tuple[str, ...]) -> None:
    report = json.loads(plainly(*NEAREST, "--json", "-", *quiet).stdout)
    assert report["output"] == "model_nearest_w4a4.onnx"
    assert report["verification"]["agreement_float"] is None  # nothing but noise comes out: no class scores
    plan = json.loads(plainly("inspect", "model.onnx", "--json", "-", *quiet).stdout)
    assert plan["plan"]["layers"][0]["name"] == "stem"
    assert not (here / "-").exists()


def test_results_are_not_written_over_unasked(here: Path) -> None:
    works(*NEAREST)
    before = (here / "model_nearest_w4a4.onnx").read_bytes()
    fails(*NEAREST, "--seed", "5", code=2, says=("model_nearest_w4a4.onnx is there already", "--force", "--output"))
    fails(*NEAREST, "-o", "model.onnx", "--force", code=2, says=("is the model itself",))
    assert (here / "model_nearest_w4a4.onnx").read_bytes() == before
    works(*NEAREST, "--wbits", "2", "-o", "model_nearest_w4a4.onnx", "--force")
    assert (here / "model_nearest_w4a4.onnx").read_bytes() != before
    convert = ("convert", "model_nearest_w4a4.onnx", "--container", "packed")
    works(*convert)
    fails(*convert, code=2, says=("model_nearest_w4a4_packed.onnx is there already", "--force"))
    works(*convert, "--force")


def test_two_runs_that_make_one_file_do_not_both_make_it(here: Path) -> None:
    """The second one is refused, also where it began while nothing was there, and loads longer than the first one takes."""
    command = (*NEAREST, "-o", "q.onnx", "--force")
    with claimed("q.onnx", ahead=True):
        works(*command)  # of this thread: a command claims what the call behind it writes
        with (
            ThreadPoolExecutor(1) as other,
            pytest.raises(ExportError, match=f"process {os.getpid()} is making this file"),
        ):
            other.submit(claimed("q.onnx").__enter__).result()
    begun = Path("late.onnx")
    with patch("mrecg_onnx.commands.quantize.claimed", lambda *_, **__: made(begun)):
        result = run(*NEAREST, "-o", begun)
    assert result.exit_code == 2
    assert "late.onnx is there already: --force" in result.stderr
    assert begun.read_bytes() == b"another run's"


@contextmanager
def made(path: Path) -> Iterator[None]:
    """Another run ends between the first look and the claim."""
    path.write_bytes(b"another run's")
    yield


def test_the_version_has_a_short_option() -> None:
    assert plainly("-V").stdout == plainly("--version").stdout == f"mrecg-onnx, version {__version__}\n"


# --- names that an exporter made up ----------------------------------------------------------------------------------


def exported() -> onnx.ModelProto:
    """Digits' sample with nodes named and described as torch's exporter does it."""
    model = onnx.load(SAMPLES / "digits.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, node in enumerate(n for n in model.graph.node if n.op_type == "Conv"):
        node.name = f"node_conv2d_{number}"
        weights[node.input[1]].name = f"onnx::Conv_{number}"
        node.input[1] = f"onnx::Conv_{number}"
        scopes = f"['', 'layer{number}', 'layer{number}.0', 'layer{number}.0.conv', 'conv2d_{number}']"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    return model


def test_modules_are_shown_beside_made_up_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(exported(), "new.onnx")
    assert "node_conv2d_1 (layer1.0.conv)" in works("inspect", "new.onnx").stdout
    sample = list(on_sample("--exclude", "node_conv2d_1$"))
    sample[sample.index(str(SAMPLES / "digits.onnx"))] = "new.onnx"
    said = works(*sample).stdout
    assert "--exclude 'node_conv2d_1$' matched 1: node_conv2d_1 (layer1.0.conv)" in said
    assert "in float: node_conv2d_1 (layer1.0.conv)" in said
    names = Names(tmp_path / "new.onnx")
    assert names("node_conv2d_0 + node_conv2d_2") == "node_conv2d_0 (layer0.0.conv) + node_conv2d_2 (layer2.0.conv)"
    assert names("nobody") == "nobody"
    assert names("node_conv2d_0_narrow") == "node_conv2d_0_narrow (layer0.0.conv)"  # a copy of fewer bits


@pytest.mark.slow
def test_modules_are_shown_of_a_result_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(exported(), "new.onnx")
    images, data = ("--calib", SAMPLES / "calib"), ("--data", SAMPLES / "val", "--limit", 16)
    works("quantize", "new.onnx", *images, "--iters", 2, "--threads", 1, "-o", "q.onnx", "--report", "page.html")
    shown = "node_conv2d_1 (layer1.0.conv)"
    told = works("inspect", "q.onnx").stdout
    layers, tensors, units = (
        told.partition(word)[2] for word in ("weighted layers", "activation quantizers", " units")
    )
    assert all(shown in part for part in (layers, units))
    assert "layer1.0.conv)" in tensors
    assert (
        shown in works("validate", "new.onnx", "q.onnx", *data, "--repeats", 0, "--layers", "--report", "v.html").stdout
    )
    works("report", "q.onnx", "-o", "alone.html")
    works("report", "q.onnx", "--against", "new.onnx", *data, "-o", "measured.html")
    works("sensitivity", "new.onnx", *images, "--method", "nearest", "--top", 1, "--report", "ranking.html")
    for name, times in {"page": 5, "v": 3, "alone": 2, "measured": 3, "ranking": 2}.items():
        page = (tmp_path / f"{name}.html").read_text().replace("<wbr>", "")
        assert page.count(shown) >= times, name
        assert 'title="node_conv2d_1"' not in page  # nowhere without its module
    # What another tool made anew has lost the notes: the float model has them.
    bare = onnx.load("q.onnx")
    for node in bare.graph.node:
        del node.metadata_props[:]
    onnx.save(bare, "bare.onnx")
    works("report", "bare.onnx", "--against", "new.onnx", *data, "-o", "bare.html")
    assert shown in (tmp_path / "bare.html").read_text().replace("<wbr>", "")


def test_the_weight_of_a_result_names_the_module_where_the_float_models_does() -> None:
    node = onnx.helper.make_node("Conv", ["x", "codes"], ["y"], "node_Conv_1")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    assert module_names(model) == {}
    assert module_names(model, {"node_Conv_1": "layer1.conv.weight"})["node_Conv_1"] == "layer1.conv"


def test_the_weight_says_more_of_a_convolution_than_the_scopes_of_what_went_into_it() -> None:
    node = onnx.helper.make_node("Conv", ["x", "layer1.0.conv1.weight"], ["getitem"], "node_Conv_11")
    scopes = "['', 'layer1', 'layer1.0', 'layer1.0.bn', '_native_batch_norm_legit_no_training']"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    plain = onnx.helper.make_node("Relu", ["getitem"], ["/layer1/relu"], "/layer1/relu")
    odd = onnx.helper.make_node("Relu", ["getitem"], ["r"], "r")
    odd.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="[" * 10_000)
    graph = onnx.helper.make_graph([node, plain, odd], "g", [], [])
    found = module_names(onnx.helper.make_model(graph))
    assert found == {"node_Conv_11": "layer1.0.conv1", "getitem": "layer1.0.conv1"}


def test_a_shell_completes_commands_options_and_words() -> None:
    def offered(words: str) -> list[str]:
        env = {**os.environ, "_MRECG_ONNX_COMPLETE": "bash_complete", "COMP_WORDS": words}
        env["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        call = "from mrecg_onnx.commands import main; main(prog_name='mrecg-onnx')"
        done = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    assert "plain,doctor" in offered("mrecg-onnx d")
    assert offered("mrecg-onnx quantize --met") == ["plain,--method", "plain,--metric"]
    assert offered("mrecg-onnx validate --metric m") == ["plain,mAP", "plain,mAP50", "plain,mIoU"]
    assert "plain,brecq" in offered("mrecg-onnx quantize --method b")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("convert --js", ["--json"]),
        ("quantize --calib z", ["zeroq"]),
        ("quantize --target o", ["ort", "openvino"]),
        ("quantize --target rules/", ["file rules/"]),
        ("quantize --labels ", ["file "]),
        ("quantize --labels n", ["none"]),
        ("validate --preprocess i", ["imagenet"]),
        ("quantize --finish ", ["auto", "off"]),
        ("quantize --scheme m", ["modcap"]),
        ("compare --methods nearest,br", ["nearest,brecq-paper", "nearest,brecq"]),
        ("benchmark --provider cuda,cu", []),
        ("validate --device q", ["qnn"]),
        ("runtimes --only openc", ["opencv"]),
    ],
)
def test_a_shell_completes_values(words: str, offered: list[str]) -> None:
    *before, begun = words.split(" ")
    found = ShellComplete(main, {}, "mrecg-onnx", "").get_completions(before, begun)
    assert [one.value if one.type == "plain" else f"{one.type} {one.value}" for one in found] == offered


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("quantize m.onnx --iter 3", "'--iter'; did you mean '--iters'? ('mrecg-onnx quantize --help'"),
        ("quantize m.onnx --cal x", "'--cal'; did you mean '--calib'?"),
        ("inspect --jsn x", "'--jsn'; did you mean '--json'?"),
        (
            "convert q.onnx --calib x",
            "No such option '--calib' here: it is an option of quantize, compare, inspect, sensitivity, runtimes (",
        ),
        ("quantize --qqqqqqqq x", "No such option '--qqqqqqqq' ('mrecg-onnx quantize --help'"),
        ("quantise", "No such command 'quantise'; did you mean 'quantize'?"),
        ("help quantise", "No such command 'quantise'; did you mean 'quantize'?"),
        ("val", "'val'; did you mean 'validate'?"),
        ("quantize", "Missing argument 'MODEL' ('mrecg-onnx quantize --help'"),
    ],
)
def test_what_is_misspelt_is_answered_with_what_was_meant(tmp_path: Path, words: str, says: str) -> None:
    assert says in run(*words.split(" ")).stderr


def test_help_is_a_word_too() -> None:
    assert plainly("help").stdout == plainly("--help").stdout
    assert plainly("help", "convert").stdout == plainly("convert", "--help").stdout


def test_patterns_that_matched_modules_say_which_nodes(here: Path) -> None:
    model = onnx.load(here / "model.onnx")
    names = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    onnx.save(model, here / "made_up.onnx")
    assert "conv3" in names
    said = plainly(
        *NEAREST[:1], "made_up.onnx", *NEAREST[2:], "--exclude", "conv3", "--bits", "fc=W2", columns="120"
    ).stdout
    assert re.search(r"--exclude 'conv3' matched 1: node_\d+ \(conv3\)", said)
    assert re.search(r"--bits 'fc' matched 1: node_\d+ \(fc\)", said)


def test_pixels_that_nobody_described_are_said_to_be_assumed(here: Path) -> None:
    assumed = "pixels    ImageNet's mean and deviation are assumed"
    assert assumed in plainly(*NEAREST, columns="120").stdout
    for stated in (("--mean", "0.5", "--std", "0.25"), ("--preprocess", "imagenet")):
        assert "are assumed" not in plainly(*NEAREST, "--force", *stated).stdout
    assert assumed in plainly(*NEAREST, "--force", "--crop", "16x16", columns="120").stdout


def test_the_next_command_names_the_data_that_were_given_or_what_stands_for_them(here: Path) -> None:
    def following(*more: str) -> str:
        return plainly(*NEAREST, "--force", "-o", "q.onnx", *more).stdout.splitlines()[-1]

    # Logits of a network that was never trained stand out nowhere: nothing says that they are classes.
    start, end = "Next: mrecg-onnx validate model.onnx q.onnx --data ", " --metric MODULE:FUNCTION"
    assert following() == start + "LABELLED_IMAGES/" + end
    np.savez(here / "arrays.npz", np.zeros((8, 3, 16, 16), np.float32))
    assert following("--calib", "arrays.npz") == start + "ARRAYS.npz" + end
    (here / "labels.csv").write_text(
        "".join(f"{p.relative_to(here / 'images')},1\n" for p in (here / "images").rglob("*.png"))
    )
    given = ("--data", "images", "--labels", "labels.csv")
    assert following(*given, "--max-drop", "99") == start + "images --labels labels.csv"


def test_half_precision_is_called_so(here: Path) -> None:
    model = onnx.load(here / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    onnx.save(model, here / "half.onnx")
    assert (Names(here / "model.onnx").precision(), Names(here / "half.onnx").precision()) == ("FP32", "FP16")


def test_where_no_class_scores_are_known_accuracy_is_measured_elsewhere(here: Path) -> None:
    said = "says nothing of accuracy: `mrecg-onnx validate` with labels or --metric does"
    onnx.save(segmenter(), here / "maps.onnx")
    maps = ("quantize", "maps.onnx", *NEAREST[2:], "--preprocess", "unit", "--resize", "32x32", "--crop", "32x32")
    assert said in plainly(*maps, "--wbits", "8", "--abits", "8").stdout
    assert said not in plainly(*on_sample("-o", "q.onnx")).stdout


def test_why_few_bits_are_no_smaller_file_is_said_where_packing_helps(here: Path) -> None:
    sample = (
        "quantize",
        SAMPLES / "digits_resnet8.onnx",
        "--calib",
        SAMPLES / "calib",
        *NEAREST[4:],
        "-o",
        "few.onnx",
        "--force",
    )
    few = ("--wbits", "2", "--abits", "8")
    said = re.findall("weights of 2 bits take 8 in the file; --container packed: (.+)", plainly(*sample, *few).stdout)
    packed = plainly(*sample, *few, "--container", "packed").stdout
    assert len(said) == 1
    assert f" {said[0]} against" in packed
    for other in (
        packed,
        plainly(*sample, "--wbits", "8", "--abits", "8").stdout,
        plainly(*sample, *few, "--target", "qnn").stdout,
    ):
        assert "take 8 in the file" not in other
