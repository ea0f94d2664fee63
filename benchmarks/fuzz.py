"""Damaged model files through the commands: each ends in a result or in one line that says what is wrong.

usage: python benchmarks/fuzz.py [--mutants 60000] [--first 0] [--seed 1] [--budget SECONDS] [--quick] [--data ../shared]
           [--only NUMBER] [--again]

A mutant is a small model (the sample, one of each kind of graph, a quantized file of each target and container, the cases beside
the models) with one to three damages: fields of its protobuf messages or bytes (_mutations.py). Its number and the seed make it.
Each goes through ``inspect``, which loads, normalizes and plans it; some of those that load are quantized, converted and
validated, too. Workers are forked from a process that has imported everything and take a number of mutants each; one that dies,
takes too long or too much memory is told from one that fails.

Parts of a run are merged in benchmarks/results/fuzz.json, by range of numbers; fuzz.md is written from it. With ``--quick``
nothing is written: exit code 1 says that something was found. Files of what was found go to build/benchmarks/fuzz/found.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import gc
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _fuzz_seeds import Seed, chosen, make_seeds, read_seeds
from _mutations import mutated
from _record import header

from mrecg_onnx.converters.files import write_whole

RESULTS = Path(__file__).parent / "results"
BUILD = Path("build") / "benchmarks" / "fuzz"
#: Mutants a worker takes.
BATCH = 50
#: What a mutant may take: CPU seconds, seconds on the clock where the machine does other things, bytes.
CPU, CLOCK, MEMORY = 10.0, 600.0, 2 * 10**9
#: Characters of a line.
LONGEST = 300
#: Shares of the mutants: of those that load, how many are quantized; of the quantized ones, how many are converted and validated.
QUANTIZED, CONVERTED, VALIDATED = 0.04, 0.15, 0.1
_CONVERSIONS = [
    ["--container", "packed"], ["--container", "int8"], ["--container", "typed"], ["--target", "portable"],
    ["--target", "openvino"],
    ["--target", "qnn"], ["--target", "qonnx", "--container", "qonnx"], ["--batch", "2"], ["--to", "tflite"],
]  # fmt: skip
FINE = ("works", "refused")


# --- one mutant ------------------------------------------------------------------------------------------------------


def attempt(arguments: list[str]) -> dict[str, Any]:
    """Run a command in this process and judge how it ended."""
    import click  # noqa: PLC0415

    from mrecg_onnx.commands import main  # noqa: PLC0415

    out, err = io.StringIO(), io.StringIO()
    code, cause = 0, None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(arguments, prog_name="mrecg-onnx", standalone_mode=False)
        except click.ClickException as error:
            error.show()
            code, cause = error.exit_code, error.__cause__
        except BaseException as error:  # noqa: BLE001 - whatever passes the commands' own guard is what is looked for
            return {"outcome": "unexpected", "line": f"passed the guard: {error!r}"[:500], "where": _where(error)}
    said = err.getvalue()
    lines = said.rstrip("\n").split("\n") if said.strip() else []
    wrong = _wrong(lines, code, out.getvalue())
    last = lines[-1] if lines else ""
    if "MemoryError" in last or "bad allocation" in last or "bad_alloc" in last:
        return {"outcome": "memory", "line": last[:500], "where": _where(cause)}
    if wrong:
        return {"outcome": "unexpected", "line": f"{wrong}: {last}"[:500], "where": _where(cause)}
    return {"outcome": "refused" if code else "works", "line": last if code else ""}


def _wrong(lines: list[str], code: int, shown: str) -> str | None:
    """What is not as it should be in what a command said."""
    errors = [line for line in lines if line.startswith("Error: ")]
    if code not in {0, 1, 2}:
        return f"exit code {code}"
    if "unexpected failure" in "".join(lines):
        return "unexpected failure"
    if len(errors) != bool(code) or (code and lines[-1] != errors[0]):
        return f"{len(errors)} lines for an error"
    for line in (*lines, *shown.split("\n")):
        if not line.isprintable():
            return "control characters"
    for line in lines:
        if len(line) > LONGEST:
            return f"a line of {len(line)} characters"
    return None


def _where(error: BaseException | None) -> str:
    """The last place in this package that ``error`` came through, and the last of all."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/converters/" in frame.filename or "/mrecg_onnx/" in frame.filename]
    ours = [frame for frame in ours if "site-packages" not in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in (*ours[-1:], *frames[-1:])]
    return f"{type(error).__name__} {' > '.join(dict.fromkeys(places))}"


