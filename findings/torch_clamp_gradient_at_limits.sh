#!/usr/bin/env bash
# torch 2.14.1 against 2.13.0: the gradient of torch.clamp for values that lie exactly at a limit is another one.
#
# Expected: 1 at the limits, as for values between them, whether the limits are numbers or tensors: so it was up to 2.13.0.
# Seen: 2.14.1 gives 0 at a limit that is a number, and 0.5 where limits are tensors, as
# torch.minimum and torch.maximum always gave. torch.nn.functional.hardtanh gives 0 in both. Straight-through quantizers clamp
# integer codes, a large share of which lies at the ends of a grid of two bits: they learn with half of their gradient, or none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/limits.py" <<'PYTHON'
import torch
from torch.nn.functional import hardtanh

zero, three = torch.tensor(0.0), torch.tensor(3.0)
for name, limited in {
    "two numbers": lambda x: x.clamp(0.0, 3.0),
    "one number": lambda x: x.clamp(min=0.0),
    "two tensors": lambda x: x.clamp(zero, three),
    "one tensor": lambda x: x.clamp(min=zero),
    "hardtanh": lambda x: hardtanh(x, 0.0, 3.0),
    "maximum, minimum": lambda x: torch.minimum(torch.maximum(x, zero), three),
}.items():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0, 5.0], requires_grad=True)
    limited(x).sum().backward()
    print(f"{name}: {x.grad.tolist()}")
PYTHON
for version in 2.13.0 2.14.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "torch==$version" "numpy==2.4.6"
    "$folder/$version/bin/python" "$folder/limits.py" > "$folder/$version.txt"
    echo "torch $version" && cat "$folder/$version.txt"
done
diff - "$folder/2.13.0.txt" <<'SEEN'
two numbers: [0.0, 1.0, 1.0, 1.0, 0.0]
one number: [0.0, 1.0, 1.0, 1.0, 1.0]
two tensors: [0.0, 1.0, 1.0, 1.0, 0.0]
one tensor: [0.0, 1.0, 1.0, 1.0, 1.0]
hardtanh: [0.0, 0.0, 1.0, 0.0, 0.0]
maximum, minimum: [0.0, 0.5, 1.0, 0.5, 0.0]
SEEN
diff - "$folder/2.14.1.txt" <<'SEEN'
two numbers: [0.0, 0.0, 1.0, 0.0, 0.0]
one number: [0.0, 0.0, 1.0, 1.0, 1.0]
two tensors: [0.0, 0.5, 1.0, 0.5, 0.0]
one tensor: [0.0, 0.5, 1.0, 1.0, 1.0]
hardtanh: [0.0, 0.0, 1.0, 0.0, 0.0]
maximum, minimum: [0.0, 0.5, 1.0, 0.5, 0.0]
SEEN
echo "as stated"
