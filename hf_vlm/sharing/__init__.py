"""After training: assembling and pushing, model cards, and the ways out: stock transformers, a folder with its own code, ONNX."""
