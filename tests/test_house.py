"""The order of the house: what imports what, what a room's door says, and how large a file may get."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import types
from pathlib import Path

import pytest
from draw_architecture import DRAWING, PACKAGE, ROOT, House, draw, floors_of, import_graph, install, read_house, reduced
from helpers.house import beside_the_door, by_the_roof, by_their_own_door, lint, names_taken, stub_names

import mrecg_onnx
from mrecg_onnx.converters import metadata_keys

HALL = ROOT / PACKAGE
ROOMS = sorted(path.parent.name for path in HALL.glob("*/__init__.py"))
#: Rooms with a stub; ``commands`` hands out ``main`` alone, and imports what it needs for that at once.
DOORS = sorted(path.parent.name for path in HALL.glob("*/__init__.pyi"))
PUBLIC = [
    "Benchmark",
    "BitRule",
    "Comparison",
    "Conversion",
    "Estimate",
    "FinishedFile",
    "Inspection",
    "LiteRTFile",
    "MeanIoU",
    "Metric",
    "MrecgError",
    "Preprocess",
    "Progress",
    "QuantizationResult",
    "Ranking",
    "Samples",
    "Settings",
    "ValidationResult",
    "benchmark",
    "compare",
    "convert",
    "doctor",
    "estimate",
    "inspect",
    "inspect_result",
    "mean_average_precision",
    "quantize",
    "report",
    "runtimes",
    "sensitivity",
    "to_litert",
    "validate",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def rebuilt(tmp_path: Path) -> Path:
    """The house, to be spoilt."""
    return install(tmp_path)


def test_imports_run_downward_and_in_no_circle(installed: Path):
    done = lint(installed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "from mrecg_onnx.learning import Checkpoint",
        "def late():\n    from mrecg_onnx.learning import Checkpoint",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mrecg_onnx.learning import Checkpoint",
        "import mrecg_onnx.quantization",
    ],
    ids=["plain", "in a function", "for types", "a file of the hall"],
)
def test_an_arrow_that_climbs_is_found(rebuilt: Path, line: str):
    (rebuilt / PACKAGE / "data" / "added.py").write_text(line + "\n")
    done = lint(rebuilt)
    assert done.returncode == 1
    assert re.search(r"Imports run downward.* BROKEN", done.stdout)


def test_an_arrow_out_of_the_ground_floor_is_found(rebuilt: Path):
    (rebuilt / PACKAGE / "converters" / "passes" / "added.py").write_text("from mrecg_onnx.methods import METHODS\n")
    assert re.search(r"Imports run downward.* BROKEN", lint(rebuilt).stdout)


def test_an_arrow_between_rooms_of_one_floor_is_found(rebuilt: Path):
    (rebuilt / PACKAGE / "validating" / "added.py").write_text("from mrecg_onnx.checking import verify\n")
    assert re.search(r"Imports run downward.* BROKEN", lint(rebuilt).stdout)


def test_a_room_that_no_contract_knows_is_found(rebuilt: Path):
    (rebuilt / PACKAGE / "attic").mkdir()
    (rebuilt / PACKAGE / "attic" / "__init__.py").touch()
    done = lint(rebuilt)
    assert done.returncode == 1
    assert "attic" in done.stdout


@pytest.mark.parametrize("room", ["data", "converters/passes"])
def test_a_circle_inside_a_room_is_found(rebuilt: Path, room: str):
    folder, name = rebuilt / PACKAGE / room, f"{PACKAGE}.{room.replace('/', '.')}"
    for one, other in (("first", "second"), ("second", "third"), ("third", "first")):
        (folder / f"{one}.py").write_text(f"from {name} import {other}\n")
    done = lint(rebuilt)
    assert done.returncode == 1
    assert re.search(r"No circle.* BROKEN", done.stdout)
    assert f"No cycles are allowed in {name}." in done.stdout


def test_rooms_are_entered_by_the_door(installed: Path):
    graph = import_graph(installed)
    assert f"{PACKAGE}.converters.errors" in graph.modules
    assert beside_the_door(graph) == []
    assert by_their_own_door(graph) == []
    assert by_the_roof(installed) == []


def test_an_entrance_beside_the_door_is_found(rebuilt: Path):
    hall = rebuilt / PACKAGE
    (hall / "data" / "added.py").write_text("from mrecg_onnx.data import Preprocess\n")
    (hall / "learning" / "added.py").write_text(
        "from mrecg_onnx.converters.errors import ModelError\n"
        "from mrecg_onnx.learning import prefix\n"
        "from mrecg_onnx.data import added\n"
    )
    (hall / "widths" / "added.py").write_text(
        "import mrecg_onnx\nfrom mrecg_onnx import Settings, __version__\nmrecg_onnx.quantize\n"
    )
    graph = import_graph(rebuilt)
    assert beside_the_door(graph) == [("mrecg_onnx.learning.added", "mrecg_onnx.data.added")]
    assert by_their_own_door(graph) == [("mrecg_onnx.data.added", "mrecg_onnx.data")]
    assert sorted(by_the_roof(rebuilt)) == [("widths/added.py", 2, "Settings"), ("widths/added.py", 3, "quantize")]


def test_few_files_lie_in_the_hall():
    assert len([path for path in HALL.iterdir() if path.is_file() and path.suffix == ".py"]) <= 10


def test_no_file_is_long():
    files = [*HALL.rglob("*.py"), *(ROOT / "converters").rglob("*.py")]
    assert [path.relative_to(ROOT).as_posix() for path in sorted(files) if _lines(path) > 450] == []


def test_the_main_job_is_a_page(installed: Path):
    assert _lines(HALL / "quantization.py") <= 150
    assert len(import_graph(installed).find_modules_directly_imported_by(f"{PACKAGE}.quantization")) <= 15


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_keys_of_a_files_metadata_stand_in_one_place():
    keys = {getattr(metadata_keys, name) for name in metadata_keys.__all__}
    files = [*HALL.rglob("*.py"), *(ROOT / "converters").rglob("*.py")]
    holding = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in keys
    }
    assert holding == {"converters/metadata_keys.py"}
    assert len(keys) == len(metadata_keys.__all__)


#: What writing a file whole takes: a name of its own, all of it on the disk, and another name.
_ATOMIC = {"fsync", "mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory", "rename", "renames", "replace"}


def _takes_a_place(node: ast.AST) -> bool:
    """Whether a call is one of those; ``replace`` of texts has two arguments, that of paths one."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    system = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "os"
    return name in _ATOMIC and (name != "replace" or (not node.keywords and (system or len(node.args) == 1)))


