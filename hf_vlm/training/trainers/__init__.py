"""The trainers of lines, conversations, pictures and tokenizers, and what they train by."""
