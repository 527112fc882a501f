"""What lets any pretrained part of the Hub take part in our models."""
