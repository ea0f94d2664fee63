"""Mutants of the mathematics: how many of them the tests of their own room notice.

usage: PYTHONPATH=tests python benchmarks/mutants.py [--rooms learning ...] [--sample 40] [--budget 4] [--jobs 2]
           [--only learning/windows ... [--tests FILE ...]] [--draw]

Cosmic Ray makes the mutants of the modules below, each with one token changed: signs, factors, bounds, comparisons, numbers,
``not``/``and``/``or``, and with two operators of this script ``min`` against ``max`` (``floor`` against ``ceil``) and floats
doubled. What is in annotations, decorators, messages of errors and of the log or asserts is left alone.

The tests of a room are collected once; a process forked from there puts one mutant in place of the function's code and runs
the room's tests that pass its statement until one fails: those of the module's own file first, then the shortest, for at most
``--budget`` seconds of what they take unmutated. A mutant is killed when a test fails or runs five times as long as it should.
The shares are therefore a lower bound: tests beyond the budget are not asked, and neither are those of other rooms.

Without ``--sample 0``, which takes all, each module stands for itself with a random sample of its mutants (fixed seed).
Survivors are listed with the reason in mutants.toml, by the line as it was and as it became.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import gc
import importlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):
    raise SystemExit("mutants.py needs Python 3.11 or newer: it tells functions apart by their qualified names")
import tomllib

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "build" / "mutants"
#: Modules of a room whose tests have to notice what is wrong with them.
ROOMS: dict[str, tuple[str, ...]] = {
    "quantizers": ("grids", "range_search", "fake_quantization", "rounding"),
    "planning": ("granularity", "schemes"),
    "learning": (
        "windows", "prefix", "reconstruction", "trainable", "loop", "losses", "masks", "rates", "judging",
    ),
    "network": ("simulation", "batches"),
    "writing": ("qdq", "layers", "activations", "integer_nodes", "writer"),
    "measures": ("metrics",),
}  # fmt: skip
#: Files of tests of a module beside the one that is called like it.
BESIDE = {
    "prefix": ("training_data",), "trainable": ("loop",), "losses": ("loop",), "masks": ("loop",), "rates": ("loop",),
    "reconstruction": ("one_unit",), "judging": ("loop",),
}  # fmt: skip
#: Cosmic Ray's operators that touch the mathematics.
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul", "LShift_RShift",
        "RShift_LShift", "BitAnd_BitOr", "BitOr_BitAnd",
    )),
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq",
    )),
    *(f"ReplaceUnaryOperator_Delete_{kind}" for kind in ("USub", "Not", "Invert")),
    "ReplaceAndWithOr", "ReplaceOrWithAnd", "NumberReplacer",
)  # fmt: skip
#: Names that are swapped: the wrong end of a bound.
ENDS = {
    "min": "max", "minimum": "maximum", "amin": "amax", "floor": "ceil", "argmin": "argmax", "less": "greater",
}  # fmt: skip
ENDS |= {second: first for first, second in ENDS.items()}
#: How much longer than unmutated, and how many seconds beyond, the tests of a mutant may take.
SLOWER, GRACE = 5, 5
#: Address space of a mutant's process in bytes: a size that grew by mistake is an error and not the machine's end.
MEMORY = 16 << 30


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: where, what the line was and became, and the whole mutated source."""

    line: int
    column: int
    before: str
    after: str
    source: str


# --- making ------------------------------------------------------------------------------------------------------


