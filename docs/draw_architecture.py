"""Draws docs/architecture.svg from the imports of the package.

    python docs/draw_architecture.py           writes the drawing
    python docs/draw_architecture.py --check   says whether it still shows what the files say (exit code 1 if not)

Rooms stand on floors, each above all that it imports. Arrows that a chain of others implies are left out (transitive reduction).
What a room is for is the first sentence of its docstring.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import grimp
import networkx as nx

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs" / "architecture.svg"
PACKAGE = "mrecg_onnx"
GROUND = "converters"

#: Sizes in pixels.
BOX, LINE, PAD, GAP, MARGIN = 236, 14, 10, 24, 24
#: Room between two floors for arrows, width of an arrow that passes a floor.
BETWEEN, LANE = 46, 14
CHARACTERS = 37


def install(folder: Path, root: Path = ROOT) -> Path:
    """Copies the package of the checkout ``root`` into ``folder`` as it is installed: with converters inside it."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / PACKAGE, folder / PACKAGE, ignore=without)
    shutil.copytree(root / GROUND, folder / PACKAGE / GROUND, ignore=without)
    return folder


@contextmanager
def _found_in(folder: Path) -> Iterator[None]:
    """Lets ``find_spec`` find the package in ``folder``, not the one that this process has imported."""
    imported = sys.modules.pop(PACKAGE, None)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if imported is not None:
            sys.modules[PACKAGE] = imported


def import_graph(folder: Path) -> grimp.ImportGraph:
    """Every import of the package in ``folder``; nothing of it is run."""
    with _found_in(folder):
        return grimp.build_graph(PACKAGE, cache_dir=None)


def room_of(module: str) -> str:
    """``mrecg_onnx.data.labels`` lies in ``data``; a file that lies in no room is its own, the package itself is ""."""
    return module.split(".")[1] if "." in module else ""


@dataclass(frozen=True)
class House:
    """Rooms and files of the hall by name, with what they are for; and who imports whom."""

    purposes: dict[str, str]
    files: frozenset[str]
    arrows: frozenset[tuple[str, str]]


