"""pfms: spleen segmentation over HTTP, around the ChRIS plugin spleenseg."""

__version__ = "0.1.0"
