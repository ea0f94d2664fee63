"""Several processes at one model: the result of one, written once, and a clear end where one of them is gone.

Everything here runs on the CPU through gloo; torchrun is started as a user would, and seldom: it takes seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from helpers.architectures import Graph
from helpers.stages import feeds
from PIL import Image

from mrecg_onnx import preparation
from mrecg_onnx.converters.errors import DataError, SettingsError, WorkerError
from mrecg_onnx.data import Dataset, InputSpec, Preprocess, check_lost, open_calibration, open_validation
from mrecg_onnx.machine import parallel
from mrecg_onnx.machine.parallel import ALONE, Workers, is_first, joined, local_size
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate

if TYPE_CHECKING:
    from mrecg_onnx.validating import ValidationResult

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"method": "qdrop", "wbits": 2, "iters": 20, "batch_size": 16, "equalize": "off"}
#: Enough of everything for the learning to differ little from seed to seed (standard deviation 0.5 to 1.4 dB).
STEADY: dict[str, Any] = {**SETTINGS, "wbits": 3, "iters": 200, "range": "mse", "range_samples": 8}
#: The whole network learned together, right after rounding to nearest.
WHOLE: dict[str, Any] = {**SETTINGS, "method": "nearest", "range": "mse", "finish": 60}
UNITS = 3


def small() -> onnx.ModelProto:
    """Stem, a residual block and a classifier on images of 3 x 16 x 16: three units."""
    g = Graph(seed=5)
    x = g.relu(g.conv(g.input(3), 3, 8, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 8, 8, "conv1"), "relu1")
    x = g.relu(g.op("Add", [g.conv(y, 8, 8, "conv2"), x], "add"), "add_relu")
    g.classifier(x, 8)
    return g.model()


# --- two processes -----------------------------------------------------------------------------------------------

#: What each of two processes does, one after the other, and what it saw.
TOGETHER = """
import hashlib, json, os, sys
from pathlib import Path
import numpy as np
import torch
from mrecg_onnx import Settings, preparation, quantize, validate
from mrecg_onnx.commands import main
from mrecg_onnx.converters.errors import DataError, MrecgError
from mrecg_onnx.machine.parallel import is_first, joined, local_size

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
seen = {}

def failure(call):
    try:
        call()
    except (MrecgError, SystemExit) as error:
        return [type(error).__name__, str(error)]
    return None

def refuses():
    raise DataError("no such image")

with joined("cpu") as workers:
    seen["who"] = [workers.rank, workers.size, workers.first, is_first(), local_size()]
    a, b, empty = torch.tensor([[1.0, 2.0]]) * (rank + 1), torch.tensor(10.0 * rank), torch.empty(0)
    workers.mean_([a, b, empty])
    workers.mean_([])
    seen["mean"] = [a.tolist(), b.tolist()]
    seen["total"] = workers.total([rank + 1, 0.5])
    seen["gather"] = workers.gather({"rank": rank})
    seen["once"] = workers.once(lambda: {"rank": rank, "codes": torch.full((2,), float(rank))})["codes"].tolist()
    seen["failure"] = failure(lambda: workers.once(refuses))
    seen["after"] = workers.total([1])

def ordered(outputs, targets):
    return float((np.arange(len(outputs)) * (outputs.argmax(1) + targets)).sum())

told = []
settings = Settings(**json.loads(sys.argv[1]))
result = quantize("model.onnx", "calib.npz", settings, output="two.onnx", progress=told.append)
seen["told"] = len(told)
seen["images"] = result.images
seen["result"] = result.to_json()
quantize("model.onnx", "calib.npz", Settings(**json.loads(sys.argv[2])), output="steady.onnx")
seen["losses"] = [[unit.loss, unit.loss_nearest, unit.kept] for unit in result.units]

end = quantize("model.onnx", "calib.npz", Settings(**json.loads(sys.argv[3])))
digest = hashlib.sha256(end.model.SerializeToString()).hexdigest()
seen["finished"] = [digest, end.finished.kept, end.finished.loss_nearest, end.finished.loss]

