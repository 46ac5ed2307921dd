"""The commands of the command line: each says what a library call did, and how to mend it."""
