"""The plugin: how it is called, what it reads and writes, and what its exit means."""

from pfms.plugin.interface import Plugin
from pfms.plugin.spleenseg import Spleenseg

PLUGIN: Plugin = Spleenseg()
"""The plugin that this service runs."""
