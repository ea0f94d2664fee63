"""A torch model as W4A8 on ONNX Runtime: export, quantize, check, run."""

import onnxruntime
import torch
from torch import nn

import mrecg_onnx

torch.manual_seed(0)
model = nn.Sequential(  # yours, trained
    *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
).eval()
images = torch.randn(128, 3, 1, 1) + torch.randn(
    128, 3, 32, 32
)  # yours, as the model is fed them; a DataLoader will do
labels = model(images).argmax(1)

free = ({0: torch.export.Dim("batch", min=1)},)
names = {"input_names": ["image"], "output_names": ["logits"]}
torch.onnx.export(model, (images[:2],), "model.onnx", dynamo=True, dynamic_shapes=free, **names)

settings = mrecg_onnx.Settings(wbits=4, abits=8, method="brecq", iters=100)
result = mrecg_onnx.quantize("model.onnx", images, settings, output="model_w4a8.onnx", progress=print)
found = result.validate((images, labels))
print(f"top-1 {found.quantized.top1.value:.3f}, FP32 {found.fp32.top1.value:.3f}")

session = onnxruntime.InferenceSession("model_w4a8.onnx")
print(session.run(["logits"], {"image": images[:1].numpy()})[0].argmax(1))
