"""The theorem and its corollary, tested: loss along chains of equal blocks, and where one block's capacity is scaled.

usage: python benchmarks/theorem.py [--nets NAME ...] [--by channels|bits] [--factors 0.25 0.5 1 2 4] [--seeds 0 1 2]
           [--bits 2 4] [--iters 300] [--epochs 30] [--quick]

Claims (Ma et al. 2023, Theorem 1 and Corollary 1): between equivalent neighbours the loss does not fall; a neighbour of larger
capacity makes it fall, one of smaller capacity makes it rise sharply.

Nets are made here: a stem, nine blocks, global pooling, a classifier. "residual": two 3x3 convolutions (16 channels in and
out, 16 between them) and the identity; "plain": three such convolutions and no way around them. The ninth block is left out
of everything below: its unit may end behind the pooling. The fifth block's capacity (Eq. 3: parameters times bits) is scaled
in one of two ways: its inner channels are 16 times the factor (another network for every factor), or its weights have the
factor times as many bits as the others (--by bits; one network, so that nothing else differs). "trained": on the
handwritten digits that scikit-learn ships; "random": the same before training, with BatchNormalization's statistics of the
images, so that all blocks see signals of one size. Units are the
blocks, none are joined (`brecq`, squared error, no equalization, one quantizer a tensor, as in the paper). Loss: squared
error summed over channels, mean over images and space, on held-out images; "relative": divided by the variance of the
block's float output, because trained signals grow along a net.

Rows are merged into benchmarks/results/theorem.json (.csv); table and figure are written from them. Needs no other files.
"""

from __future__ import annotations

import re
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _experiment import BUILD, RESULTS, Rows, arguments, machine, plotting, quantize

BLOCKS, SCALED, CHANNELS = 8, 4, 16
NETS = ("residual, trained", "residual, random", "plain, trained", "plain, random")
HUES = {0.25: "#7a1f2b", 0.5: "#d1495b", 1.0: "#555555", 2.0: "#4b9cd3", 4.0: "#174a7c"}


