"""Process groups: start one, find it by its marks, end all of it."""
