#!/usr/bin/env bash
# torch 2.13.0 (CPU): a 1x1 convolution of fewer than 16 images on one thread passes oneDNN by and multiplies matrices.
#
# Expected: one kernel for a convolution, however many images there are; if one is left out for few images, then for all sizes of it.
# Seen: on one thread 3x3 and depthwise convolutions run on oneDNN for any batch, the 1x1 one from 16 images on; with 1 to 15 it is
# aten::_slow_conv2d_forward, in either memory format. On two threads it is oneDNN again. Where a network is mostly 1x1 convolutions
# (MobileNetV2) that doubles the time of all its convolutions: two images 12.2 ms against 7.3, one thread, AMD EPYC.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/kernels.py" <<'PYTHON'
import torch
from torch.profiler import profile

LAYERS = {
    "1x1": torch.nn.Conv2d(96, 24, 1),
    "3x3": torch.nn.Conv2d(96, 24, 3, padding=1),
    "depthwise": torch.nn.Conv2d(96, 96, 3, padding=1, groups=96),
}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for name, layer in LAYERS.items():
        found = []
        for images in (1, 15, 16):
            x = torch.zeros(images, 96, 28, 28).contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), profile() as seen:
                layer(x)
            made = {event.key for event in seen.key_averages()}
            kernel = "onednn" if "aten::mkldnn_convolution" in made else "slow" if "aten::_slow_conv2d_forward" in made else "?"
            found.append(f"{images}:{kernel}")
        print(f"threads {threads}, {name}:", *found)
PYTHON
"$folder/venv/bin/python" "$folder/kernels.py" 2>/dev/null | tee "$folder/seen"
grep -qx "threads 1, 1x1: 1:slow 15:slow 16:onednn" "$folder/seen"
grep -qx "threads 2, 1x1: 1:onednn 15:onednn 16:onednn" "$folder/seen"
for name in 3x3 depthwise; do
  for threads in 1 2; do grep -qx "threads $threads, $name: 1:onednn 15:onednn 16:onednn" "$folder/seen"; done
done