def validating(model: str, quantized: str, inputs: Path) -> list[str]:
    return ["validate", model, quantized, "--data", str(inputs), "--labels", "none", "--repeats", "0", "--threads", "1"]


def examine(seed: Seed, content: bytes, draw: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """The commands that a mutant goes through, with how each ended."""
    path = Path("model.onnx")
    path.write_bytes(content)
    found = attempt(["inspect", "model.onnx"])
    yield "inspect", found
    if found["outcome"] not in FINE:
        return
    if seed.source is None:
        if found["outcome"] == "works" and draw.random() < QUANTIZED:
            command = [
                "quantize",
                "model.onnx",
                "--calib",
                str(seed.inputs),
                "--method",
                "nearest",
                "--threads",
                "1",
                "-o",
                "out.onnx",
            ]
            command += draw.choice(
                [
                    [],
                    ["--equalize", "off"],
                    ["--target", "portable"],
                    ["--container", "packed"],
                    ["--wbits", "8", "--abits", "8"],
                ]
            )
            found = attempt(command)
            yield "quantize", found
            if found["outcome"] == "works":
                yield (
                    "validate",
                    attempt(validating("model.onnx", "out.onnx", seed.inputs)),
                )
        return
    if draw.random() < CONVERTED:
        options = draw.choice(_CONVERSIONS)
        yield (
            "convert",
            attempt(["convert", "model.onnx", *options, "-o", "out.tflite" if "tflite" in options else "out.onnx"]),
        )
    if draw.random() < VALIDATED:
        yield (
            "validate",
            attempt(validating(str(seed.source), "model.onnx", seed.inputs)),
        )


def mutant(seeds: list[Seed], seed: int, number: int) -> tuple[Seed, bytes, list[str], random.Random]:
    """Mutant ``number`` of a run; the generator goes on to choose what is done to it."""
    draw = random.Random(f"{seed}:{number}")
    source = chosen(seeds, draw)
    content, damage = mutated(source.content, draw)
    return source, content, damage, draw


def _row(seeds: list[Seed], seed: int, number: int, known: set[str]) -> dict[str, Any]:
    source, content, damage, draw = mutant(seeds, seed, number)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts again
    start, allowed = time.process_time(), known
    row: dict[str, Any] = {"number": number, "seed": source.name, "damage": damage, "commands": [], "lines": []}
    worst: dict[str, Any] = {"outcome": "works"}
    for command, found in examine(source, content, draw):
        row["commands"].append(f"{command} {found['outcome']}")
        if found["outcome"] == "refused":
            row["lines"].append(found["line"])
        if found["outcome"] not in FINE or worst["outcome"] == "works":
            worst = {**found, "command": command}
        if found["outcome"] == "works":
            allowed = allowed | {"out.onnx", "out.toml", "out.tflite"}
        left = {path.name for path in Path().iterdir()} - allowed
        if left and worst["outcome"] in FINE:
            worst = {
                "outcome": "unexpected",
                "line": f"left behind: {sorted(left)}"[:300],
                "command": command,
                "where": "files",
            }
    for path in Path().iterdir():
        if path.name not in known:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    row |= worst | {"cpu": round(time.process_time() - start, 3), "peak": _peak()}
    if row["peak"] > MEMORY and row["outcome"] in FINE:
        row |= {"outcome": "memory", "line": f"{row['peak'] / 1e9:.1f} GB", "where": "peak"}
    return row


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


# --- workers ---------------------------------------------------------------------------------------------------------


def work(seeds: list[Seed], seed: int, numbers: list[int], companions: list[Path], pipe: int, native: int) -> None:
    """Examine mutants and write a line for each, in a process of its own."""
    os.setsid()
    # What is in the way of memory is an error of its own, long before the machine has none left.
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + 2 * MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGUSR1, file=native, all_threads=True)
    faulthandler.enable(file=native)
    os.dup2(native, 1)
    os.dup2(native, 2)
    with tempfile.TemporaryDirectory() as folder, os.fdopen(pipe, "w") as out:
        os.chdir(folder)
        for path in companions:
            shutil.copy(path, folder)
        allowed = {path.name for path in Path().iterdir()} | {"model.onnx"}
        for number in numbers:
            out.write(json.dumps({"begins": number}) + "\n")
            out.flush()
            before = os.lseek(native, 0, os.SEEK_END)
            row = _row(seeds, seed, number, allowed)
            if os.lseek(native, 0, os.SEEK_END) > before and row["outcome"] in FINE:
                os.lseek(native, before, os.SEEK_SET)
                said = os.read(native, 300).decode(errors="replace")
                if not said.startswith("INFO: "):  # LiteRT says once what it runs on
                    row |= {
                        "outcome": "unexpected",
                        "line": f"a library printed: {said}",
                        "where": "library " + said[:60],
                    }
            out.write(json.dumps(row) + "\n")
            out.flush()
        os.chdir("/")


