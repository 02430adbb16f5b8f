"""What the techniques that quantize ONNX graphs share. Only `parameters` is free to import; the rest imports onnxruntime or torch."""
