"""Ranges in scale and zero point: networks with small negative lobes, and two that have none, before and after.

usage: python benchmarks/silu.py [--data ../shared] [--before PYTHON] [--only REGEX] [--again] [--draw]

Trains one small network each with SiLU, Hardswish and GELU on the 1,020 calibration images of CIFAR-10 (the labels are in
the file names; flips and crops; seeded, one thread, under a minute of CPU time each) and quantizes it, those of the zoo
(of the tests, random weights, noise) and the real networks. ``--before`` is the interpreter of an environment with an earlier
build: its rows are called "before". Top-1 and SQNR by the referee, those of the zoo by ONNX Runtime here. Rows are merged by
key into benchmarks/results/silu.json (.csv); silu.md is written from them.
"""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from _experiment import BUILD, NAMES, RESULTS, Rows, arguments, machine, referee

ROOT = Path(__file__).parent.parent
TRAINED = {"silu": "SiLU", "hardswish": "Hardswish", "gelu": "GELU"}
ZOO = {
    "efficientnet_b0": "SiLU",
    "yolo": "SiLU",
    "mobilenet_v3": "Hardswish",
    "convnext": "GELU",
    "vit": "GELU",
    "segformer": "GELU",
}
EPOCHS, BATCH, RATE, DECAY = 60, 51, 0.1, 1e-3
#: (network, widths, further options), in the order of the table.
POINTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    *((name, "W4A4", ("--method", "nearest")) for name in TRAINED),
    *(("silu", "W4A4", ("--method", "nearest", "--range", name)) for name in ("mse", "percentile", "entropy", "aciq")),
    *((name, "W4A4", ("--method", "brecq", "--iters", "100")) for name in TRAINED),
    *((name, "W4A4", ("--method", "nearest")) for name in ZOO),
    *(("resnet20_cifar10", widths, ("--method", "nearest")) for widths in ("W4A4", "W8A8")),
    *(("mobilenetv2_imagenet", widths, ("--method", "nearest")) for widths in ("W4A4", "W8A8", "W4A8")),
)  # fmt: skip


