"""No data: images are made from what the model's BatchNormalization layers remember. Runs in a checkout, on the sample."""

import mrecg_onnx

settings = mrecg_onnx.Settings(wbits=4, abits=8, method="brecq", iters=50, samples=32, zeroq_iters=100)
result = mrecg_onnx.quantize("samples/digits.onnx", "zeroq", settings)
print(f"made {result.images} images: {result.origin}")
result.save("digits_without_data.onnx")

found = result.validate("samples/val")
print(f"top-1 {found.fp32.top1.value:.3f} -> {found.quantized.top1.value:.3f}")