# Each process has a folder of its own, as on two machines.
searched = []
search = preparation.activation_grids
preparation.activation_grids = lambda *a, **k: searched.append(len(k["only"])) or search(*a, **k)
nearest = Settings(method="nearest", wbits=4, abits=4)
seen["prepared"] = []
for _ in range(2):
    made = quantize("model.onnx", "calib.npz", nearest, checkpoint=f"prepared{rank}").model.SerializeToString()
    seen["prepared"].append([hashlib.sha256(made).hexdigest(), len(searched)])
preparation.activation_grids = search

np.save("few.npy", np.load("calib.npz")["input"][:3]) if rank == 0 else None
with joined("cpu") as workers:
    workers.total([0])
seen["few"] = failure(lambda: quantize("model.onnx", "few.npy", settings, output="never.onnx"))
seen["usage"] = failure(lambda: main(["quantize", "model.onnx", "--calib", "calib.npz", "--batch-size", "3"]))
seen["unwritable"] = failure(lambda: quantize("model.onnx", "calib.npz", settings, output="no/such/folder.onnx"))

for name, options in {"whole": {}, "one": {"limit": 1}}.items():
    told.clear()
    options |= {"preprocess": "imagenet", "repeats": 0, "progress": told.append, "batch_size": 4, "metric": ordered}
    found = validate("model.onnx", "two.onnx", "labelled", **options)
    seen[name] = found.to_json()
    seen[name + "_told"] = [str(one) for one in told[-1:]]

tasks = Path("/proc/self/task")  # only Linux tells the names of threads
seen["threads"] = [name for task in tasks.glob("*/comm") if "gloo" in (name := task.read_text())]

with open(f"rank{rank}.json", "w") as file:
    json.dump(seen, file)
"""

#: The command line in processes of which the second dies in its second unit.
DYING = """
import os, sys
from mrecg_onnx.learning import learner
from mrecg_onnx.commands import main

original, units = learner.reconstruct_unit, []

def dies(*arguments, **options):
    units.append(arguments[0])
    if os.environ["RANK"] == "1" and len(units) == 2:
        os._exit(1)
    return original(*arguments, **options)

learner.reconstruct_unit = dies
main(sys.argv[1:])
"""


def torchrun(folder: Path, *command: str, interval: float = 0.1) -> subprocess.CompletedProcess[str]:
    """Run ``command`` (a script and its arguments) in two processes, which torchrun looks after every ``interval`` s."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}} | {"OMP_NUM_THREADS": "1"}
    arguments = [*launcher, "--monitor-interval", str(interval), *command]
    with subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said, wrong = process.communicate(timeout=120)
        except BaseException:
            # Its workers, each in a session of its own, would stay behind, holding this process at their pipes.
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, said, wrong)


