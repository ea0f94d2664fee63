"""The command line: commands over as many Python calls.

Nothing here computes. Each command turns its options into the arguments of the function of its name (``quantize`` into those
of :func:`mrecg_onnx.quantize`), shows progress on stderr and prints the result on stdout.
Torch is imported inside the commands, so that help and usage errors come at once.
"""

from __future__ import annotations

import click

from mrecg_onnx import __version__
from mrecg_onnx.commands._errors import Group
from mrecg_onnx.commands.benchmark import benchmark_command
from mrecg_onnx.commands.compare import compare_command
from mrecg_onnx.commands.convert import convert_command
from mrecg_onnx.commands.doctor import doctor_command
from mrecg_onnx.commands.inspect import inspect_command
from mrecg_onnx.commands.quantize import quantize_command
from mrecg_onnx.commands.report import report_command
from mrecg_onnx.commands.runtimes import runtimes_command
from mrecg_onnx.commands.sensitivity import sensitivity_command
from mrecg_onnx.commands.validate import validate_command

__all__ = ["main"]


@click.group(name="mrecg-onnx", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mrecg-onnx")
def main() -> None:
    """Learned low-bit quantization of ONNX models: FP32 in, 2 to 8 bits out, for ONNX Runtime's integer kernels.

    \b
    mrecg-onnx quantize model.onnx --calib images/ --wbits 4 --abits 8
    mrecg-onnx validate model.onnx model_mrecg_w4a8.onnx --data labelled_images/
    mrecg-onnx compare model.onnx --calib images/ --data labelled_images/ --methods nearest,mrecg --bits W4A4,W2A4 -o out/
    mrecg-onnx inspect model.onnx
    mrecg-onnx sensitivity model.onnx --calib images/
    mrecg-onnx convert model_mrecg_w4a8.onnx --container packed
    mrecg-onnx benchmark model.onnx model_mrecg_w4a8.onnx --batch 1,8
    mrecg-onnx report model_mrecg_w4a8.onnx -o page.html
    mrecg-onnx runtimes model_mrecg_w4a8.onnx --against model.onnx
    mrecg-onnx doctor
    """  # noqa: D301 - click wants the character, not backslash and b


main.add_command(quantize_command)
main.add_command(validate_command)
main.add_command(compare_command)
main.add_command(inspect_command)
main.add_command(sensitivity_command)
main.add_command(convert_command)
main.add_command(benchmark_command)
main.add_command(report_command)
main.add_command(runtimes_command)
main.add_command(doctor_command)
