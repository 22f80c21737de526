"""One verb per file, same names as the commands."""
