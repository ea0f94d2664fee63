"""The same bytes again: every method, what adds randomness or parallelism, and what differs with threads, processor and versions.

usage: python benchmarks/determinism.py [--rows NAME ...] [--libraries FOLDER ...] [--runs 20] [--again]

Quantizes a small residual network (convolutions, depthwise among them; W4A4, few iterations, one thread) again and again, half
of the runs in each of two fresh processes whose hashes of text, working folder and temporary folder differ. What the bytes may
depend on is changed one thing at a time in further rows: files of the sample are compared with those made without the change. A
FOLDER of --libraries has another onnxruntime or torch in it (a site-packages), which is taken in place of the installed one; with
--rows these are measured alone.

Rows are merged by name into benchmarks/results/determinism.json; determinism.md is written from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _experiment import RESULTS
from _memory import caching
from _record import header

from mrecg_onnx.converters.files import write_whole
from mrecg_onnx.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
#: Fresh processes that share the runs of a row.
PROCESSES = 2
SETTINGS: dict[str, Any] = {
    "method": "brecq", "wbits": 4, "abits": 4, "iters": 5, "samples": 24, "batch_size": 16, "threads": 1, "equalize": "off",
    "range": "mse", "range_samples": 8, "lapq_evaluations": 20, "lapq_images": 16, "zeroq_iters": 10,
}  # fmt: skip
#: Settings of each row that is made again and again, and how a run of it is made where that is not one call.
REPEATED: dict[str, dict[str, Any]] = {
    **{f"method {name}": {"method": name} for name in METHODS},
    "all at its default but images and iterations": {"method": "mrecg", "equalize": "auto", "range": "output"},
    "finish": {"finish": 8},
    "calib zeroq": {"calib": "zeroq", "samples": 16},
    "equalize, relu6, absorb, bias-correction": {
        "equalize": "auto", "relu6": "auto", "absorb": "auto", "bias_correction": True, "method": "nearest",
    },
    "avg-wbits (sensitivities, integer programming)": {"avg_wbits": 3.5, "method": "nearest"},
    "allocate milp": {"allocate": "milp", "method": "nearest"},
    "protect": {"protect": 2, "method": "nearest"},
    "augment crop": {"augment": "crop"},
    "qdrop, loss fisher": {"method": "qdrop", "loss": "fisher"},
    "rounding flexround": {"rounding": "flexround"},
    "activations cached on disk": {"way": "on disk"},
    "finish with memory 700MB": {"finish": 8, "memory": 7 * 10**8},
    "finish, other memory free in every run": {"finish": 8, "way": "free memory"},
    "stopped behind a unit and resumed from its checkpoint": {"method": "mrecg", "way": "resumed"},
    "two processes (torchrun, gloo)": {"way": "together"},
}  # fmt: skip
#: The same as another row: what is kept, resumed or spilled is what is computed at once.
SAME_AS = {
    "activations cached on disk": "method brecq",
    "finish with memory 700MB": "finish",
    "finish, other memory free in every run": "finish",
    "stopped behind a unit and resumed from its checkpoint": "method mrecg",
}
#: What is changed of the environment, or of the settings, and what is known of it.
CHANGED: dict[str, dict[str, Any]] = {
    "2 threads instead of 1": {"settings": {"threads": 2}},
    "ATEN_CPU_CAPABILITY=avx2": {"environment": {"ATEN_CPU_CAPABILITY": "avx2"}},
    "ATEN_CPU_CAPABILITY=default": {"environment": {"ATEN_CPU_CAPABILITY": "default"}},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"environment": {"ONEDNN_MAX_CPU_ISA": "AVX2"}},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"environment": {"ONEDNN_MAX_CPU_ISA": "SSE41"}},
}
#: Methods whose files are compared where something is changed: without and with learning.
COMPARED = ("nearest", "mrecg")
#: Units behind one of which a run is stopped.
STOPS = 6
#: Bytes that are left for activations where they change from run to run.
ROOMS = (0, 10**6, 10**7, 10**9)
#: What may be in a folder of its own, and the modules that belong to it.
LIBRARIES = {"onnxruntime": ("onnxruntime",), "torch": ("torch", "torchgen", "functorch")}
#: Where a process says which of them it used.
LOADED = "loaded"
CHANGED_SETTINGS = {"equalize": "auto", "range": "output", "iters": 30}


# --- one process ---------------------------------------------------------------------------------------------------------


def child(job: dict[str, Any]) -> dict[str, list[str]]:
    """SHA-256 of the file of every run by row, which is left in ``job["folder"]``."""
    import mrecg_onnx  # noqa: PLC0415 - the parent loads no torch

    found: dict[str, list[str]] = {}
    for number, (name, given) in enumerate(job["rows"].items()):
        chosen = SETTINGS | given
        way, calib = chosen.pop("way", None), chosen.pop("calib", job["calib"])
        model = SAMPLES / "digits.onnx" if calib == "zeroq" else Path(job["model"])  # which has BatchNormalization
        settings, output = mrecg_onnx.Settings(**chosen), Path(job["folder"]) / f"{number}.onnx"
        for run in range(job["runs"]):
            with tempfile.TemporaryDirectory() as folder:
                more: dict[str, Any] = {"checkpoint": folder} if way == "resumed" else {}
                if way == "resumed":
                    _stopped(model, settings, calib, run % STOPS, more)
                room = {"on disk": 0, "free memory": ROOMS[run % len(ROOMS)]}.get(way)
                with caching(room):
                    mrecg_onnx.quantize(model, calib, settings, output=output, **more)
            found.setdefault(name, []).append(hashlib.sha256(output.read_bytes()).hexdigest())
        print(name, file=sys.stderr, flush=True)
    return found | {LOADED: [f"{name} {sys.modules[name].__version__}" for name in LIBRARIES]}


def _stopped(model: Path, settings: Any, calib: str, number: int, more: dict[str, Any]) -> None:
    """A run that ends behind its ``number``-th unit."""
    import mrecg_onnx  # noqa: PLC0415

    seen: list[Any] = []

    def report(progress: Any) -> None:
        if progress.result is not None:
            seen.append(progress)
        if len(seen) > number:
            raise KeyboardInterrupt

    try:
        mrecg_onnx.quantize(model, calib, settings, progress=report, **more)
    except KeyboardInterrupt:
        return
    raise RuntimeError("the run was not stopped")


def start(job: dict[str, Any], seed: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A fresh process at work, in a folder of its own."""
    program = [sys.executable]
    if "together" in (row.get("way") for row in job["rows"].values()):
        program += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    own = {"PYTHONHASHSEED": str(seed), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [*program, __file__, "--child", json.dumps(job)]
    return subprocess.Popen(command, env=os.environ | own | environment, cwd=folder, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, list[str]]:
    """What the process found."""
    said, _ = process.communicate()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    found: dict[str, list[str]] = json.loads(lines[-1])
    return found


def network(folder: Path) -> dict[str, str]:
    """The small network of the tests and its images."""
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx  # noqa: PLC0415
    from helpers.command_line import classifier, write_images  # noqa: PLC0415

    onnx.save(classifier(), folder / "model.onnx")
    return {"model": str(folder / "model.onnx"), "calib": str(write_images(folder / "images", 24))}


# --- rows ----------------------------------------------------------------------------------------------------------------


def repeat(names: list[str], runs: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of runs that should be the same."""
    rows = {name: REPEATED[name] for name in names}
    folder.mkdir()
    job = network(folder) | {"rows": rows, "runs": -(-runs // PROCESSES)}
    started = [start(job | {"folder": str(folder / f"process {i}")}, i + 1, {}) for i in range(PROCESSES)]
    answers = [answer(process) for process in started]
    found = []
    for name in names:
        seen = [file for one in answers for file in one[name]]
        found.append({"what": name, "runs": len(seen), "identical": seen.count(seen[0]), "note": "", "file": seen[0]})
    return found


def note_same(rows: dict[str, Any]) -> None:
    """Say of rows that should make another one's file whether they do."""
    for name, other in SAME_AS.items():
        if name in rows and other in rows:
            same = rows[name]["file"] == rows[other]["file"]
            rows[name]["note"] = f"{'the file' if same else 'NOT the file'} of: {other}"


def change(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row of files with one thing changed, against those without."""
    sample = {"model": str(SAMPLES / "digits.onnx"), "calib": str(SAMPLES / "calib"), "runs": 1}

    def made(name: str, settings: dict[str, Any], environment: dict[str, str]) -> list[Path]:
        rows = {method: CHANGED_SETTINGS | settings | {"method": method} for method in COMPARED}
        found = answer(start(sample | {"rows": rows, "folder": str(folder / name)}, 1, environment))
        if name == "changed" and entry.get("loaded", found[LOADED][0]) not in found[LOADED]:
            raise SystemExit(f"{entry['loaded']} was not used, but {', '.join(found[LOADED])}")
        return [folder / name / f"{number}.onnx" for number in range(len(COMPARED))]

    plain = [folder / "plain" / f"{number}.onnx" for number in range(len(COMPARED))]
    if not all(path.exists() for path in plain):
        plain = made("plain", {}, {})
    identical, notes = 0, []
    pairs = zip(COMPARED, plain, made("changed", entry.get("settings", {}), entry.get("environment", {})), strict=True)
    for method, before, after in pairs:
        same, note = compared(before, after)
        identical += same
        notes.append(f"{method}: {note}")
    return {"runs": len(COMPARED), "identical": identical, "note": "; ".join(notes)}


def compared(plain: Path, changed: Path) -> tuple[bool, str]:
    """Whether two files have the same tensors, and how far they lie apart on images."""
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    from mrecg_onnx.data import open_validation  # noqa: PLC0415
    from mrecg_onnx.running import input_specs, open_session  # noqa: PLC0415
    from mrecg_onnx.validating import stored_preprocess  # noqa: PLC0415

    tensors = []
    for path in (plain, changed):
        graph = onnx.load(path).graph
        tensors.append({t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer})
    one, other = tensors
    if one.keys() == other.keys() and all(np.array_equal(x, other[n]) for n, x in one.items()):
        return True, "the same tensors"
    codes = [n for n, x in one.items() if x.dtype == np.int8 and x.size > 1 and n.endswith("_quantized")]
    total = sum(one[n].size for n in codes)
    moved = sum(int((one[n] != other[n]).sum()) if n in other else one[n].size for n in codes)
    session = open_session(plain, threads=1)
    data = open_validation(SAMPLES / "val", input_specs(session), stored_preprocess(session, str(plain)))
    feeds = data.load(200)
    made = [open_session(path, threads=1).run(None, feeds)[0] for path in (plain, changed)]
    noise = float(((made[0] - made[1]) ** 2).sum())
    distance = 10 * np.log10(float((made[0] ** 2).sum()) / noise) if noise else np.inf
    agree = float((made[0].argmax(1) == made[1].argmax(1)).mean())
    return (
        False,
        f"{moved} of {total} weight codes differ, outputs {distance:.0f} dB apart, {agree:.3f} of predictions agree",
    )


#: What could not be measured on this machine.
UNMEASURED = {
    "CUDA, the same device again": "not measured here: sums of cuDNN and of atomic additions have no fixed order, so files may "
    "differ in last digits and in codes on an edge",
    "CUDA instead of the CPU": "not measured here: other kernels, other order of sums; as between instruction sets",
    "CUDA whose memory runs out": "not measured here: the images of an iteration go in parts then, which is said, and sums are "
    "in another order",
}


def page(rows: list[dict[str, Any]]) -> str:
    head, installed = rows[0]["header"], rows[-1]["header"]["versions"]
    lines = [
        "# The same bytes again", "",
        "Written by `python benchmarks/determinism.py`; commands, dates, versions and machine of each row in determinism.json.",
        f"A small residual network, W4A4, {SETTINGS['iters']} iterations, one thread, {head['machine']}.", "",
        "## The same settings again, in fresh processes with other hashes and folders", "",
        "| what | runs | identical | |", "|---|---|---|---|",
        *(f"| {r['what']} | {r['runs']} | {r['identical']} | {r['note']} |" for r in rows if r["kind"] == "repeated"), "",
        "## One thing changed", "",
        f"The sample by {' and '.join(COMPARED)} ({CHANGED_SETTINGS['iters']} iterations, ranges and equalization as by default)",
        "against those without the change; tensors are compared, as the metadata name threads. Without it torch is",
        f"{installed['torch']} and ONNX Runtime {installed.get('onnxruntime-gpu') or installed['onnxruntime']}.",
        "", "| what | files | identical | |", "|---|---|---|---|",
        *(f"| {r['what']} | {r['runs']} | {r['identical']} | {r['note']} |" for r in rows if r["kind"] == "changed"),
        *(f"| {what} | - | - | {note} |" for what, note in UNMEASURED.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def libraries(folders: list[Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """A change for each library of a folder: it alone in front of the others."""
    found = {}
    for number, folder in enumerate(folders):
        for name, parts in LIBRARIES.items():
            if not (folder / name).is_dir():
                continue
            alone = scratch / f"{name}{number}"
            alone.mkdir()
            for part in (part for part in parts if (folder / part).exists()):
                (alone / part).symlink_to((folder / part).resolve())
            (named,) = folder.glob(f"{name}-*.dist-info")
            (alone / named.name).symlink_to(named.resolve())
            path = os.pathsep.join([str(alone), *filter(None, [os.environ.get("PYTHONPATH")])])
            version = named.name.removesuffix(".dist-info").split("-")[1]
            said = folder / name / "version.py"  # which build it is, too
            found_in = re.search(r"^__version__ = '([^']+)'", said.read_text(), re.MULTILINE) if said.exists() else None
            version = found_in[1] if found_in else version
            found[f"{name} {version}"] = {"environment": {"PYTHONPATH": path}, "loaded": f"{name} {version}"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", help="names of rows; all by default")
    parser.add_argument("--libraries", type=Path, action="append", default=[], help="a site-packages folder")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(child(args.child)), flush=True)
        return
    head = header()
    head["command"] = "python benchmarks/determinism.py" + (" --libraries FOLDER" if args.libraries else "")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        changes = CHANGED | (others := libraries(args.libraries, scratch))
        wanted = [what for what in [*REPEATED, *changes] if args.rows is None or what in args.rows or what in others]
        wanted = [what for what in wanted if args.again or what not in kept()]
        alone = [what for what in wanted if REPEATED.get(what, {"way": "together"}).get("way") != "together"]
        several = [what for what in wanted if what in REPEATED and what not in alone]
        for group in filter(None, (alone, several)):
            for row in repeat(group, args.runs, scratch / f"repeated{len(group)}"):
                keep(row["what"], row | {"kind": "repeated"}, head)
        for what in (entry for entry in wanted if entry in changes):
            keep(what, {"what": what, **change(changes[what], scratch), "kind": "changed"}, head)
    write_whole(RESULTS / "determinism.md", page(list(kept().values())))


def kept() -> dict[str, dict[str, Any]]:
    """The rows that are there, by name."""
    store = RESULTS / "determinism.json"
    return {row["what"]: row for row in json.loads(store.read_text())["rows"]} if store.exists() else {}


def keep(what: str, row: dict[str, Any], head: dict[str, Any]) -> None:
    """Put a row among those that are there."""
    print(json.dumps(row), flush=True)
    rows = kept() | {what: row | {"header": head}}
    rows = {name: one for name, one in rows.items() if name in REPEATED or one["kind"] == "changed"}
    note_same(rows)
    ordered = [rows[name] for name in dict.fromkeys([*REPEATED, *CHANGED, *rows]) if name in rows]
    write_whole(RESULTS / "determinism.json", json.dumps({"rows": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
