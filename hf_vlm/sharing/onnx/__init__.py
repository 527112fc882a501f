"""Models as ONNX files: written, checked through onnxruntime, and run by it."""
