"""Makes the pictures of docs/report.md: the sample at W4A4 with a page, in Chromium, light, dark and as on a phone.

python docs/draw_report.py [--chromium PROGRAM] [--page PAGE.html]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "report"
#: Window and part of it that is kept, in pixels; a phone's page lies in a frame, as no window is as narrow.
LOOKS = {"light": (1180, 2060), "dark": (1180, 1560), "phone": (390, 1560)}


def make_page(folder: Path) -> Path:
    """Quantize the sample and write its page."""
    page = folder / "page.html"
    command = [
        sys.executable,
        "cli.py",
        "quantize",
        "samples/digits_resnet8.onnx",
        "--calib",
        "samples/calib",
        "--threads",
        "1",
    ]
    command += ["--data", "samples/val", "-o", str(folder / "digits_resnet8_w4a4.onnx"), "--report", str(page)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - of this checkout
    return page


def shoot(program: str, page: Path, look: str, folder: Path) -> None:
    """One picture of the page, in few colours so that it is small."""
    width, height = LOOKS[look]
    framed = folder / f"{look}.html"
    frame = (
        f'<body style="margin:0"><iframe src="{page.name}" style="border:0;width:{width}px;height:{height}px"></iframe>'
    )
    framed.write_text(frame, encoding="utf-8")
    raw = folder / f"{look}.png"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    theme = (
        ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
        if look == "dark"
        else ["--blink-settings=preferredColorScheme=1"]
    )
    size = f"--window-size={max(width, 600)},{height}"
    command = [
        program,
        "--headless",
        *sandbox,
        "--hide-scrollbars",
        "--disable-gpu",
        *theme,
        size,
        f"--screenshot={raw}",
    ]
    subprocess.run(  # noqa: S603 - named by whoever runs this
        [*command, framed.as_uri()], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    picture = Image.open(raw).convert("RGB").crop((0, 0, width, height))
    FOLDER.mkdir(exist_ok=True)
    picture.quantize(96, dither=Image.Dither.NONE).save(FOLDER / f"{look}.png", optimize=True)


def main() -> None:
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--page", type=Path, help="a page that is there already")
    arguments = parser.parse_args()
    if arguments.chromium is None:
        sys.exit("no Chromium: apt-get install chromium, or its path with --chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = make_page(folder) if arguments.page is None else Path(shutil.copy(arguments.page, folder / "page.html"))
        for look in LOOKS:
            shoot(arguments.chromium, page, look, folder)


if __name__ == "__main__":
    main()
