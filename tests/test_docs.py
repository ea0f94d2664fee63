"""What the pages say: commands run on the sample or at least parse, links lead somewhere, figures are those of the rows."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import draw_accuracy
import pytest
from helpers.command_line import works

import mrecg_onnx
from mrecg_onnx.commands import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "samples").glob("**/README.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
NAMES = {page.relative_to(ROOT).as_posix(): page for page in PAGES}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Options that pages mention of other programs.
FOREIGN = {
    "--borrow", "--keep", "--local", "--no-deps", "--override", "--python", "--slow", "--check", "--index-url",
    "--force-reinstall", "--size-threshold", "--nproc-per-node", "--no-python", "--standalone", "--build", "--again",
    "--draw", "--quick", "--modules", "--fold-constants", "--images", "--integer", "--input_size", "--nncf", "--data",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Commands of a fenced block: how they are run ("" not at all, "run", "slow"), and a module that they need."""

    commands: tuple[str, ...]
    run: str
    needs: str = ""


def blocks(page: Path) -> list[Block]:
    found = []
    for match in re.finditer(
        r"(?:<!-- (run|parse)(?:: ([\w ]+))? -->\n)?```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        kind, how, body = match[1] or "", match[2] or "", match[3]
        lines = tuple(
            line for line in body.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
        )
        needs = how.removeprefix("needs ") if how.startswith("needs ") else ""
        run = "" if kind != "run" else "slow" if how == "slow" else "run"
        found.append(Block(lines, run, needs))
    return found


RUN = [name for name, page in NAMES.items() if any(block.run == "run" for block in blocks(page))]
#: The pages of a first hour: plain pytest runs what they say, the slow tests the rest.
QUICK = {"README.md", "docs/tutorial.md"}
SLOW = [name for name, page in NAMES.items() if any(block.run == "slow" for block in blocks(page))]


def furnish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder what pages assume: the sample, and a model with images of one's own, which the sample stands for."""
    monkeypatch.chdir(folder)
    for name, path in {"samples": "", "imgs": "calib", "labelled": "val"}.items():
        (folder / name).symlink_to(ROOT / "samples" / path)
    shutil.copy(ROOT / "samples" / "digits.onnx", folder / "model.onnx")


def perform(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> int:
    """Run the commands of a page, one after the other, in a folder that has the sample; return how many."""
    furnish(folder, monkeypatch)
    count = 0
    for block in blocks(page):
        if not block.run or (block.run == "slow" and not slow) or (block.needs and find_spec(block.needs) is None):
            continue
        for line in block.commands:
            program, *arguments = shlex.split(line, comments=True)
            assert program == "mrecg-onnx", line
            if "--memory" in arguments:  # of a process, and this one holds what all tests before have left
                subprocess.run([sys.executable, "-m", "mrecg_onnx", *arguments], check=True, capture_output=True)
            else:
                works(*arguments)
            count += 1
    return count


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUN])
def test_the_commands_of_a_page_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert perform(NAMES[name], tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_slow_commands_of_a_page_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert perform(NAMES[name], tmp_path, monkeypatch, slow=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/reference/python.md"])
def test_the_python_of_a_page_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    furnish(tmp_path, monkeypatch)
    (code,) = PYTHON.findall(NAMES[name].read_text(encoding="utf-8"))
    exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize("name", NAMES)
def test_the_python_of_a_page_asks_for_what_there_is(name: str):
    for code in PYTHON.findall(NAMES[name].read_text(encoding="utf-8")):
        tree = ast.parse(code, name)
        asked = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mrecg_onnx"
        }
        assert asked <= {*dir(mrecg_onnx), "converters"}


def test_the_reference_reads_without_the_site():
    """Every public name has prose of its own, whose arguments and attributes exist."""
    paragraphs = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8").split("\n\n")
    told = {match[1]: text for text in paragraphs if (match := re.match(r"`(\w+)[(`]", text))}
    assert set(mrecg_onnx.__all__) <= set(told)
    for name in mrecg_onnx.__all__:
        thing = getattr(mrecg_onnx, name)
        (call,) = re.findall(rf"^`{name}(?:\((.*?)\))?`", told[name]) or [""]
        if call:
            parameters = inspect.signature(thing).parameters
            said = {part.split("=")[0].strip() for part in re.sub(r'"[^"]*"|\(\)', "", call).split(",")} - {"*", "..."}
            assert said <= {*parameters}, name
        fields = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
        assert set(re.findall(r"`\.(\w+)", told[name])) <= {*fields, *dir(thing)}, name


def test_the_pages_that_teach_are_run():
    assert {"docs/tutorial.md", "docs/howto/own_model.md", "docs/howto/deploy.md", "docs/howto/accuracy.md"} <= set(RUN)
    assert {"README.md", "docs/tutorial.md"} <= set(SLOW)


def said(text: str) -> Iterator[list[str]]:
    """Arguments of every call of the program in a text, placeholders without their brackets."""
    code = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    code += [
        line for body in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in body.splitlines()
    ]
    code += re.findall(r"`(mrecg-onnx [^`\n]+)`", text)
    for line in code:
        for part in re.split(r"&&|;|\$\(|\|\s", line):
            words = part.split("#")[0].replace("[", " ").replace("]", " ").split()
            if "mrecg-onnx" not in words or {"pip", "uv"} & set(words):
                continue
            after = words[words.index("mrecg-onnx") + 1 :]
            if after and after[0] in main.commands:
                yield shlex.split(" ".join(after))


def parse(arguments: list[str]) -> None:
    """Let click read a call without making it; words of choices have to exist, where they are no placeholders."""
    command = main.commands[arguments[0]]
    with click.Context(command, info_name=arguments[0]) as context:
        given, left, _ = command.make_parser(context).parse_args(list(arguments[1:]))
        assert not left, left
        for parameter in command.get_params(context):
            values = given.get(parameter.name or "")
            if isinstance(parameter.type, click.Choice) and isinstance(values, str) and re.fullmatch("[a-z-]+", values):
                parameter.type.convert(values, parameter, context)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_has_options_that_exist(name: str):
    for arguments in said(NAMES[name].read_text(encoding="utf-8")):
        try:
            parse(arguments)
        except click.ClickException as error:
            pytest.fail(f"{name}: mrecg-onnx {' '.join(arguments)}: {error.format_message()}")


def test_a_command_with_a_wrong_option_or_choice_is_found():
    (call,) = said("```sh\nmrecg-onnx quantize m.onnx --calb imgs/\n```\n")
    with pytest.raises(click.NoSuchOption):
        parse(call)
    (call,) = said("    mrecg-onnx quantize m.onnx --calib imgs/ --method guessing\n")
    with pytest.raises(click.BadParameter):
        parse(call)


@pytest.mark.parametrize("name", NAMES)
def test_options_that_a_page_mentions_exist(name: str):
    options = {text for command in main.commands.values() for parameter in command.params for text in parameter.opts}
    options |= {
        text for command in main.commands.values() for parameter in command.params for text in parameter.secondary_opts
    }
    options |= {"--help", "--version"}
    spans = re.findall(r"`(--[a-z][^`\n]*)`", NAMES[name].read_text(encoding="utf-8"))
    mentioned = {word.split("=")[0] for span in spans for word in re.findall(r"(?:^|\s)(--[a-z][a-z0-9_-]*)", span)}
    assert sorted(mentioned - options - FOREIGN) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str):
    page = NAMES[name]
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    here = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in here if target and not (page.parent / target).exists()] == []


def test_the_readme_is_short_and_leads_everywhere():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert sum(line.startswith("    ") and "pip install -c constraints.txt" in line for line in lines) == 2


def test_the_menu_of_the_site_has_every_page():
    menu = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(menu) == sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents
    )


@pytest.mark.parametrize("ground", ["light", "dark"])
def test_the_figure_shows_the_rows(ground: str):
    drawn = (ROOT / "docs" / f"accuracy_{ground}.svg").read_text(encoding="utf-8")
    assert f"<!-- {draw_accuracy.figures()} -->" in drawn, "run python docs/draw_accuracy.py"