def train(name: str, data: Path) -> Path:
    """The trained network in ONNX; kept in the build folder."""
    import numpy as np  # noqa: PLC0415 - torch is heavy and --help does not need it
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    path = BUILD / f"silu-{name}.onnx"
    if path.exists():
        return path
    torch.set_num_threads(1)
    act = {"silu": nn.SiLU, "hardswish": nn.Hardswish, "gelu": nn.GELU}[name]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    folder = data / "data" / "cifar10"
    classes = sorted(p.name for p in (folder / "val").iterdir() if p.is_dir())
    files = sorted((folder / "calib").glob("*.jpg"))
    images = [(np.asarray(Image.open(f).convert("RGB"), np.float32) / 255 - mean) / std for f in files]
    x = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
    y = torch.tensor([classes.index(f.name.split("_")[0]) for f in files])

    def block(cin: int, cout: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), act())

    torch.manual_seed(0)
    body = [block(3, 24), block(24, 32, 2), block(32, 32), block(32, 64, 2), block(64, 64), block(64, 96, 2)]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            batch = x[chosen]
            flip = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(flip[:, None, None, None], batch.flip(3), batch)
            padded = nn.functional.pad(batch, (4, 4, 4, 4), mode="reflect")
            left, top = torch.randint(0, 9, (2, len(batch)), generator=generator).tolist()
            crops = [p[:, j : j + 32, i : i + 32] for p, i, j in zip(padded, left, top, strict=True)]
            loss = loss_of(net(torch.stack(crops).contiguous(memory_format=torch.channels_last)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["scores"]}
    free = {"input": {0: "n"}, "scores": {0: "n"}}
    torch.onnx.export(net, (x[:2],), str(path), dynamo=False, opset_version=17, dynamic_axes=free, **names)
    return path


def zoo(name: str) -> tuple[Path, Path]:
    """A network of the zoo and noise to calibrate on; the second half of the noise is for the SQNR."""
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    sys.path[:0] = [str(ROOT / "tests")]
    from helpers.networks import Case  # noqa: PLC0415 - of the tests
    from helpers.stages import feeds  # noqa: PLC0415

    path, noise = BUILD / f"silu-{name}.onnx", BUILD / f"silu-{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = Case(name, "torchscript", 17, dynamic=True).model()
        onnx.save(model, path)
        np.savez(noise, **{n: x[:64] for n, x in feeds(model, count=96).items()})
    return path, noise


def sqnr(path: Path, out: Path) -> float:
    """Least SQNR of an output against the float model, in dB of its variance, on noise of its own."""
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415
    import onnxruntime as ort  # noqa: PLC0415
    from helpers.stages import feeds  # noqa: PLC0415 - of the tests

    data = {n: x[64:] for n, x in feeds(onnx.load(path), count=96).items()}
    sessions = [ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (path, out)]
    exact, got = (session.run(None, data) for session in sessions)
    return min(
        10 * math.log10(np.square(a - a.mean()).sum() / np.square(a - b).sum()) for a, b in zip(exact, got, strict=True)
    )


def measure(key: str, build: str, python: str, point: tuple[str, str, tuple[str, ...]], data: Path) -> dict[str, Any]:
    """One row, by the command line of ``python``'s environment."""
    name, widths, options = point
    dataset = "imagenet" if "imagenet" in name else "cifar10"
    if name in TRAINED:
        path, calib = train(name, data), data / "data" / dataset / "calib"
    elif name in ZOO:
        path, calib = zoo(name)
    else:
        path, calib = data / "models" / f"{name}.onnx", data / "data" / dataset / "calib"
    out = BUILD / f"{re.sub('[^a-zA-Z0-9]+', '-', key)}.onnx"
    for made in (
        out,
        out.with_suffix(".toml"),
    ):  # no result is written over unasked, and earlier builds know no --force
        made.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    bits = re.findall(r"\d+", widths)
    # The script beside the interpreter: with -m it would run what lies in the working folder.
    command = [str(Path(python).with_name("mrecg-onnx")), "quantize", str(path), "--calib", str(calib), "-o", str(out),
               "--wbits", bits[0], "--abits", bits[1], "--threads", "1", *options]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row: dict[str, Any] = {"build": build, "network": name, "widths": widths, "options": " ".join(options)}
    row["commit_of_build"] = commit(python)
    row["cpu_seconds"] = round(after.ru_utime - before.ru_utime, 1)
    if name in ZOO:
        return row | {"sqnr_db": round(sqnr(path, out), 2)}
    said = referee(data, out, dataset, path)
    return row | {n: said[n] for n in ("top1", "against_top1", "sqnr_db", "images")}


def commit(python: str) -> str:
    """Commit of the build that ``python`` runs."""
    code = "import mrecg_onnx, pathlib; print(pathlib.Path(mrecg_onnx.__file__).parent)"
    folder = subprocess.run(
        [str(Path(python).absolute()), "-c", code], cwd="/", check=True, capture_output=True, text=True
    ).stdout.strip()
    ask = ["git", "-C", folder, "rev-parse", "--short", "HEAD"]
    return subprocess.run(ask, check=False, capture_output=True, text=True).stdout.strip()


def write(store: Rows) -> None:
    """The table from the rows that are there."""
    rows = store.all()
    commits = {b: sorted({r["commit_of_build"] for r in rows.values() if r["build"] == b}) for b in ("before", "after")}
    text = (
        f"Before: both ends of a range shrink together (commit {', '.join(commits['before']) or '-'}). After: scale and zero "
        f"point are searched (commit {', '.join(commits['after']) or '-'}). Top-1 and SQNR of the scores by the referee on all "
        "validation images. The small networks (six layers of 24 to 96 channels) were trained here on the 1,020 calibration "
        f"images for {EPOCHS} epochs; those of the zoo have random weights and noise for images, the SQNR is of their worst "
        "output. CPU seconds are the whole command's, one thread, on a machine that did other work, too."
    )
    lines = [
        "# Ranges in scale and zero point", "", text, "",
        "| network | widths | options | FP32 | before | after | SQNR before | SQNR after | CPU s before | CPU s after |",
        "|" + "---|" * 10,
    ]  # fmt: skip
    for name, widths, options in POINTS:
        pair = [rows.get(key_of(build, (name, widths, options)), {}) for build in ("before", "after")]
        if not any(pair):
            continue
        fp32 = next((f"{r['against_top1']:.3f}" for r in pair if "against_top1" in r), "-")
        acts = {**TRAINED, **ZOO}
        label = NAMES.get(name) or f"{acts[name]}, {'trained' if name in TRAINED else name}"
        cells = [label, widths, " ".join(options).replace("--method ", "").replace("--", "")]
        cells += [fp32, *(f"{r['top1']:.4f}" if "top1" in r else "-" for r in pair)]
        cells += [str(r.get(column, "-")) for column in ("sqnr_db", "cpu_seconds") for r in pair]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"By `python benchmarks/silu.py`. {machine(rows)}"]
    (RESULTS / "silu.md").write_text("\n".join(lines) + "\n")


def key_of(build: str, point: tuple[str, str, tuple[str, ...]]) -> str:
    return " ".join([build, point[0], point[1], *point[2]])


def main() -> None:
    parser = arguments(__doc__, quick="without MobileNetV2")
    parser.add_argument("--before", help="interpreter of an environment with an earlier build")
    parser.add_argument("--only", default="", help="rows whose keys match")
    args = parser.parse_args()
    store = Rows("silu")
    builds = {"before": args.before, "after": sys.executable}
    points = {key_of(b, p): (b, python, p) for p in POINTS for b, python in builds.items() if python}
    keys = [k for k in points if re.search(args.only, k) and not (args.quick and "imagenet" in k)]
    if not args.draw:
        for key in store.missing(keys, again=args.again):
            build, python, point = points[key]
            store.add(key, measure(key, build, python, point, args.data))
            print(json.dumps({k: v for k, v in store.all()[key].items() if k != "header"}), flush=True)
            write(store)
    write(store)


if __name__ == "__main__":
    main()
