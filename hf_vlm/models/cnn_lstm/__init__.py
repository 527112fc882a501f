"""The CNN + LSTM captioner: a vision encoder, and a recurrent decoder with or without attention over its map."""