def digits() -> tuple[Any, Any]:
    """Images [N, 3, 16, 16], standardized, and labels [N], shuffled."""
    import torch  # noqa: PLC0415 - torch is heavy and --help does not need it
    from sklearn.datasets import load_digits  # noqa: PLC0415

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(images, size=16, mode="bilinear", align_corners=False)
    images = ((images - images.mean()) / images.std()).repeat(1, 3, 1, 1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(data.target)[order]


def build(kind: str, factor: float) -> Any:
    """The net in torch, untrained."""
    from torch import nn  # noqa: PLC0415

    class Block(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(CHANNELS, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = nn.Conv2d(inner, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
            self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu2(x + self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))

    def conv(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    def plain(inner: int) -> nn.Module:
        return nn.Sequential(*conv(CHANNELS, inner), *conv(inner, inner), *conv(inner, CHANNELS))

    make = Block if kind == "residual" else plain
    blocks = [make(round(CHANNELS * (factor if i == SCALED else 1))) for i in range(BLOCKS + 1)]
    # Chains are cut in threes from their end: two more convolutions and the classifier make the cuts fall between blocks.
    tail = [*conv(CHANNELS, CHANNELS), *conv(CHANNELS, CHANNELS)] if kind == "plain" else []
    return nn.Sequential(
        *conv(3, CHANNELS), *blocks, *tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10)
    )


def make_net(net: str, factor: float, seed: int, epochs: int) -> tuple[Path, Path, float]:
    """The net as ONNX, its calibration images as .npy, and the share of held-out digits it knows."""
    import torch  # noqa: PLC0415

    torch.manual_seed(seed)
    images, labels = digits()
    train, rest = slice(0, 1400), slice(1400, None)
    kind, state = net.split(", ")
    module = build(kind, factor)
    if state == "trained":
        steps = epochs * (1400 // 50)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        for _ in range(epochs):
            for part in torch.randperm(1400).split(50):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(module(images[train][part]), labels[train][part]).backward()
                optimizer.step()
                schedule.step()
    else:
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # the plain mean over the batches seen
        with torch.no_grad():
            for part in images[train].split(100):
                module(part)
    module.eval()
    with torch.no_grad():
        right = float((module(images[rest]).argmax(1) == labels[rest]).float().mean())
    folder = BUILD / "theorem"
    folder.mkdir(parents=True, exist_ok=True)
    file, calib = folder / f"{kind}-{state}-{factor:g}-{seed}.onnx", folder / "calib.npy"
    warnings.simplefilter("ignore")  # of the exporter, about itself
    torch.onnx.export(
        module, (images[:1],), str(file), input_names=["image"], output_names=["logits"], dynamo=False, opset_version=17,
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )  # fmt: skip
    np.save(calib, images[:512].numpy())
    return file, calib, right


def variances(run: Any) -> list[float]:
    """Variance of each unit's float output, summed over channels as the loss is."""
    import torch  # noqa: PLC0415

    names = [name for unit in run.result.plan.units for name in unit.outputs]
    with torch.no_grad():
        outputs = run.simulation.network.run(run.inputs, keep=names)
    return [float(outputs[n].var()) * outputs[n].shape[1] for n in names]


def layer_names(file: Path, per_block: int) -> list[str]:
    """Names of the fifth block's convolutions."""
    import onnx  # noqa: PLC0415

    convs = [node.name for node in onnx.load(str(file)).graph.node if node.op_type == "Conv"]
    return convs[1 + per_block * SCALED : 1 + per_block * (SCALED + 1)]


def measure(net: str, by: str, factor: float, seed: int, args: Any) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    import mrecg_onnx  # noqa: PLC0415

    torch.set_num_threads(args.threads)
    layers = 2 if net.startswith("residual") else 3
    file, calib, right = make_net(net, factor if by == "channels" else 1.0, seed, args.epochs)
    rules = ()
    if by == "bits":
        width = round(args.bits[0] * factor)
        rules = tuple(mrecg_onnx.BitRule(f"^{re.escape(name)}$", width, None) for name in layer_names(file, layers))
    settings = mrecg_onnx.Settings(
        wbits=args.bits[0], abits=args.bits[1], method="brecq", loss="mse", equalize="off", residual="shared", range="mse",
        iters=args.iters, seed=seed, threads=args.threads, device=args.device, bits=rules,
    )  # fmt: skip
    run = quantize(f"theorem/{file.stem}-{by}-{factor:g}-quantized", file, calib, settings, images=256)
    units = run.result.plan.units
    assert [len(unit.layers) for unit in units[: BLOCKS + 1]] == [1, *[layers] * BLOCKS], "units are not the blocks"
    losses, spread = run.row.pop("unit_losses")[1:-2], variances(run)[1:-2]
    return {
        "net": net, "by": by, "factor": factor, "seed": seed, "bits": f"W{args.bits[0]}A{args.bits[1]}", "iters": args.iters,
        "capacities": [unit.capacity for unit in units[1:-2]], "losses": losses,
        "relative": [a / b for a, b in zip(losses, spread, strict=True)], "fp32_accuracy": right, **run.row,
    }  # fmt: skip


def write(store: Rows) -> None:
    rows = {}
    for key, row in store.all().items():
        bits = ", by bits" if row.get("by") == "bits" else ""
        rows[key] = row | {"net": f"{row['net']}, {row['bits']}{bits}"}
    nets = sorted({row["net"] for row in rows.values()}, reverse=True)
    lines = ["# Theorem and corollary", "",
             "Written by `python benchmarks/theorem.py`, whose head says what is measured; rows with commands and versions in",
             "theorem.json.", "", "![loss along chains of blocks](theorem.png)", "",
             "## Equal blocks: does the loss fall nowhere?", "",
             "| nets | loss | pairs that do not fall | last block / first, geometric mean |", "|---|---|---|---|"]  # fmt: skip
    for net in nets:
        chains = [r for r in rows.values() if r["net"] == net and r["factor"] == 1]
        for kind in ("losses", "relative"):
            pairs = [(a, b) for r in chains for a, b in zip(r[kind], r[kind][1:], strict=False)]
            if pairs:
                growth = statistics.geometric_mean(r[kind][-1] / r[kind][0] for r in chains)
                name = "squared error" if kind == "losses" else "relative"
                lines.append(f"| {net}, {len(chains)} seeds | {name} | {sum(b >= a for a, b in pairs)} of {len(pairs)} | "
                             f"{growth:.2f} |")  # fmt: skip
    lines += ["", "## One block scaled: its loss over that of the block in front, and that of the block behind over its", "",
              "| nets | capacity | scaled / in front, by seed | geometric mean | behind / scaled |",
              "|---|---|---|---|---|"]  # fmt: skip
    for net in nets:
        for factor in sorted({r["factor"] for r in rows.values()}):
            chains = [r for r in rows.values() if (r["net"], r["factor"]) == (net, factor)]
            if chains:
                into = [step(r, SCALED) for r in chains]
                out = [step(r, SCALED + 1) for r in chains]
                lines.append(f"| {net} | x{factor:g} | {', '.join(f'{x:.2f}' for x in into)} | "
                             f"{statistics.geometric_mean(into):.2f} | {statistics.geometric_mean(out):.2f} |")  # fmt: skip
    (RESULTS / "theorem.md").write_text("\n".join([*lines, "", machine(rows)]) + "\n")
    draw(rows, nets)


def step(row: dict[str, Any], block: int, kind: str = "losses") -> float:
    """Loss of a block over that of the one in front."""
    return row[kind][block] / row[kind][block - 1]


def draw(rows: dict[str, Any], nets: list[str]) -> None:
    plt = plotting()
    figure, axes = plt.subplots(len(nets), 3, figsize=(13.5, 0.5 + 3.3 * len(nets)), squeeze=False)
    blocks = range(1, BLOCKS + 1)
    factors = sorted({r["factor"] for r in rows.values()})
    for net, (equal, scaled, ratio) in zip(nets, axes, strict=True):
        mine = [r for r in rows.values() if r["net"] == net]
        for row in (r for r in mine if r["factor"] == 1):
            equal.plot(blocks, row["losses"], color=HUES[1.0], alpha=0.75, marker="o", markersize=4, linewidth=1.2)
        equal.set_title(f"{net}: equal blocks, a line a seed", fontsize=10.5)
        equal.set_ylabel("reconstruction loss")
        for factor in factors:
            chains = [r["losses"] for r in mine if r["factor"] == factor]
            if chains:
                mean = [statistics.geometric_mean(column) for column in zip(*chains, strict=True)]
                scaled.plot(
                    blocks, mean, color=HUES.get(factor, "#999999"), marker="o", markersize=4, label=f"x{factor:g}"
                )
        scaled.axvspan(SCALED + 0.6, SCALED + 1.4, color="#f2cf63", alpha=0.35, linewidth=0)
        scaled.set_title(f"{net}: block {SCALED + 1} scaled, mean of seeds", fontsize=10.5)
        scaled.legend(title="capacity", ncols=2, fontsize=8.5, title_fontsize=8.5)
        top = max([*equal.get_ylim(), *scaled.get_ylim()])
        for axis in (equal, scaled):
            axis.set_ylim(0, top)
            axis.set_xlabel("block")
        for factor in factors:
            values = [step(r, SCALED) for r in mine if r["factor"] == factor]
            ratio.scatter([factor] * len(values), values, color=HUES.get(factor, "#999999"), s=40, zorder=3,
                          edgecolors="white", linewidths=0.6)  # fmt: skip
        ratio.axhline(1, color="#555555", linewidth=1, linestyle="--")
        ratio.set_xscale("log", base=2)
        ratio.set_xticks(factors, [f"x{f:g}" for f in factors])
        ratio.set_ylim(0, max(2.2, 1.1 * ratio.get_ylim()[1]))
        ratio.set_xlabel(f"capacity of block {SCALED + 1}")
        ratio.set_ylabel(f"loss of block {SCALED + 1} / block {SCALED}")
        ratio.set_title("step at the scaled block; above 1 the loss rises", fontsize=10.5)
    iters = " or ".join(str(n) for n in sorted({row["iters"] for row in rows.values()}))
    figure.suptitle(f"Loss along chains of blocks, {iters} iterations a block")
    figure.savefig(RESULTS / "theorem.png")
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__, quick="2 seeds, 60 iterations, 8 epochs")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS), metavar="NAME")
    parser.add_argument("--by", default="channels", choices=["channels", "bits"])
    parser.add_argument("--factors", type=float, nargs="*", default=[0.25, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, nargs=2, default=(2, 4))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.iters, args.epochs = [0, 1], 60, 8
    store = Rows("theorem")
    bits = "-bits" if args.by == "bits" else ""
    name = f"w{args.bits[0]}a{args.bits[1]}-{args.iters}{bits}"
    keys = {f"theorem-{net.replace(', ', '-')}-{factor:g}-{seed}-{name}": (net, args.by, factor, seed)
            for seed in args.seeds for net in args.nets for factor in args.factors}  # fmt: skip
    if not args.draw:
        for key in store.missing(list(keys), again=args.again):
            row = measure(*keys[key], args)
            store.add(key, row)
            print(
                f"  {row['fp32_accuracy']:.3f}",
                " ".join(f"{x:.3g}" for x in row["losses"]),
                f"{row['seconds']} s",
                flush=True,
            )
    write(store)


if __name__ == "__main__":
    main()