def operators() -> Iterator[Any]:
    """Cosmic Ray's chosen operators and two of this script."""
    from cosmic_ray.operators.operator import Operator  # noqa: PLC0415 - only this script's users have it
    from cosmic_ray.plugins import get_operator  # noqa: PLC0415

    class SwapEnds(Operator):
        """``min`` for ``max`` and the like, as functions and as keywords."""

        def mutation_positions(self, node: Any) -> Iterator[Any]:
            if node.type == "name" and node.value in ENDS:
                yield node.start_pos, node.end_pos

        def mutate(self, node: Any, index: int) -> Any:  # noqa: ARG002 - there is one change a name
            node.value = ENDS[node.value]
            return node

        @classmethod
        def examples(cls) -> tuple[()]:
            return ()

    class DoubleFloat(Operator):
        """A factor, share or limit twice as large."""

        def mutation_positions(self, node: Any) -> Iterator[Any]:
            if node.type == "number" and re.search(r"[.e]", node.value) and float(node.value):
                yield node.start_pos, node.end_pos

        def mutate(self, node: Any, index: int) -> Any:  # noqa: ARG002
            node.value = repr(2.0 * float(node.value))
            return node

        @classmethod
        def examples(cls) -> tuple[()]:
            return ()

    yield from (get_operator(f"core/{name}")() for name in OPERATORS)
    yield from (SwapEnds(), DoubleFloat())


