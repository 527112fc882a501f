"""After training: model cards, and the ways out, to stock transformers, to a folder with its own code, to ONNX."""
