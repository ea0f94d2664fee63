#!/usr/bin/env bash
# torch 2.13.0 (CPU, Linux): beside programs that keep the cores busy, two threads are many times slower than one, by default.
#
# Expected: two threads on two cores which four other processes compute on as well get a third of them, so that small operators
# take about three times as long as alone, and never longer than on one thread.
# Seen: torch's GNU OpenMP lets a thread that has nothing to do look for work 300,000 turns before it sleeps. Where the other one
# has lost its core that is a whole time slice, at every operator: two threads take nine to sixty times what one takes. With
# GOMP_SPINCOUNT=3000 in the environment before torch is imported they take one to five times as much (AMD EPYC, cores busier than
# that), and alone no more than a few percent beyond the default.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/steps.py" <<'PYTHON'
import os
import subprocess
import sys
import time

import torch

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # what is started below inherits it
torch.set_num_threads(int(sys.argv[1]))
layer, x = torch.nn.Conv2d(16, 16, 3, padding=1), torch.zeros(32, 16, 16, 16)


def steps() -> float:
    start = time.perf_counter()
    for _ in range(60):
        layer(x).relu().sum().backward()
    return time.perf_counter() - start


others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
try:
    steps()
    print(min(steps() for _ in range(3)))
finally:
    for other in others:
        other.kill()
PYTHON
one=$("$folder/venv/bin/python" "$folder/steps.py" 1)
two=$(env -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY "$folder/venv/bin/python" "$folder/steps.py" 2)
brief=$(env -u OMP_WAIT_POLICY GOMP_SPINCOUNT=3000 "$folder/venv/bin/python" "$folder/steps.py" 2)
echo "seconds beside four processes: one thread $one, two threads $two, two that sleep early $brief"
python3 -c "import sys; one, two, brief = map(float, sys.argv[1:]); sys.exit(not (two > 2 * brief))" "$one" "$two" "$brief"
