"""The plugin: how it is called, what it writes, and what its end means."""
