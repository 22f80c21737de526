"""A comparison as text, one file per format."""
