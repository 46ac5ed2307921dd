"""Ways to run the plugin: each takes a `PluginRun` and gives a `PluginExit`."""
