#!/usr/bin/env bash
# torch 2.13.0 (CPU, gloo): a process group outlives destroy_process_group where torch.distributed.nn was first imported while it stood.
#
# Expected: destroy_process_group() ends the group's threads, whatever was imported in between.
# Seen: the functions of torch.distributed.nn.functional take group.WORLD as a default argument, evaluated at import. Imported inside
# the group (a tracer or an exporter may do that) they hold it: its threads are still there after destroy_process_group, and the
# interpreter's end races with them; on a busy machine one in eight such jobs ended with SIGABRT ("terminate called without an
# active exception"). Imported before init_process_group the default is None, and the threads end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/group.py" <<'PYTHON'
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def threads():
    return sum("gloo" in task.read_text() for task in Path("/proc/self/task").glob("*/comm"))


if sys.argv[1] == "before":
    import torch.distributed.nn
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.ones(3))
assert threads() > 0
import torch.distributed.nn  # noqa: E402

dist.destroy_process_group()
print("imported", sys.argv[1], "the group stood: threads left", threads(), flush=True)
os._exit(0)  # the interpreter's end is not waited for: it is what those threads race with
PYTHON
for when in before while; do "$folder/venv/bin/python" "$folder/group.py" $when; done | tee "$folder/seen"
grep -q "imported before the group stood: threads left 0" "$folder/seen"
grep -Eq "imported while the group stood: threads left [1-9]" "$folder/seen"
