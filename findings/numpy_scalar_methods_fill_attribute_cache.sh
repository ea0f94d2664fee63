#!/usr/bin/env bash
# NumPy 2.4.6 on CPython 3.11: methods of NumPy's scalars, such as np.bool_(True).all(), hold memory after they return, call by call.
#
# Expected: a call whose result is dropped leaves nothing behind, as array.all() does.
# Seen: a scalar's method looks up the array's method of its name by a string that it makes anew for every call (PyObject_GetAttrString).
# CPython's cache of looked-up attributes (4,096 places, by the address of the name) keeps the name, so that a program whose strings
# come to lie at ever new addresses holds one "all" more every few calls, up to thousands, and looks like one that leaks a little.
# sys._clear_type_cache() frees them. np.all(scalar) does the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -c 'import sys; assert sys.version_info[:2] in {(3, 11), (3, 12)}, "this is about CPython 3.11 and 3.12"'
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6"
cat > "$folder/grow.py" <<'PYTHON'
import gc
import random
import sys

import numpy as np

random.seed(0)


def held(call):
    """Blocks of Python's allocator that 2,400 calls leave, before and after the cache is emptied."""
    sys._clear_type_cache()
    call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(2400):
        others = [f"{random.randrange(1000):03}" for _ in range(random.randrange(3000))]  # the next name lies elsewhere
        call()
        del others
    gc.collect()
    grown = sys.getallocatedblocks() - before
    sys._clear_type_cache()
    return grown, sys.getallocatedblocks() - before


scalar, array = np.bool_(True), np.ones(3, bool)
for what, call in (("array.all()", array.all), ("scalar.all()", scalar.all), ("np.all(scalar)", lambda: np.all(scalar))):
    grown, left = held(call)
    print(f"{what}: {grown} blocks more, {left} when the cache is empty", flush=True)
    assert left < 50
    assert (grown > 300) == ("scalar" in what)
PYTHON
"$folder/venv/bin/python" "$folder/grow.py"