def quantize_command(output: str) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    return ["quantize", "model.onnx", "--calib", "calib.npz", *options, "-o", output]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """Model, calibration arrays, labelled images."""
    folder = tmp_path_factory.mktemp("parallel")
    onnx.save(small(), folder / "model.onnx")
    np.savez(folder / "calib.npz", **feeds(small(), 192))
    random = np.random.default_rng(0)
    for number in range(23):
        path = folder / "labelled" / str(number % 10) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def together(here) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    (here / "together.py").write_text(TOGETHER, encoding="utf-8")
    done = torchrun(here, "together.py", json.dumps(SETTINGS), json.dumps(STEADY), json.dumps(WHOLE))
    assert done.returncode == 0, done.stderr
    return [json.loads((here / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_workers_exchange(together):
    assert [seen["who"] for seen in together] == [[0, 2, True, True, 2], [1, 2, False, False, 2]]
    for seen in together:
        assert seen["mean"] == [[[1.5, 3.0]], 5.0]
        assert seen["total"] == [3.0, 1.0]
        assert seen["gather"] == [{"rank": 0}, {"rank": 1}]
        assert seen["once"] == [0.0, 0.0]


def test_what_the_first_process_raises_all_raise_and_go_on(together):
    for seen in together:
        assert seen["failure"] == ["DataError", "no such image"]
        assert seen["after"] == [2.0]
        assert seen["unwritable"][0] == "ExportError"
        assert seen["unwritable"][1].startswith("no/such/folder.onnx: ")


def test_both_return_the_result_and_one_reports(together):
    first, second = together
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == UNITS
    assert first["images"] == second["images"] == 192
    assert first["told"] > 0
    assert second["told"] == 0


def test_what_is_kept_before_the_learning_is_the_first_process_s(here, together):
    """It reads and writes the folder, and decides; the other gets its decisions and has no such folder."""
    (first, again), (other, other_again) = (seen["prepared"] for seen in together)
    assert first == [first[0], 1]
    assert again == first
    assert other == other_again == [first[0], 0]
    assert {path.name for path in (here / "prepared0").iterdir()} == {"prepared"}
    assert len(list((here / "prepared0" / "prepared").iterdir())) == 3
    assert not (here / "prepared1").exists()


def test_no_thread_of_the_group_is_left_to_abort_the_end_of_the_process(together):
    """Threads of gloo that hold tensors when the interpreter ends abort it, in one of eight jobs on a busy machine."""
    assert [seen["threads"] for seen in together] == [[], []]


def distance(here: Path, path: Path) -> float:
    """Output SQNR of a file against the float model on inputs that were not seen, in dB."""
    fed = feeds(small(), 128, seed=99)
    return sqnr_db(*(run_padded(open_session(p, level="off"), fed)["output"] for p in (here / "model.onnx", path)))


def test_all_processes_return_the_same_result(together):
    first, second = (seen["result"] for seen in together)
    assert first == second
    assert first["seconds"]["verify"] > 0


def test_two_processes_learn_what_one_does(here, together, tmp_path):
    found = {"two": distance(here, here / "steady.onnx")}
    for name, method in (("one", "qdrop"), ("nearest", "nearest")):
        settings = Settings(**STEADY | {"method": method})
        quantize(here / "model.onnx", here / "calib.npz", settings, output=tmp_path / "out.onnx")
        found[name] = distance(here, tmp_path / "out.onnx")
    assert found["two"] == pytest.approx(found["one"], abs=4.0)
    assert min(found["two"], found["one"]) > found["nearest"] + 6, found


def test_two_processes_finish_a_network_as_one_does(here, together):
    """Each sees half of the images; the judge's are those of both."""
    first, second = (seen["finished"] for seen in together)
    assert first == second
    _, kept, before, after = first
    alone = quantize(here / "model.onnx", here / "calib.npz", Settings(**WHOLE)).finished
    assert alone is not None
    assert kept == alone.kept == "learned"
    assert after < 0.7 * before
    assert after == pytest.approx(alone.loss, rel=0.5)


def test_batch_that_cannot_be_divided_is_a_usage_error(here, together):
    assert all(seen["usage"] == ["SystemExit", "2"] for seen in together)
    assert not list(here.glob("model_*.onnx"))


def test_too_few_images_for_all_are_refused(here, together):
    for seen in together:
        assert seen["few"] == ["DataError", "3 calibration images are too few for 2 processes: each needs two"]
    assert not (here / "never.onnx").exists()


def alone(here: Path, **options: Any) -> ValidationResult:
    def ordered(outputs: Any, targets: Any) -> float:
        return float((np.arange(len(outputs)) * (outputs.argmax(1) + targets)).sum())

    given = {"preprocess": "imagenet", "repeats": 0, "metric": ordered, **options}
    return validate(here / "model.onnx", here / "two.onnx", here / "labelled", **given)


@pytest.mark.parametrize(("name", "options"), [("whole", {}), ("one", {"limit": 1})])
def test_shared_validation_counts_what_one_process_counts(here, together, name, options):
    """A process may have no image at all."""
    expected = alone(here, **options).to_json()
    assert expected["images"] == (1 if options else 23)
    for seen in together:
        found = seen[name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if key in {"fp32", "quantized"}:
                assert (found[key]["top1"], found[key]["top5"]) == (value["top1"], value["top5"])
            elif key.startswith("sqnr"):
                assert found[key] == pytest.approx(value, abs=1e-3)  # summed in another order
            else:
                assert found[key] == value, key
    assert together[0][f"{name}_told"]
    assert not together[1][f"{name}_told"]


@pytest.fixture(scope="module")
def died(here) -> subprocess.CompletedProcess[str]:
    (here / "dying.py").write_text(DYING, encoding="utf-8")
    # The interval gives the process that is left the time to say what it saw before torchrun ends it.
    return torchrun(here, "dying.py", *quantize_command("again.onnx"), "--checkpoint", "kept", interval=3)


@pytest.mark.slow
def test_lost_process_ends_the_job_in_one_line(here, died):
    assert died.returncode != 0
    said = [line for line in died.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert said[0].startswith("Error: another process of this job ended or cannot be reached")
    assert "--checkpoint" in said[0]
    # torch 2.8 says there who is connected.
    assert [line for line in died.stdout.splitlines() if not line.startswith("[Gloo] Rank ")] == []
    assert not (here / "again.onnx").exists()
    assert sorted(path.name for path in (here / "kept").iterdir() if path.is_file()) == [
        "reconstruct-0000.pt",
        "run.json",
    ]


@pytest.mark.slow
def test_same_command_goes_on_after_a_lost_process(here, together, died):
    """From the checkout's door; the file is the one of two processes that were never disturbed."""
    kept = (here / "kept" / "reconstruct-0000.pt").stat().st_mtime_ns
    before = {path.name for path in here.iterdir()}
    done = torchrun(here, str(ROOT / "cli.py"), *quantize_command("again.onnx"), "--checkpoint", "kept")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in here.iterdir()} - before == {"again.onnx", "again.toml"}
    assert (here / "kept" / "reconstruct-0000.pt").stat().st_mtime_ns == kept
    assert (here / "again.onnx").read_bytes() == (here / "two.onnx").read_bytes()
    assert done.stdout.count("output   ") == 1
    assert done.stdout.count("Next: ") == 1
    assert done.stderr.count("reconstruct 1/3 ") == done.stderr.count("reconstruct 3/3 ") == 1


# --- one process -------------------------------------------------------------------------------------------------


def test_alone_nothing_is_exchanged():
    assert (ALONE.rank, ALONE.size, ALONE.first) == (0, 1, True)
    x = torch.tensor([1.0, 2.0])
    ALONE.mean_([x])
    assert x.tolist() == [1.0, 2.0]
    assert ALONE.total([1.5, 2]) == [1.5, 2]
    value = object()
    assert ALONE.gather(value) == [value]
    assert ALONE.once(lambda: value) is value
    with pytest.raises(DataError, match="why"):
        ALONE.once(lambda: (_ for _ in ()).throw(DataError("why")))


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "1"}], ids=str)
def test_without_torchrun_there_is_one_process(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with joined("cpu") as workers:
        assert workers is ALONE
    assert is_first()
    assert local_size() == 1
    assert not torch.distributed.is_initialized()


@pytest.fixture
def meeting(monkeypatch) -> dict[str, str]:
    """An environment of two processes that meet at a free port; nobody has met before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    parallel._meeting_place.cache_clear()
    monkeypatch.setattr(parallel, "_groups", itertools.count())
    settings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.mark.parametrize("rank", [0, 1])
def test_others_that_never_come_are_waited_for_as_long_as_the_environment_says(monkeypatch, meeting, rank):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("MRECG_ONNX_JOIN_SECONDS", "1")
    began = time.monotonic()
    wanted = "not all of the 2 processes of this job came within 1 seconds"
    with pytest.raises(WorkerError, match=wanted) as raised, joined("cpu"):
        pass
    assert time.monotonic() - began < 60
    said = str(raised.value)
    assert f"rank {rank}" in said
    assert f"127.0.0.1:{meeting['MASTER_PORT']}" in said
    assert "MRECG_ONNX_JOIN_SECONDS" in said
    assert "\n" not in said
    assert is_first() == (rank == 0)


def test_one_of_them_that_reached_the_store_waits_no_longer(monkeypatch, meeting):
    """As under an agent of torchrun, which has a store before there is anybody."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(parallel, "_meeting_place", lambda: store)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MRECG_ONNX_JOIN_SECONDS", "1")
    with pytest.raises(WorkerError, match="came within 1 seconds"), joined("cpu"):
        pass


def test_later_groups_have_time(monkeypatch):
    monkeypatch.setenv("MRECG_ONNX_JOIN_SECONDS", "7")
    assert parallel._patience(0) == timedelta(seconds=7)
    assert parallel._patience(1) == parallel.PATIENCE
    monkeypatch.delenv("MRECG_ONNX_JOIN_SECONDS")
    assert parallel._patience(0) == timedelta(minutes=5)


@pytest.mark.parametrize("seconds", ["0", "-3", "soon", "1" * 40])
def test_time_to_wait_is_above_nothing(monkeypatch, meeting, seconds):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MRECG_ONNX_JOIN_SECONDS", seconds)
    with (
        pytest.raises(SettingsError, match=f"MRECG_ONNX_JOIN_SECONDS='{seconds[:32]}' in the environment"),
        joined("cpu"),
    ):
        pass


def test_only_the_first_is_first():
    assert [Workers(rank, 3).first for rank in range(3)] == [True, False, False]


# --- shares ------------------------------------------------------------------------------------------------------


SPEC = InputSpec("input", (None, 3, 16, 16), np.dtype(np.float32))


@pytest.mark.parametrize("size", [1, 2, 3, 30])
def test_shares_of_images_are_disjoint_and_whole(here, size):
    whole = open_validation(here / "labelled", [SPEC], Preprocess())
    shares = [whole.shard(rank, size) for rank in range(size)]
    assert whole.files is not None
    assert sorted(path for share in shares for path in share.files or []) == sorted(whole.files)
    assert sum(len(share) for share in shares) == len(whole) == 23
    for share in shares:
        assert share.labels is not None
        assert share.files is not None
        assert share.labels.tolist() == [int(path.parent.name) for path in share.files]
    images = whole.load()["input"]
    if size == 3:
        assert np.array_equal(shares[1].load()["input"], images[1::3])


@pytest.mark.parametrize("samples", [None, 20])
def test_shares_of_arrays_are_disjoint_and_whole(here, samples):
    whole = open_calibration(here / "calib.npz", [SPEC], Preprocess(), samples=samples)
    images = whole.load()["input"]
    shares = [whole.shard(rank, 3).load()["input"] for rank in range(3)]
    assert all(np.array_equal(share, images[rank::3]) for rank, share in enumerate(shares))
    assert sum(map(len, shares)) == (samples or 192)


def test_unreadable_images_count_against_the_whole_set(tmp_path):
    """One of forty is no matter, though it is a tenth of its share; three of forty are too many, one a share."""
    for number in range(40):
        Image.fromarray(np.full((16, 16, 3), 6 * number, np.uint8)).save(tmp_path / f"{number:02d}.png")

    def shares() -> list[Dataset]:
        whole = open_calibration(tmp_path, [SPEC], Preprocess())
        found = [whole.shard(rank, 4) for rank in range(4)]
        for share in found:
            share.load()
        return found

    (tmp_path / "01.png").write_bytes(b"not an image")
    assert [len(share.skipped) for share in shares()] == [0, 1, 0, 0]
    for number in (2, 3):
        (tmp_path / f"{number:02d}.png").write_bytes(b"not an image")
    lost = [f"{path} ({reason})" for share in shares() for path, reason in share.skipped]
    assert len(lost) == 3
    check_lost(lost[:2], 40)
    with pytest.raises(DataError, match=r"more than 5% of 40 images cannot be read \(3 so far\): .*01\.png"):
        check_lost(lost, 40)


def test_fingerprint_tells_data_apart(here):
    def of(path: str, **options: Any) -> str:
        return open_calibration(here / path, [SPEC], options.pop("preprocess", Preprocess()), **options).fingerprint()

    found = [
        of("calib.npz"), of("calib.npz", samples=20), of("calib.npz", samples=20, seed=1),
        of("labelled"), of("labelled", samples=20), of("labelled", preprocess=Preprocess(scale=1.0)),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert [of("calib.npz"), of("labelled")] == [found[0], found[3]]


def test_unreadable_images_of_a_share_are_reported(here, tmp_path, monkeypatch):
    """Also those that only the learning comes across."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(40):
        Image.fromarray(np.full((16, 16, 3), 6 * number, np.uint8)).save(images / f"{number:02d}.png")
    (images / "01.png").write_bytes(b"not an image")
    monkeypatch.setattr(preparation, "HEAD", 4)
    chosen = Settings(**{**SETTINGS, "iters": 1, "range_samples": 4})
    result = quantize(here / "model.onnx", images, chosen)
    assert result.images == 39
    assert [Path(entry.split(" (")[0]).name for entry in result.skipped] == ["01.png"]
