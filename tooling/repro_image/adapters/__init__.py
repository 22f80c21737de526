"""One outside thing per file, behind a Protocol of core/ports.py."""
