"""Conversations about pictures: read, audited, ordered, written, and as a model reads them."""
