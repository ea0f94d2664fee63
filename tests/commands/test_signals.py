"""The first signal lets a command tidy up, the second ends it; what a host or nohup has set stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from mrecg_onnx.commands import main
from mrecg_onnx.commands._signals import ASKING, Stopped, stoppable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")

#: Waits in whatever is put in, and says what came of it.
PROGRAM = """if True:
    import os, signal, sys, time
    from mrecg_onnx.commands._signals import Stopped, stoppable
    {before}
    with stoppable():
        try:
            print("ready", flush=True)
            {body}
        except Stopped as stopped:
            print(stopped.number, flush=True)
            {after}
    print("after", flush=True)
"""
#: In short sleeps: a signal between Python's last look and the beginning of one is only seen at its end.
WAIT = "[time.sleep(0.05) for _ in range(600)]"


def started(body: str = WAIT, before: str = "pass", after: str = "pass") -> subprocess.Popen[str]:
    code = PROGRAM.format(body=body, before=before, after=after)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ASKING)
def test_the_first_signal_is_an_exception(name: str) -> None:
    number = int(getattr(signal, name))
    process = started(before=f"signal.signal({number}, signal.SIG_DFL) if {number} != 2 else None")
    process.send_signal(number)
    assert process.communicate(timeout=20) == (f"{number}\nafter\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("second", ASKING)
def test_the_second_signal_ends_at_once(second: str) -> None:
    process = started(after=WAIT)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{int(signal.SIGTERM)}\n"
    process.send_signal(getattr(signal, second))
    assert process.wait(20) == -getattr(signal, second)


def test_what_is_ignored_stays_ignored() -> None:
    process = started(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)", body="time.sleep(1)")
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20) == ("after\n", "")


def test_a_signal_that_comes_in_a_destructor_is_not_lost() -> None:
    body = """
            class Slow:
                def __del__(self):
                    print("destructor", flush=True)
                    time.sleep(1)
            Slow()
            time.sleep(30)"""
    process = started(body=body)
    assert process.stdout is not None
    assert process.stdout.readline() == "destructor\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == (f"{int(signal.SIGTERM)}\nafter\n", "")


def handlers() -> list[object]:
    return [signal.getsignal(getattr(signal, name)) for name in ASKING]


def test_handlers_are_as_they_were_afterwards() -> None:
    before, hook = handlers(), sys.unraisablehook
    with pytest.raises(Stopped), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert handlers() == before
    assert sys.unraisablehook is hook


def test_handlers_of_a_host_are_not_touched(monkeypatch) -> None:
    seen: list[list[object]] = []
    monkeypatch.setattr("mrecg_onnx.commands._errors.Group.invoke", lambda *_: seen.append(handlers()))
    before = handlers()
    main(["inspect", "x"], standalone_mode=False)
    own = lambda *_: None  # noqa: E731
    old = signal.signal(signal.SIGTERM, own)
    try:
        with stoppable():
            seen.append([signal.getsignal(signal.SIGTERM)])
    finally:
        signal.signal(signal.SIGTERM, old)
    assert seen == [before, [own]]


def test_another_thread_has_no_handlers() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with stoppable():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
