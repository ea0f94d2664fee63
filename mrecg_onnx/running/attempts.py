"""What came of opening a file in runtimes, and why it did not where it did not."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from mrecg_onnx.converters.results import Result
from mrecg_onnx.converters.text import printable
from mrecg_onnx.running.catalogue import Arithmetic

__all__ = ["Attempt", "RuntimesReport", "reason"]

#: Share of equal predictions, or of equal values, and dB of the worst output where predictions do not count, from which a
#: runtime agrees: at 4 bits ONNX Runtime's own default level has .98 and 17 dB on MobileNetV2 (docs/deployment.md 3).
AGREES, AGREES_DB = 0.95, 15.0
#: Characters of a reason.
MOST = 150
#: Lines of messages that say where, not what.
_WHERE = re.compile(
    r"^(Exception from|Error code\b|Error invoking|Diagnostics:|Traceback|File \"|During handling|Check ')"
)
_WHAT = re.compile(r"\berror:|\bwhat\(\)|\b(?:Error|Exception)\b:|\bpanicked\b|\bassert", re.IGNORECASE)
#: A place in sources in front of a message.
_PLACE = re.compile(
    r"(?:^|(?<=\s))(?:\S*/)?[\w.-]+\.(?:cc|cpp|hpp|h|py|rs|mlir|onnx)(?::\d+)+:?(?:\s+\w+\(.*?\)(?=\s))?\s*"
)
#: What ONNX Runtime says before it says what is wrong; folders that were made for the job.
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : (?:Load model from .*? failed:\s*)?|^error:\s*(?=\S)")
#: A function of its sources with its arguments, in which brackets lie two deep.
_SIGNATURE = re.compile(r"(?:\w+\s+)?onnxruntime::[\w:~]+\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)(?: const)?\s*")
_MADE = re.compile(r"\S*mrecg_onnx_\w+[/\\]")


@dataclass(frozen=True)
class Attempt:
    """One runtime in one environment.

    Attributes:
        name: row of :data:`mrecg_onnx.running.catalogue.RUNTIMES`.
        title: what it is called.
        version: its version, empty where it is not known.
        environment: path of the Python, or folder of npm packages, that it lives in; empty where it is not installed.
        install: what installs it.
        loads: whether it opened the file; None where it was not tried, as it is not installed or lacks what ``reason`` says.
        runs: whether it ran it to the end.
        reason: in one line, what kept it from either, or what it does not say; empty where all went well.
        fixed_batch: the batch that had to be written into a copy of the file, None where it opened as it is.
        kernels: operators or kernels by the runtime's own names.
        arithmetic: weighted layers on integer and float kernels; None where the runtime does not say.
        items: items that were compared.
        agreement: share of equal predictions with the graph as written on ONNX Runtime; None where no output holds class
            scores (:mod:`mrecg_onnx.measures.predictions`).
        sqnr_by_output: SQNR in dB of every float output against that graph, the worst first.
        equal_by_output: share of equal values of the others.
        load_s: seconds to open it, conversion and compilation included.
        median_s: seconds a batch, the median.
        against_s: the same of the float model in turn with it; None where none was given or it does not open there.
        cpu_s: seconds of processor time a batch, all threads together, the median: what a busy machine does not blur.
        against_cpu_s: the same of the float model.
        against_reason: why the float model does not open.
    """

    name: str
    title: str
    version: str = ""
    environment: str = ""
    install: str = ""
    loads: bool | None = None
    runs: bool = False
    reason: str = ""
    fixed_batch: int | None = None
    kernels: dict[str, int] = field(default_factory=dict)
    arithmetic: Arithmetic | None = None
    items: int = 0
    agreement: float | None = None
    sqnr_by_output: dict[str, float] = field(default_factory=dict)
    equal_by_output: dict[str, float] = field(default_factory=dict)
    load_s: float | None = None
    median_s: float | None = None
    against_s: float | None = None
    cpu_s: float | None = None
    against_cpu_s: float | None = None
    against_reason: str = ""

    @property
    def label(self) -> str:
        """Title and version."""
        return f"{self.title} {self.version}".rstrip()

    @property
    def time_ratio(self) -> float | None:
        """Time against the float model's, below 1 where it is faster."""
        return self.median_s / self.against_s if self.median_s and self.against_s else None

    @property
    def cpu_ratio(self) -> float | None:
        """Processor time against the float model's."""
        return self.cpu_s / self.against_cpu_s if self.cpu_s and self.against_cpu_s else None


