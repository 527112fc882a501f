"""Text lines: read, cut out of pages, drawn, mixed, audited."""
