"""Does what the plugin does, with a threshold for a network."""

from common import segment

segment()