def read_house(folder: Path) -> House:
    """What the files of the package in ``folder`` say."""
    hall = folder / PACKAGE
    doors = {path.parent.name: path for path in hall.glob("*/__init__.py")}
    files = {path.stem: path for path in hall.glob("*.py") if not path.stem.startswith("__")}
    purposes = {}
    for name, path in sorted({**doors, **files}.items()):
        says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        purposes[name] = " ".join(says.split("\n\n")[0].split())
    graph = import_graph(folder)
    pairs = {
        (room_of(importer), room_of(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    arrows = {(above, below) for above, below in pairs if above != below and {above, below} <= purposes.keys()}
    return House(purposes, frozenset(files), frozenset(arrows))


def reduced(house: House) -> nx.DiGraph:
    """The arrows that no chain of others implies.

    Raises:
        SystemExit: rooms import each other in a circle, which has no floors.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(sorted(house.purposes))
    graph.add_edges_from(sorted(house.arrows))
    if not nx.is_directed_acyclic_graph(graph):
        circle = [start for start, _ in nx.find_cycle(graph)]
        raise SystemExit(f"rooms import each other in a circle: {' -> '.join([*circle, circle[0]])}; break it first")
    short = nx.transitive_reduction(graph)
    return nx.DiGraph(sorted(short.edges)) if short.edges else short


def floors_of(graph: nx.DiGraph) -> dict[str, int]:
    """Floor of each room, the ground being 0: above all it imports, and as close below its importers as that allows."""
    upward = list(reversed(list(nx.lexicographical_topological_sort(graph))))
    floor: dict[str, int] = {}
    for room in upward:
        floor[room] = max((floor[below] + 1 for below in graph.successors(room)), default=0)
    for room in reversed(upward):
        if graph.in_degree(room) > graph.out_degree(room) and room != GROUND:
            floor[room] = min(floor[above] for above in graph.predecessors(room)) - 1
    return floor


@dataclass
class Place:
    """A room on its floor, or the point at which an arrow passes a floor (``room`` is "")."""

    room: str
    floor: int
    width: float
    lines: list[str] = field(default_factory=list)
    x: float = 0.0
    ups: list[Place] = field(default_factory=list)
    downs: list[Place] = field(default_factory=list)


def places_of(house: House) -> tuple[list[list[Place]], list[list[Place]]]:
    """Floors from the ground up, and arrows as the places they touch, from the importer down."""
    graph = reduced(house)
    floor = floors_of(graph)
    rooms = {
        room: Place(room, level, BOX, textwrap.wrap(house.purposes[room], CHARACTERS)) for room, level in floor.items()
    }
    floors: list[list[Place]] = [[] for _ in range(max(floor.values()) + 1)]
    for place in rooms.values():
        floors[place.floor].append(place)
    arrows = []
    for above, below in sorted(graph.edges):
        passed = [Place("", level, LANE) for level in range(floor[above] - 1, floor[below], -1)]
        for place in passed:
            floors[place.floor].append(place)
        arrows.append([rooms[above], *passed, rooms[below]])
        for upper, lower in itertools.pairwise(arrows[-1]):
            upper.downs.append(lower)
            lower.ups.append(upper)
    return floors, arrows


def _crossings(upper: Sequence[Place], lower: Sequence[Place]) -> int:
    rank = {id(place): i for i, place in enumerate(lower)}
    ends = [sorted(rank[id(below)] for below in place.downs) for place in upper]
    return sum(b < a for left, right in itertools.combinations(ends, 2) for a in left for b in right)


def _tangle(floors: Sequence[Sequence[Place]]) -> int:
    return sum(_crossings(upper, lower) for lower, upper in itertools.pairwise(floors))


def untangle(floors: list[list[Place]], rounds: int = 24) -> None:
    """Orders each floor so that few arrows cross: barycentres, then swaps of neighbours while they help (Sugiyama 1981)."""
    best, least = [list(row) for row in floors], _tangle(floors)
    for turn in range(rounds):
        down = turn % 2 == 0
        for row in reversed(floors) if down else floors:
            at = {id(place): i for other in floors for i, place in enumerate(other)}

            def centre(place: Place, down: bool = down, at: dict[int, int] = at) -> float:
                near = place.ups if down else place.downs
                return sum(at[id(other)] for other in near) / len(near) if near else at[id(place)]

            row.sort(key=centre)
        helped = True
        while helped:
            helped = False
            for row in floors:
                for i in range(len(row) - 1):
                    before = _tangle(floors)
                    row[i], row[i + 1] = row[i + 1], row[i]
                    if _tangle(floors) < before:
                        helped = True
                    else:
                        row[i], row[i + 1] = row[i + 1], row[i]
        if (now := _tangle(floors)) < least:
            best, least = [list(row) for row in floors], now
    for row, ordered in zip(floors, best, strict=True):
        row[:] = ordered


def _spread(row: Sequence[Place], wanted: Sequence[float], weights: Sequence[float]) -> None:
    """The positions nearest to the wanted ones, in order and a gap apart: pools of neighbours that would overlap move as one."""
    offsets = [0.0]
    for left, right in itertools.pairwise(row):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + GAP)
    pools: list[tuple[float, float, int]] = []  # mean, weight, places
    for target, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, total, count = target - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, heavy, many = pools.pop()
            mean, total, count = (mean * total + other * heavy) / (total + heavy), total + heavy, count + many
        pools.append((mean, total, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    for place, mean, offset in zip(row, means, offsets, strict=True):
        place.x = mean + offset


def spread(floors: list[list[Place]], rounds: int = 200) -> None:
    """Positions from left to right: each place near those it has arrows with, arrows that pass floors as straight as can be."""
    for row in floors:
        _spread(row, [0.0] * len(row), [1.0] * len(row))
    for turn in range(rounds):
        for row in floors if turn % 2 else reversed(floors):
            wanted, weights = [], []
            for place in row:
                # An arrow that passes bends less than one that begins or ends.
                near = [(other.x, 1.0 if place.room or other.room else 32.0) for other in [*place.ups, *place.downs]]
                weight = sum(heavy for _, heavy in near)
                wanted.append(sum(x * heavy for x, heavy in near) / weight if near else place.x)
                weights.append(weight or 1.0)
            _spread(row, wanted, weights)


STYLE = """
text { font-family: system-ui, 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif; fill: #24292f; }
.name { font-size: 13px; font-weight: 600; }
.what { font-size: 11px; fill: #57606a; }
.floor { fill: #f6f8fa; }
.room { fill: #ddf4ff; stroke: #54aeff; }
.file { fill: #fff8c5; stroke: #d4a72c; }
.ground { fill: #dafbe1; stroke: #4ac26b; }
.arrow { fill: none; stroke: #6e7781; stroke-width: 1.3; }
"""


def draw(house: House) -> str:
    """The drawing as SVG."""
    floors, arrows = places_of(house)
    untangle(floors)
    spread(floors)
    left = min(place.x - place.width / 2 for row in floors for place in row) - MARGIN
    width = round(max(place.x + place.width / 2 for row in floors for place in row) - left + MARGIN)
    heights = [max((len(place.lines) for place in row), default=0) * LINE + 22 + PAD for row in floors]
    tops, y = [0.0] * len(floors), float(MARGIN)
    for level in range(len(floors) - 1, -1, -1):
        tops[level] = y
        y += heights[level] + BETWEEN
    height = round(y - BETWEEN + MARGIN)

    svg = ET.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=str(width), height=str(height)
    )
    ET.SubElement(svg, "title").text = "Rooms of mrecg_onnx and what they import"
    ET.SubElement(svg, "style").text = STYLE
    head = ET.SubElement(
        ET.SubElement(svg, "defs"),
        "marker",
        id="head",
        viewBox="0 0 10 10",
        refX="9",
        refY="5",
        markerWidth="7",
        markerHeight="7",
        orient="auto",
    )
    ET.SubElement(head, "path", d="M 0 1 L 9 5 L 0 9 z", fill="#6e7781")
    ET.SubElement(svg, "rect", width=str(width), height=str(height), fill="#ffffff")
    for top, tall in zip(tops, heights, strict=True):
        ET.SubElement(
            svg, "rect", {"class": "floor"}, x="0", y=f"{top - 8:.0f}", width=str(width), height=f"{tall + 16}"
        )
    for arrow in arrows:
        ET.SubElement(svg, "path", {"class": "arrow", "marker-end": "url(#head)"}, d=_path(arrow, tops, heights, left))
    for place in (place for row in reversed(floors) for place in row if place.room):
        _draw_room(svg, house, place, place.x - left, tops[place.floor], heights[place.floor])
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _port(place: Place, others: list[Place], other: Place) -> float:
    """Where an arrow leaves or enters: ends at one box stand side by side in the order of their other ends."""
    if not place.room:
        return place.x
    order = sorted(range(len(others)), key=lambda i: (others[i].x, i))
    at = next(n for n, i in enumerate(order) if others[i] is other)
    step = min(22.0, (place.width - 40) / max(len(others), 1))
    return place.x + (at - (len(others) - 1) / 2) * step


def _path(arrow: Sequence[Place], tops: Sequence[float], heights: Sequence[int], left: float) -> str:
    parts = []
    for upper, lower in itertools.pairwise(arrow):
        x, y = _port(upper, upper.downs, lower) - left, tops[upper.floor] + heights[upper.floor]
        to_x, to_y = _port(lower, lower.ups, upper) - left, tops[lower.floor]
        if not parts:
            parts.append(f"M {x:.0f} {y:.0f}")
        half = (y + to_y) / 2
        parts.append(f"C {x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y:.0f}")
        if not lower.room:
            parts.append(f"V {to_y + heights[lower.floor]:.0f}")
    return " ".join(parts)


def _draw_room(svg: ET.Element, house: House, place: Place, x: float, y: float, height: int) -> None:
    name = place.room
    kind = "ground" if name == GROUND else "file" if name in house.files else "room"
    group = ET.SubElement(svg, "g")
    below = ", ".join(sorted(lower for upper, lower in house.arrows if upper == name)) or "nothing"
    above = ", ".join(sorted(upper for upper, lower in house.arrows if lower == name)) or "nothing"
    ET.SubElement(group, "title").text = f"{name} imports {below}; imported by {above}"
    corner = {"x": f"{x - place.width / 2:.0f}", "y": f"{y:.0f}", "rx": "6"}
    ET.SubElement(group, "rect", {"class": kind, **corner}, width=f"{place.width:.0f}", height=str(height))
    label = f"{name}.py" if kind == "file" else f"{name}/"
    middle = {"x": f"{x:.0f}", "text-anchor": "middle"}
    ET.SubElement(group, "text", {"class": "name", **middle}, y=f"{y + 18:.0f}").text = label
    for i, line in enumerate(place.lines):
        ET.SubElement(group, "text", {"class": "what", **middle}, y=f"{y + 34 + i * LINE:.0f}").text = line


def main() -> None:
    """Write the drawing or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, say whether the drawing is what the files say"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw(read_house(install(Path(folder))))
    if not check:
        DRAWING.write_text(drawn, encoding="utf-8", newline="\n")
    elif not DRAWING.exists() or DRAWING.read_bytes() != drawn.encode():
        raise SystemExit(f"docs/{DRAWING.name} does not show what the files say: run python docs/draw_architecture.py")


if __name__ == "__main__":
    main()
