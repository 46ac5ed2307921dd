"""The workspace on disk, and how files are written, kept whole and removed."""
