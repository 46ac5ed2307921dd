"""The commands: each reports what a library call did, and how to fix what went wrong."""
