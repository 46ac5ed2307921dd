"""The workspace on disk, and how files get there whole."""
