"""Settings that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

# Workers share the cores, a thread pool in each of them would fight for them: before numpy and torch make theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import psutil
import pytest

pytest.register_assert_rewrite("helpers.command_line")

# How long an example takes, or making one, says what else the machine does.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

#: What a worker takes of memory at most, in bytes.
WORKER_BYTES = 2 * 2**30


def workers(config: pytest.Config) -> int:
    """Processes that the tests are shared among where the user says nothing: as many as there are cores, and memory for.

    Starting them takes seconds: a single file, and what is looked at by hand (``-s``, ``--pdb``), runs in this one.
    """
    single = len(config.args) == 1 and ".py" in config.args[0]
    if single or config.option.usepdb or config.option.trace or config.option.capture == "no":
        return 0
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    count = min(cores, psutil.virtual_memory().available // WORKER_BYTES)
    return count if count > 1 else 0


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run on all cores by pytest-xdist, unless ``-n`` or ``--dist`` say otherwise; without it in this process."""
    if config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"):
        if config.option.numprocesses is None and not config.option.tx and config.option.dist == "no":
            config.option.numprocesses = workers(config)
        if config.option.numprocesses and config.option.dist == "no":
            # Neighbours stay together, as they share what their module made, and who has nothing left takes from another.
            config.option.dist = "worksteal"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why it took long."""
    if not config.pluginmanager.hasplugin("xdist") and workers(config):
        terminalreporter.write_line(
            'One process ran all tests: pip install -e ".[test]" brings pytest-xdist, for all cores'
        )


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread of torch: sums in one order on every machine, and no fight for the cores of a small one."""
    import torch  # here and below: the process that only hands out tests needs none of it

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as in a pipe: pytest-xdist gives its processes the COLUMNS of the terminal that it was started in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for ``model.onnx`` and ``images/``."""
    import onnx
    from helpers.command_line import classifier, write_images

    monkeypatch.chdir(tmp_path)
    onnx.save(classifier(), tmp_path / "model.onnx")
    write_images(tmp_path / "images", 24)
    return tmp_path
