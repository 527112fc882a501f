"""One folder per architecture, each a paper."""
