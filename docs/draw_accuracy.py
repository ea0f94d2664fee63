"""The figure of the README: accuracy against bits, ours and other tools, from two files of ``benchmarks/results``.

usage: python docs/draw_accuracy.py [--check]

Reads ``peers.json`` and ``main.json``, writes ``docs/accuracy_light.svg`` and ``docs/accuracy_dark.svg``. ``--check`` compares
the figures in them with the rows. Matplotlib draws.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WIDTHS = ("W8A8", "W4A8", "W4A4", "W3A3", "W2A4")


@dataclass(frozen=True)
class Curve:
    """How a tool is drawn: its title, colour on light and on dark ground, and the stroke."""

    title: str
    light: str
    dark: str
    line: str = "-"
    width: float = 1.4


CURVES = {
    "mrecg": Curve("mrecg-onnx, learned", "#c2334d", "#ff6b81", width=2.6),
    "nearest": Curve("mrecg-onnx, to nearest", "#c2334d", "#ff6b81", "--"),
    "aimet-adaround": Curve("AIMET, AdaRound", "#1f6fb4", "#6cb4ff"),
    "aimet": Curve("AIMET, to nearest", "#1f6fb4", "#6cb4ff", "--"),
    "ppq-lsq": Curve("esp-ppq, LSQ", "#a0660c", "#e8b35a"),
    "ppq": Curve("esp-ppq, to nearest", "#a0660c", "#e8b35a", "--"),
    "onnxruntime": Curve("ONNX Runtime", "#6b7785", "#aab4c0", "-"),
    "nncf": Curve("NNCF", "#2a8c6e", "#54d6ac", "-"),
}

#: Rows of the same tool and method with more iterations: the better one is drawn.
BETTER_OF = {"aimet-adaround-full": "aimet-adaround"}


def read() -> tuple[dict[str, dict[str, float]], float]:
    """Top-1 by tool and width, and FP32's."""
    rows: list[dict[str, Any]] = [
        row for row in json.loads((RESULTS / "peers.json").read_text()).values() if "top1" in row
    ]
    found: dict[str, dict[str, float]] = {}
    # Our rows of the main table are at the same settings, on the same images; newer ones of peers.json go before.
    for row in json.loads((RESULTS / "main.json").read_text()).values():
        bits = f"W{row['settings']['wbits']}A{row['settings']['abits']}"
        if row["model"] == "resnet20_cifar10" and row["method"] in {"nearest", "mrecg"} and bits in WIDTHS:
            found.setdefault(row["method"], {})[bits] = 100 * row["referee"]["top1"]
    for row in rows:
        tool = BETTER_OF.get(row["tool"], row["tool"])
        top1 = 100 * row["top1"]
        known = found.setdefault(tool, {}).get(row["bits"], top1) if tool in BETTER_OF.values() else top1
        found.setdefault(tool, {})[row["bits"]] = max(top1, known)
    return found, next(100 * row["against_top1"] for row in rows if "against_top1" in row)


def draw(*, dark: bool) -> str:
    """The figure as SVG, the same bytes from the same rows; a comment in it holds the figures that it shows."""
    import matplotlib as mpl  # noqa: PLC0415 - a check does without

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - behind the choice of what draws

    found, fp32 = read()
    ink, faint = ("#e6e8eb", "#3a4048") if dark else ("#1f2328", "#d8dde3")
    style = {
        "svg.hashsalt": "mrecg-onnx", "svg.fonttype": "none", "font.size": 11, "text.color": ink, "axes.labelcolor": ink,
        "font.family": ["DejaVu Sans", "sans-serif"], "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": faint,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(8.2, 3.9), layout="constrained")
        axes.axhline(fp32, color=ink, linewidth=1, linestyle=":")
        axes.annotate(
            f"FP32 {fp32:.1f}", (len(WIDTHS) - 0.17, fp32), xytext=(0, 4), textcoords="offset points", ha="right"
        )
        for tool, curve in CURVES.items():
            if tool not in found:
                continue
            points = [(x, found[tool][bits]) for x, bits in enumerate(WIDTHS) if bits in found.get(tool, {})]
            color = curve.dark if dark else curve.light
            axes.plot(
                *zip(*points, strict=True), curve.line, color=color, linewidth=curve.width, marker="o", markersize=4.5,
                label=curve.title, markerfacecolor="none" if curve.line == "--" else color, zorder=3 if tool == "mrecg" else 2,
            )  # fmt: skip
        for x, bits in enumerate(WIDTHS):
            if bits in found["mrecg"]:
                place = (x, max(fp32, found["mrecg"][bits]))
                axes.annotate(
                    f"{found['mrecg'][bits]:.1f}", place, xytext=(0, 7), textcoords="offset points",
                    ha="center", color=CURVES["mrecg"].dark if dark else CURVES["mrecg"].light, fontsize=10,
                )  # fmt: skip
        axes.set_xticks(range(len(WIDTHS)), WIDTHS)
        axes.set_xlim(-0.35, len(WIDTHS) - 0.15)
        axes.set_ylim(0, 90)
        axes.grid(axis="y", color=faint, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_ylabel("top-1 on ONNX Runtime, %")
        axes.set_xlabel("bits of weights and activations; first and last layer 8 bits everywhere")
        axes.legend(frameon=False, loc="lower left", fontsize=10)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    head, tag, rest = file.getvalue().partition("<svg ")
    return f"{head}<!-- {figures()} -->\n{tag}{rest}"


def figures() -> str:
    """What is drawn, as one line: it stands in the files, so that a check needs no matplotlib and no version of it."""
    found, fp32 = read()
    shown = {tool: {b: round(found[tool][b], 2) for b in WIDTHS if b in found.get(tool, {})} for tool in CURVES}
    return json.dumps({"fp32": round(fp32, 2), **shown}, sort_keys=True)


def main() -> None:
    """Draw, or say what is out of date."""
    for name in ("light", "dark"):
        file = Path(__file__).parent / f"accuracy_{name}.svg"
        if "--check" in sys.argv[1:]:
            if f"<!-- {figures()} -->" not in file.read_text(encoding="utf-8"):
                raise SystemExit(f"{file} is out of date: run python docs/draw_accuracy.py")
        else:
            file.write_text(draw(dark=name == "dark"), encoding="utf-8")


if __name__ == "__main__":
    main()
