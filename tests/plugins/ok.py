"""Does what the plugin does, with a threshold instead of a network."""

from common import segment

segment()