def _data() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmData:\s+(\d+)", status).group(1)) * 1024  # type: ignore[union-attr]


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def results(seeds: list[Seed], seed: int, numbers: list[int], companions: list[Path]) -> Iterator[dict[str, Any]]:
    """A row for each of ``numbers``, from one worker after the other."""
    waiting = collections.deque(numbers)
    while waiting:
        batch = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
        with tempfile.TemporaryFile() as native:
            for row in _batch(seeds, seed, batch, companions, native.fileno()):
                batch.remove(row["number"])
                yield row
        waiting.extendleft(reversed(batch))  # those behind one that killed the worker


def _batch(
    seeds: list[Seed], seed: int, numbers: list[int], companions: list[Path], native: int
) -> Iterator[dict[str, Any]]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            work(seeds, seed, numbers, companions, write, native)
            code = 0
        except BaseException:  # noqa: BLE001 - the parent's stack is not to be unwound in the child
            os.write(native, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(write)
    buffer, current, began, spent, why = b"", None, time.monotonic(), 0.0, "crash"
    while True:
        ready, _, _ = select.select([read], [], [], 0.5)
        if ready:
            chunk = os.read(read, 1 << 16)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "begins" in said:
                    current, began, spent = said["begins"], time.monotonic(), _cpu(pid)
                else:
                    current = None
                    yield said
        elif current is not None and (_cpu(pid) - spent > CPU or time.monotonic() - began > CLOCK):
            why = "hang"
            os.kill(pid, signal.SIGUSR1)  # where it is goes to the file
            time.sleep(0.5)
            os.killpg(pid, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if current is None and code == 0:
        return
    os.lseek(native, 0, os.SEEK_SET)
    stack = os.read(native, 1 << 20).decode(errors="replace")[-4000:]
    if current is None:
        raise SystemExit(f"a worker ended with {code} between mutants:\n{stack}")
    source, _, damage, _ = mutant(seeds, seed, current)
    places = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', stack)
    ours = [f"{Path(file).name}:{name}" for file, _, name in places if "/converters/" in file or "/mrecg_onnx/" in file]
    where = f"{ours[0] if ours else '?'} > {Path(places[0][0]).name}:{places[0][2]}" if places else "?"
    yield {"number": current, "seed": source.name, "damage": damage, "outcome": why, "line": f"exit code {code}", "where": where,
           "stack": stack, "commands": [], "lines": [], "cpu": _cpu(pid), "peak": 0}  # fmt: skip


# --- the run ---------------------------------------------------------------------------------------------------------


def import_everything() -> None:
    """So that workers import nothing."""
    import onnxruntime as ort  # noqa: PLC0415
    import torch  # noqa: PLC0415

    import mrecg_onnx  # noqa: PLC0415
    from mrecg_onnx.commands import main  # noqa: PLC0415
    from mrecg_onnx.converters.versions import runtime_versions  # noqa: PLC0415

    torch.set_num_threads(1)
    for name in mrecg_onnx.__all__:
        getattr(mrecg_onnx, name)
    runtime_versions()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for command in main.commands:
            with contextlib.suppress(SystemExit):
                main.main([command, "--help"])
    ort.set_default_logger_severity(4)
    gc.collect()
    gc.freeze()


class Tally:
    """What a part of a run found."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.commands: collections.Counter[str] = collections.Counter()
        self.refusals: collections.Counter[str] = collections.Counter()
        self.seeds: collections.Counter[str] = collections.Counter()
        self.found: dict[str, dict[str, Any]] = {}
        self.mutants, self.cpu, self.most_cpu, self.peak, self.longest = 0, 0.0, 0.0, 0, 0

    def add(self, row: dict[str, Any]) -> bool:
        """Count a row; True where it is the first of a kind that is to be looked at."""
        self.mutants += 1
        self.outcomes[row["outcome"]] += 1
        self.commands.update(row["commands"])
        self.seeds[row["seed"]] += 1
        self.refusals.update(_kind(line) for line in row["lines"])
        self.cpu += row["cpu"]
        self.most_cpu, self.peak = max(self.most_cpu, row["cpu"]), max(self.peak, row["peak"])
        self.longest = max([self.longest, *map(len, row["lines"])])
        if row["outcome"] in FINE:
            return False
        key = f"{row['outcome']}: {row.get('where') or _kind(row['line'])}"
        new = key not in self.found
        entry = self.found.setdefault(
            key, {"count": 0, "numbers": [], **{k: row.get(k) for k in ("seed", "damage", "line", "command", "stack")}}
        )
        entry["count"] += 1
        entry["numbers"] = [*entry["numbers"], row["number"]][:5]
        return new

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return {
            "mutants": self.mutants, "outcomes": dict(self.outcomes), "commands": dict(sorted(self.commands.items())),
            "cpu_seconds": round(self.cpu, 1), "most_cpu": self.most_cpu, "peak_bytes": self.peak, "longest_line": self.longest,
            "refusals": len(self.refusals), "common_refusals": dict(self.refusals.most_common(60)),
            "seeds": dict(sorted(self.seeds.items())), "found": self.found,
        }  # fmt: skip


def _kind(line: str) -> str:
    """A message without what it says of one model."""
    line = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"", "'..'", line)
    return re.sub(r"-?\d+(\.\d+)?", "N", line)[:160]


def write_markdown(parts: dict[str, dict[str, Any]]) -> None:
    total: collections.Counter[str] = collections.Counter()
    commands: collections.Counter[str] = collections.Counter()
    for part in parts.values():
        total.update(part["outcomes"])
        commands.update(part["commands"])
    count, last = sum(part["mutants"] for part in parts.values()), list(parts.values())[-1]
    cpu = sum(part["cpu_seconds"] for part in parts.values()) / max(count, 1)
    most, peak, longest = (
        max(part[key] for part in parts.values()) for key in ("most_cpu", "peak_bytes", "longest_line")
    )
    columns = ["mutants", "work", "refused in one line", "unexpected", "crashes", "hangs over 10 s", "over 2 GB"]
    cells = [count, *(total[name] for name in ("works", "refused", "unexpected", "crash", "hang", "memory"))]
    lines = [
        "# Damaged models", "",
        "Written by `python benchmarks/fuzz.py`; commands, dates, versions and commits of all parts in fuzz.json.", "",
        f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", f"| {' | '.join(f'{cell:,}' for cell in cells)} |", "",
        f"From {len(last['seeds'])} models; {cpu * 1000:.0f} CPU milliseconds a mutant, {most:.1f} s at most;",
        f"{peak / 1e9:.2f} GB of memory at most; the longest line has {longest} characters.", "",
        "| command | works | refused |", "|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {name} | {commands[f'{name} works']:,} | {commands[f'{name} refused']:,} |"
        for name in dict.fromkeys(key.split()[0] for key in commands)
    ]
    lines += ["", "| part | commit | date | mutants | unexpected, crashes, hangs, memory |", "|---|---|---|---|---|"]
    for key, part in parts.items():
        bad = part["mutants"] - sum(part["outcomes"].get(name, 0) for name in FINE)
        lines.append(f"| {key} | {part['header']['commit']} | {part['header']['date']} | {part['mutants']:,} | {bad} |")
    lines += ["", f"Machine: {last['header']['machine']}."]
    write_whole(RESULTS / "fuzz.md", "\n".join(lines) + "\n")


def run(args: argparse.Namespace) -> int:
    seeds_folder = (args.seeds or BUILD / ("quick" if args.quick else "seeds")).resolve()
    import_everything()
    pid = os.fork()  # ONNX Runtime's threads must not be in the process that forks workers
    if pid == 0:
        try:
            make_seeds(seeds_folder, args.data.resolve() if args.data else None, quick=args.quick)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        return 1
    seeds = read_seeds(seeds_folder)
    companions = [seeds_folder / "weights.data"]
    numbers = args.only or list(range(args.first, args.first + args.mutants))
    tally, start, found = Tally(), time.monotonic(), (BUILD / "found").resolve()
    for row in results(seeds, args.seed, numbers, companions):
        if args.only:
            print(json.dumps(row, indent=1))
        if tally.add(row):
            print(
                json.dumps(
                    {k: row.get(k) for k in ("number", "seed", "outcome", "command", "where", "line", "damage")}
                ),
                flush=True,
            )
            if not args.quick:
                found.mkdir(parents=True, exist_ok=True)
                (found / f"{args.seed}-{row['number']}.onnx").write_bytes(mutant(seeds, args.seed, row["number"])[1])
        if tally.mutants % 1000 == 0:
            print(
                f"[{tally.mutants}/{len(numbers)}] {dict(tally.outcomes)} {tally.cpu / tally.mutants * 1000:.0f} ms",
                flush=True,
            )
        if args.budget and time.monotonic() - start > args.budget:
            break
    if not args.quick and not args.only:
        path = RESULTS / "fuzz.json" if not args.out else args.out
        parts = json.loads(path.read_text()) if path.exists() and not args.again else {}
        parts[f"seed {args.seed}, {args.first} to {args.first + tally.mutants - 1}"] = tally.to_json() | {
            "header": header()
        }
        write_whole(path, json.dumps(parts, indent=1) + "\n")
        if not args.out:
            write_markdown(parts)
    bad = tally.mutants - sum(tally.outcomes[name] for name in FINE)
    print(f"{tally.mutants} mutants: {dict(tally.outcomes)}, {tally.cpu:.0f} CPU s, {tally.peak / 1e9:.2f} GB at most")
    return int(bad > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder with cases/make_cases.py")
    parser.add_argument("--mutants", type=int, default=60_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=float, help="seconds on the clock after which no more begin")
    parser.add_argument("--quick", action="store_true", help="few seeds, nothing is written")
    parser.add_argument("--again", action="store_true", help="forget the parts that are there")
    parser.add_argument("--only", type=int, nargs="*", help="these mutants, and all about them")
    parser.add_argument("--out", type=Path, help="another file for the results")
    parser.add_argument("--draw", action="store_true", help="only write the page from the parts that are there")
    parser.add_argument("--seeds", type=Path, help="folder for the seeds")
    args = parser.parse_args()
    if args.draw:
        write_markdown(json.loads((RESULTS / "fuzz.json").read_text()))
        return
    sys.exit(run(args))


if __name__ == "__main__":
    main()