@dataclass(frozen=True, repr=False)
class RuntimesReport(Result):
    """Outcome of :func:`mrecg_onnx.runtimes`.

    Attributes:
        file: the model.
        against: the float model, empty without one.
        noise: whether the runtimes were fed normal random numbers.
        items: items that each was given.
        reference: what they are compared with: ONNX Runtime's version, or why it does not run the graph as written.
        batch: items a run.
        threads: threads inside an operator, None for each runtime's own choice.
        attempts: one for each runtime and environment, in the order of the catalogue.
    """

    file: str
    against: str
    noise: bool
    items: int
    reference: str
    batch: int
    threads: int | None
    attempts: tuple[Attempt, ...]

    @property
    def installed(self) -> tuple[Attempt, ...]:
        """Those that were tried."""
        return tuple(one for one in self.attempts if one.loads is not None)

    @property
    def passed_over(self) -> tuple[Attempt, ...]:
        """Those that are installed and were not tried: the machine lacks what they need."""
        return tuple(one for one in self.attempts if one.loads is None and one.environment)

    def agrees(self, one: Attempt) -> bool | None:
        """Whether a runtime computes what the graph says, None where nothing was compared.

        Of noise predictions do not count: nothing in it is of a class, and the last digit decides.
        """
        if one.agreement is not None and not self.noise:
            return one.agreement >= AGREES
        if not one.sqnr_by_output and not one.equal_by_output:
            return None
        worst, same = (min(found.values(), default=math.inf) for found in (one.sqnr_by_output, one.equal_by_output))
        return worst >= AGREES_DB and same >= AGREES

    def likeness(self, one: Attempt) -> str:
        """How far a runtime agrees, in the figures that there are and that count."""
        counts = one.agreement is not None and not self.noise
        same = [f"{one.agreement:.1%} of {one.items} predictions"] if counts else []
        worst = [f"{min(one.sqnr_by_output.values()):.1f} dB"] if one.sqnr_by_output else []
        equal = [f"{min(one.equal_by_output.values()):.1%} of the values"] if one.equal_by_output else []
        return ", ".join(same + worst + equal)

    @property
    def wanted(self) -> str:
        """What it takes to agree."""
        classes = any(one.agreement is not None for one in self.installed)
        return (
            f"{AGREES:.0%} of the predictions"
            if classes and not self.noise
            else f"{AGREES_DB:g} dB in the worst output"
        )

    def __str__(self) -> str:
        """How many run it, how many agree, and those that do not with why."""
        tried = self.installed
        run = [one for one in tried if one.runs]
        told = [one for one in run if self.agrees(one) is not None]
        lines = [f"{self.file}: {len(run)} of {len(tried)} runtimes run it"]
        if told:
            lines[0] += f", {sum(map(bool, map(self.agrees, told)))} of {len(told)} agree with {self.reference}"
        lines += [f"{one.label}: {one.reason}" for one in tried if not one.runs]
        return "\n".join(lines + [f"{one.label}: {self.likeness(one)}" for one in told if not self.agrees(one)])

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary, with ``time_ratio`` and ``cpu_ratio`` beside the times."""
        made = dataclasses.asdict(self)
        for entry, attempt in zip(made["attempts"], self.attempts, strict=True):
            entry |= {"time_ratio": attempt.time_ratio, "cpu_ratio": attempt.cpu_ratio}
        return made


def reason(text: str, *, crashed: bool = False) -> str:
    """The line of a message that says what is wrong, short, without what a terminal would obey.

    Args:
        text: an error's text, or what a process printed.
        crashed: it is the latter: the last line that looks like an error is meant, else the last.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line and not _WHERE.match(line)]
    if not lines:
        return ""
    telling = [line for line in lines if _WHAT.search(line)]
    line = (telling or lines)[-1] if crashed else (telling[0] if telling and not _WHAT.search(lines[0]) else lines[0])
    line = _SIGNATURE.sub("", _PLACE.sub("", _MADE.sub("", line))).strip() or line
    line = printable(_PREFIX.sub(lambda found: f"{found[1]}: " if found[1] else "", line))
    return line if len(line) <= MOST else line[: MOST - 1].rstrip() + "…"