def test_files_take_their_places_in_one_file():
    files = [*HALL.rglob("*.py"), *(ROOT / "converters").rglob("*.py")]
    doing = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if any(map(_takes_a_place, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    }
    # save.py gives the file of tensors the name of its content, in the folder that files.py made for it.
    assert doing == {"converters/files.py", "converters/save.py"}
    assert _takes_a_place(ast.parse("os.replace(a, b)", mode="eval").body)
    assert _takes_a_place(ast.parse("a.replace(b)", mode="eval").body)
    assert not _takes_a_place(ast.parse("'a'.replace('b', 'c')", mode="eval").body)


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_is_for(room: str):
    door = importlib.import_module(f"{PACKAGE}.{room}")
    summary, _, paragraph = (door.__doc__ or "").partition("\n\n")
    assert summary.endswith((".", "?"))
    assert len(paragraph.split()) >= 10


def test_each_room_has_a_door():
    assert set(ROOMS) - set(DOORS) == {"commands"}


@pytest.mark.parametrize("room", DOORS)
def test_each_name_of_a_door_leads_somewhere(room: str):
    door = importlib.import_module(f"{PACKAGE}.{room}")
    # A file that is imported hides a public name that it shares.
    for file in pkgutil.iter_modules(door.__path__):
        importlib.import_module(f"{door.__name__}.{file.name}")
    names = stub_names(HALL / room / "__init__.pyi")
    assert sorted(door.__all__) == sorted(dir(door)) == sorted(names)
    assert [name for name in names if isinstance(getattr(door, name), types.ModuleType)] == []


@pytest.mark.parametrize("room", DOORS)
def test_each_name_of_a_door_is_asked_for(room: str):
    files = [
        path
        for folder in (HALL, ROOT / "benchmarks", ROOT / "samples")
        for path in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]
        if HALL / room not in path.parents
    ]
    unused = set(stub_names(HALL / room / "__init__.pyi")) - names_taken(files, room)
    told = {
        name
        for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *files]
        for name in re.findall(rf"`~?{PACKAGE}\.{room}\.(\w+)`", path.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert sorted(unused - told - set(re.findall(r"`(\w+)`", page))) == []


@pytest.mark.parametrize("room", DOORS)
def test_nobody_asks_a_door_for_what_it_has_not(room: str):
    folders = (HALL, ROOT / "converters", ROOT / "benchmarks", ROOT / "samples", ROOT / "tests", ROOT / "docs")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    inside = {path.stem for path in (HALL / room).glob("*.py")}
    assert names_taken(files, room) - inside - set(stub_names(HALL / room / "__init__.pyi")) == set()


def test_the_package_shows_its_public_names():
    assert dir(mrecg_onnx) == PUBLIC
    assert sorted(mrecg_onnx.__all__) == PUBLIC
    assert [name for name in PUBLIC if isinstance(getattr(mrecg_onnx, name), types.ModuleType)] == []


def test_the_drawing_shows_what_the_files_say(installed: Path):
    drawn = draw(read_house(installed))
    assert DRAWING.read_bytes().decode() == drawn, "run python docs/draw_architecture.py"


def test_the_drawing_changes_with_an_arrow(rebuilt: Path):
    (rebuilt / PACKAGE / "machine" / "added.py").write_text("from mrecg_onnx.targets import Target\n")
    house = read_house(rebuilt)
    assert ("machine", "targets") in house.arrows
    assert DRAWING.read_bytes().decode() != draw(house)


def test_the_page_of_the_house_names_what_there_is():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in (HALL, ROOT / "converters")
        for path in folder.rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    )
    quoted = set(re.findall(r"`([^`\n]+)`", page))
    paths = {text for text in quoted if re.fullmatch(r"[\w./*]+(/|\.(py|pyi|md|txt|toml))|\.ci/\w+", text)}
    assert {"quantizers/ranges.py", "targets/rules/*.toml", "pyproject.toml", "converters/ops/"} <= paths
    bases = (ROOT, HALL, ROOT / "tests" / "converters" / "conformance")
    assert [path for path in sorted(paths) if not any(list(base.glob(path)) for base in bases)] == []
    names = {text for text in quoted if re.fullmatch(r"[A-Za-z_]\w+", text)}
    assert {"METHODS", "RANGES", "activation_grids"} <= names
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", sources)] == []
    for name, path in re.findall(r"`(\w+)` \(`([\w/]+\.py)`\)", page):
        assert re.search(rf"\b{name}\b", (HALL / path).read_text(encoding="utf-8")), (name, path)


def test_the_layout_names_each_room():
    layout = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Layout")[1].split("## ")[0]
    rooms = "\n".join(line for line in layout.splitlines() if line.startswith("      "))
    assert set(re.findall(r"\b(\w+)/", rooms)) == set(ROOMS)
    assert "docs/architecture.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def _house(*arrows: str) -> House:
    pairs = frozenset((arrow[0], arrow[1]) for arrow in arrows)
    return House({room: f"Room {room}." for pair in pairs for room in pair}, frozenset(), pairs)


def test_rooms_stand_above_what_they_import():
    graph = reduced(_house("ab", "bc", "ac", "cd", "ad", "be"))
    assert sorted(graph.edges) == [("a", "b"), ("b", "c"), ("b", "e"), ("c", "d")]
    assert floors_of(graph) == {"a": 3, "b": 2, "c": 1, "d": 0, "e": 1}


def test_a_circle_has_no_floors():
    with pytest.raises(SystemExit, match=r"circle: .* break it first"):
        draw(_house("ab", "bc", "ca"))