def _spans(tree: ast.Module) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Places of expressions, and of what is no mathematics."""

    def span(node: Any) -> tuple[Any, Any]:
        return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)

    inside, outside = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            inside.append(span(node))
        if isinstance(node, (ast.Raise, ast.Assert)):
            outside.append(span(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "logger" in ast.unparse(node.func):
            outside.append(span(node))
        outside += [span(d) for d in getattr(node, "decorator_list", [])]
        outside += [span(a) for a in (getattr(node, "annotation", None), getattr(node, "returns", None)) if a]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            outside.append(span(node))  # an alias of types
    return inside, outside


def mutants(path: Path) -> list[Mutant]:
    """All mutants of the file ``path``."""
    from cosmic_ray.ast import ast_nodes, get_ast  # noqa: PLC0415
    from cosmic_ray.mutating import mutate_code  # noqa: PLC0415

    source = path.read_text(encoding="utf-8")
    inside, outside = _spans(ast.parse(source))
    found = []
    lines = source.splitlines()
    for operator in operators():
        places = [p for node in ast_nodes(get_ast(source)) for p in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(places):
            if not any(a <= start and end <= b for a, b in inside) or any(a <= start and end <= b for a, b in outside):
                continue
            mutated = mutate_code(source, operator, occurrence)
            try:
                compile(mutated, str(path), "exec")
            except SyntaxError:
                continue
            row = start[0] - 1
            after = re.sub(r"(?<=\S)  +", " ", mutated.splitlines()[row].strip())
            found.append(Mutant(start[0], start[1], lines[row].strip(), after, mutated))
    return sorted(found, key=lambda m: (m.line, m.column, m.after))


# --- putting in place --------------------------------------------------------------------------------------------


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _simple(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or (
        isinstance(value, (tuple, frozenset)) and all(_simple(x) for x in value)
    )


def functions_of(file: str) -> list[types.FunctionType]:
    """All functions made from the text of ``file``, wherever they are kept."""
    return [f for f in gc.get_objects() if type(f) is types.FunctionType and f.__code__.co_filename == file]


def _defaults(old: Any, new: Any) -> int:
    changed = 0
    for kind in ("__defaults__", "__kwdefaults__"):
        before, after = getattr(old, kind, None), getattr(new, kind, None)
        if before != after and repr(before) != repr(after):
            setattr(old, kind, after)
            changed += 1
    return changed


def put_in_place(module: types.ModuleType, functions: Sequence[types.FunctionType], source: str) -> int:
    """Let ``module`` behave as ``source``; returns how much was changed."""
    file = str(module.__file__)
    code = compile(source, file, "exec")
    fresh = {(c.co_qualname, c.co_firstlineno): c for c in _codes(code)}
    changed = 0
    for function in functions:
        new = fresh.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if new is not None and new != function.__code__:
            function.__code__ = new
            changed += 1
    if changed:
        return changed
    scratch: dict[str, Any] = {"__name__": module.__name__, "__file__": file, "__package__": module.__package__}
    exec(code, scratch)  # the module's own text with one token changed
    for name, new in scratch.items():
        old = vars(module).get(name)
        if isinstance(new, type) and getattr(new, "__module__", "") == module.__name__:
            for key, value in list(vars(new).items()):
                if _simple(value) and not key.startswith("__") and vars(old).get(key) != value:
                    setattr(old, key, value)
                    changed += 1
                elif isinstance(value, types.FunctionType):
                    changed += _defaults(vars(old)[key], value)
        elif isinstance(new, types.FunctionType) and new.__module__ == module.__name__:
            changed += _defaults(old, new)
        elif _simple(new) and new != old:
            for other in list(sys.modules.values()):
                if getattr(other, "__dict__", {}).get(name) is old:
                    setattr(other, name, new)
                    changed += 1
        elif isinstance(new, dict) and not name.startswith("__") and all(map(_simple, new.values())) and new != old:
            old.clear()
            old.update(new)
            changed += 1
    return changed


# --- running -----------------------------------------------------------------------------------------------------


def _statement(tree: ast.Module, line: int, source: list[str]) -> set[int] | None:
    """Lines that are run when the one at ``line`` is, None where that is no line of a function."""
    chain = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    functions = [n for n in chain if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if not functions:
        named = [n for n in chain if isinstance(n, (ast.Assign, ast.AnnAssign))]
        words = {t.id for n in named for t in ast.walk(n) if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)}
        if not words or any(isinstance(n, ast.ClassDef) for n in chain):
            return None
        pattern = re.compile(rf"\b({'|'.join(words)})\b")
        return {i for i, text in enumerate(source, 1) if pattern.search(text) and i != line} or None
    inner = max(functions, key=lambda n: n.lineno)
    if line < inner.body[0].lineno:  # a default value
        return set(range(inner.body[0].lineno, (inner.end_lineno or 0) + 1))
    last = max(chain, key=lambda n: (n.lineno, -(n.end_lineno or 0)))
    end = last.body[0].lineno - 1 if hasattr(last, "body") else last.end_lineno
    return set(range(last.lineno, max(end or 0, line) + 1))


def inside_function(tree: ast.Module, line: int) -> bool:
    """True for a line in the body of a function."""
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return any(f.body[0].lineno <= line <= (f.end_lineno or 0) for f in functions)


class Runner:
    """Pytest plugin: instead of the tests once it runs them for the unmutated code, then for every mutant."""

    def __init__(self, room: str, names: Sequence[str], args: argparse.Namespace) -> None:
        self.room, self.names, self.args = room, names, args
        self.out = (WORK / f"{room}.jsonl").open("w", encoding="utf-8")

    def pytest_runtestloop(self, session: Any) -> bool:
        """Instead of pytest's own loop."""
        if session.testsfailed:
            raise SystemExit(f"tests/{self.room} cannot be collected")
        import torch  # noqa: PLC0415

        torch.set_num_threads(1)
        modules = {n: importlib.import_module(f"mrecg_onnx.{self.room}.{n}") for n in self.names}
        seconds, passed = self._unmutated(session, {n: str(m.__file__) for n, m in modules.items()})
        for name, module in modules.items():
            self._mutate(session, name, module, seconds, passed[name])
        return True

    def _unmutated(
        self, session: Any, files: dict[str, str]
    ) -> tuple[dict[str, float], dict[str, dict[int, set[str]]]]:
        """Seconds of each test and, by module and line, the tests that pass there."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "unmutated.json"
            child = os.fork()
            if child == 0:
                _child(lambda: target.write_text(json.dumps(_covered(session, files)), encoding="utf-8") and 0, folder)
            _, status = os.waitpid(child, 0)
            if status or not target.exists():
                raise SystemExit(f"the unmutated tests of tests/{self.room} did not run to their end")
            seconds, failed, lines = json.loads(target.read_text(encoding="utf-8"))
        if failed:
            raise SystemExit(f"tests fail without a mutant: {', '.join(failed)}")
        return seconds, {n: {int(k): set(v) for k, v in by_line.items()} for n, by_line in lines.items()}

    def _mutate(
        self,
        session: Any,
        name: str,
        module: types.ModuleType,
        seconds: dict[str, float],
        passed: dict[int, set[str]],
    ) -> None:
        path = Path(str(module.__file__))
        text = path.read_text(encoding="utf-8")
        tree, source = ast.parse(text), text.splitlines()
        every = mutants(path)
        chosen = list(range(len(every)))
        if 0 < self.args.sample < len(every):
            chosen = sorted(random.Random(self.args.seed).sample(chosen, self.args.sample))
        functions = functions_of(str(module.__file__))
        items = {item.nodeid: item for item in session.items}
        running: dict[int, tuple[Mutant, float, tempfile.TemporaryDirectory[str]]] = {}
        print(f"{self.room}/{name}: {len(chosen)} of {len(every)} mutants, {len(items)} tests", flush=True)
        killed = 0

        def reap() -> None:
            nonlocal killed
            while True:
                for pid, (mutant, deadline, folder) in list(running.items()):
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if not done and time.monotonic() < deadline:
                        continue
                    if not done:
                        os.kill(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                    note = Path(folder.name) / "note.txt"
                    said = note.read_text(encoding="utf-8") if note.exists() else "out of time or memory"
                    folder.cleanup()
                    del running[pid]
                    survived = bool(done) and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
                    if said.startswith("error"):
                        raise SystemExit(f"{path}:{mutant.line}: {mutant.after}\n{said}")
                    killed += not survived
                    row = {
                        "module": f"{self.room}/{name}", "of": len(every), "line": mutant.line, "column": mutant.column,
                        "before": mutant.before, "after": mutant.after, "survived": survived, "by": said,
                    }  # fmt: skip
                    self.out.write(json.dumps(row) + "\n")
                    self.out.flush()
                    return
                time.sleep(0.02)

        for number in chosen:
            mutant = every[number]
            lines = _statement(tree, mutant.line, source)
            asked = {t for line in lines for t in passed.get(line, ())} if lines is not None else set(items)
            if not asked and not inside_function(tree, mutant.line):
                asked = set(items)  # a constant that is used where no test can be seen to pass: in a default value
            order, left = [], self.args.budget
            own = {f"test_{stem}.py" for stem in (name, *BESIDE.get(name, ()))}
            for test in sorted(asked, key=lambda t: (items[t].path.name not in own, seconds[t], t)):
                if order and left < seconds[test]:
                    break
                order.append(items[test])
                left -= seconds[test]
            while len(running) >= self.args.jobs:
                reap()
            allowed = self.args.budget - left
            folder = tempfile.TemporaryDirectory()
            pid = os.fork()
            if pid == 0:
                at = Path(folder.name)
                _child(lambda m=mutant, o=order, a=allowed, f=at: _judge(module, functions, m, o, a, f), folder.name)
            # Processor time is limited in the child; the clock only ends what waits for ever.
            running[pid] = mutant, time.monotonic() + 5 * (SLOWER * allowed + GRACE), folder
        while running:
            reap()
        print(f"{self.room}/{name}: {killed} of {len(chosen)} killed", flush=True)


def _child(work: Any, folder: str) -> None:
    """Do ``work`` in this forked process and leave with its result, without what Python does at its end."""
    os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        status = work()
    except BaseException:  # noqa: BLE001 - the process ends here
        (Path(folder) / "note.txt").write_text(f"error: {traceback.format_exc()}", encoding="utf-8")
        traceback.print_exc(file=sys.__stderr__)
        status = 3
    os._exit(status)


def _kept_results() -> list[Any]:
    """Functions of tests and helpers that keep their results: a test that is given one passes nothing."""
    found = [o for o in gc.get_objects() if type(o).__name__ == "_lru_cache_wrapper"]
    return [f for f in found if str(getattr(f, "__module__", "")).startswith(("helpers", "test"))]


def _covered(
    session: Any, files: dict[str, str]
) -> tuple[dict[str, float], list[str], dict[str, dict[int, list[str]]]]:
    """Run everything and note what each test passes, also in fixtures and in what helpers keep."""
    import coverage  # noqa: PLC0415
    from _pytest.runner import runtestprotocol  # noqa: PLC0415

    cover = coverage.Coverage(include=list(files.values()), config_file=False, data_file=None)
    seconds: dict[str, float] = {}
    failed, users = [], {}

    class Fixtures:
        def __init__(self) -> None:
            self.test, self.made = "", 0

        def pytest_fixture_setup(self, fixturedef: Any) -> None:
            if fixturedef.scope != "function":
                self.made += 1
                cover.switch_context(f"fixture {fixturedef.argname}")

        def pytest_runtest_call(self) -> None:
            cover.switch_context(self.test)

    watch = Fixtures()
    session.config.pluginmanager.register(watch)
    made: tuple[Any, int] | None = None
    kept: list[Any] = []
    cover.start()
    for number, item in enumerate(session.items):
        if made != (item.path, watch.made):  # looking through all objects takes a while
            made, kept = (item.path, watch.made), _kept_results()
        for function in kept:
            function.cache_clear()
        watch.test = item.nodeid
        for fixture in item.fixturenames:
            users.setdefault(f"fixture {fixture}", []).append(item.nodeid)
        cover.switch_context(item.nodeid)
        begin = time.process_time()
        following = session.items[number + 1] if number + 1 < len(session.items) else None
        reports = runtestprotocol(item, nextitem=following, log=False)
        seconds[item.nodeid] = time.process_time() - begin
        failed += [item.nodeid for report in reports if report.failed]
    cover.stop()
    data = cover.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for name, file in files.items():
        by_line = data.contexts_by_lineno(file)
        lines[name] = {
            line: sorted({test for c in contexts if c for test in users.get(c, [c])})
            for line, contexts in by_line.items()
        }
    return seconds, sorted(set(failed)), lines


def _judge(
    module: types.ModuleType,
    functions: Sequence[types.FunctionType],
    mutant: Mutant,
    order: list[Any],
    allowed: float,
    folder: Path,
) -> int:
    """1 as soon as one of the tests in ``order`` fails under ``mutant``, else 0."""
    from _pytest.runner import runtestprotocol  # noqa: PLC0415

    limit = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime + SLOWER * allowed + GRACE)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if not put_in_place(module, functions, mutant.source):
        (folder / "note.txt").write_text("error: nothing was changed", encoding="utf-8")
        return 3
    for number, item in enumerate(order):
        following = order[number + 1] if number + 1 < len(order) else None
        for report in runtestprotocol(item, nextitem=following, log=False):
            if report.failed:
                (folder / "note.txt").write_text(item.nodeid, encoding="utf-8")
                return 1
    (folder / "note.txt").write_text(f"{len(order)} tests", encoding="utf-8")
    return 0


def run_room(args: argparse.Namespace) -> int:
    """Mutants of one room, in a process of its own."""
    import pytest  # noqa: PLC0415
    from hypothesis import settings  # noqa: PLC0415

    settings.register_profile("mutants", database=None, derandomize=True, deadline=None)
    settings.load_profile("mutants")
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=fd"]
    options += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    runner = Runner(args.room, args.only, args)
    status = pytest.main([*options, *(args.tests or [str(ROOT / "tests" / args.room)])], plugins=[runner])
    return int(status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED})


# --- writing -----------------------------------------------------------------------------------------------------


def measured(room: str, args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the mutants of some modules of a room, made in a process of their own."""
    options = [f"--{k}={getattr(args, k)}" for k in ("sample", "seed", "budget", "jobs")]
    options += ["--tests", *args.tests] if args.tests else []
    subprocess.run([sys.executable, __file__, "--room", room, *options, "--only", *names], check=True)
    rows = [json.loads(line) for line in (WORK / f"{room}.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda r: (names.index(r["module"].split("/")[1]), r["line"], r["column"], r["after"]))


def keep(room: str, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Put the rows of a room into mutants.json."""
    from _record import header  # noqa: PLC0415

    record = header()
    record["versions"] |= {n: metadata.version(n) for n in ("cosmic-ray", "coverage", "pytest", "hypothesis")}
    record |= {"sample": args.sample, "seed": args.seed, "budget": args.budget}
    path = RESULTS / "mutants.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[room] = {"record": record, "rows": rows}
    path.write_text(json.dumps({r: known[r] for r in ROOMS if r in known}, indent=1) + "\n", encoding="utf-8")


def write() -> None:
    """Table and list of survivors, from mutants.json."""
    known = json.loads((RESULTS / "mutants.json").read_text(encoding="utf-8"))
    said = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text(encoding="utf-8")).get("survivor", [])
    reasons = {(entry["module"], entry["before"], entry["after"]): entry["reason"] for entry in said}
    rows = [row for room in known.values() for row in room["rows"]]
    text = [
        "# Mutants", "",
        "Written by `python benchmarks/mutants.py`, whose head says what is changed and when a mutant counts as killed;",
        "all rows, also those of the killed ones with the test that did it, in mutants.json.", "",
        "| module | mutants | of | killed | survived | share |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    modules = {
        name: [row for row in rows if row["module"] == name] for name in dict.fromkeys(r["module"] for r in rows)
    }
    figures = {}
    for name, part in (modules | {"all": rows}).items():
        survived = sum(row["survived"] for row in part)
        of = sum({row["module"]: row["of"] for row in part}.values())
        figures[name] = of, (len(part) - survived) / len(part)
        counts = f"{len(part)} | {of} | {len(part) - survived} | {survived}"
        text.append(f"| {name} | {counts} | {100 * figures[name][1]:.1f} % |")
    whole = figures.pop("all")[0]
    weighted = sum(of * share for of, share in figures.values()) / whole
    text += ["", f"Each module's share weighted by the number of all its mutants: {100 * weighted:.1f} %.", ""]
    text += ["## Survivors", "", "| file, line | was | became | why |", "|---|---|---|---|"]
    for row in (row for row in rows if row["survived"]):
        why = reasons.get((row["module"], row["before"], row["after"]), "not looked into")
        was, became = (row[part].replace("|", "\\|") for part in ("before", "after"))
        text.append(f"| mrecg_onnx/{row['module']}.py, {row['line']} | `{was}` | `{became}` | {why} |")
    text.append("")
    for room, found in known.items():
        record = found["record"]
        sizes = f"at most {record['sample'] or 'all'} mutants a module, seed {record['seed']}, tests of {record['budget']:g} s"
        text.append(f"- {room}: `{record['command']}`, {record['date']}, commit {record['commit']}; {sizes}.")
    versions = ", ".join(f"{n} {v}" for n, v in record["versions"].items())
    text += ["", f"Python {record['python']}, {versions}. Machine: {record['machine']}."]
    (RESULTS / "mutants.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=list(ROOMS), default=list(ROOMS), help="others keep their rows")
    parser.add_argument("--only", nargs="+", help="modules as room/file; then nothing is written to results/")
    parser.add_argument("--tests", nargs="+", help="with --only of one room: these files instead of all of the room's")
    parser.add_argument("--sample", type=int, default=40, help="mutants a module, 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of tests for one mutant")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--draw", action="store_true", help="only write the table again")
    parser.add_argument("--room", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.room:
        raise SystemExit(run_room(args))
    os.environ["OMP_NUM_THREADS"] = "1"
    WORK.mkdir(parents=True, exist_ok=True)
    for room in args.rooms if not args.draw else ():
        names = [n for n in ROOMS[room] if not args.only or f"{room}/{n}" in args.only]
        if not names:
            continue
        rows = measured(room, args, names)
        if args.only:
            for row in rows:
                if row["survived"]:
                    print(f"{row['module']}:{row['line']}: {row['before']}  ->  {row['after']}  ({row['by']})")
        else:
            keep(room, rows, args)
    if not args.only:
        write()


if __name__ == "__main__":
    main()
