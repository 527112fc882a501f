"""Sets of tasks as they were published, brought into conversations, and back into other tools' files."""
