#!/usr/bin/env bash
# ONNX Runtime 1.31.1 and 1.32.0 (CPU, Linux): an import alone writes an identifier of the machine into the home folder.
#
# Expected: `import onnxruntime` writes nothing, as in 1.28.0.
# Seen: from 1.29.0 on it makes ~/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid, a database of reports to be sent beside it, and
# a file .ses in TMPDIR. ORT_DISABLE_TELEMETRY=1 keeps all of them away; so do the variables by which it knows continuous integration.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Prints what an import writes into an empty home folder and an empty folder for temporary files.
written() {  # version, variables...
    version=$1
    shift
    rm -rf "$folder/home" "$folder/temporary"
    mkdir "$folder/home" "$folder/temporary"
    env -i "PATH=$PATH" "HOME=$folder/home" "TMPDIR=$folder/temporary" PYTHONDONTWRITEBYTECODE=1 "$@" \
        "$folder/$version/bin/python" -c "import onnxruntime"
    (cd "$folder" && find home temporary -type f | sort)
}
for version in 1.28.0 1.31.1 1.32.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" "numpy==2.4.6"
done
test -z "$(written 1.28.0)"
for version in 1.31.1 1.32.0; do
    found=$(written "$version")
    echo "$version:" $found
    grep -q -x "home/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid" <<< "$found"
    grep -q -x "temporary/.ses" <<< "$found"
    test -z "$(written "$version" ORT_DISABLE_TELEMETRY=1)"
done
