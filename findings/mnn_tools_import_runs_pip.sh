#!/usr/bin/env bash
# MNN 3.6.1: importing its converter's Python module runs `pip install`, with whatever pip is first in the path.
#
# Expected: an import installs nothing.
# Seen: MNN.tools.utils.log, which MNN.tools.mnnconvert imports, calls os.system("pip install -U aliyun-log-python-sdk") where that
# package is missing, also where pip is that of another Python than the one that imports. The converter itself, in the module _tools,
# does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "MNN==3.6.1" "numpy==2.4.6"
mkdir "$folder/first"
# Takes pip's place and notes what it is asked for: nothing is installed.
printf '#!/bin/sh\necho "$@" >> "%s/asked"\n' "$folder" > "$folder/first/pip"
chmod +x "$folder/first/pip"
touch "$folder/asked"
PATH="$folder/first:$PATH" "$folder/venv/bin/python" -c "import MNN, _tools; assert callable(_tools.mnnconvert)" > /dev/null
test ! -s "$folder/asked"
PATH="$folder/first:$PATH" "$folder/venv/bin/python" -c "import MNN.tools.mnnconvert" > /dev/null
cat "$folder/asked"
grep -q "install -U aliyun-log-python-sdk" "$folder/asked"
