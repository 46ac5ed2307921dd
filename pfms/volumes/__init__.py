"""NIfTI volumes: read, judged, turned into labels, drawn."""
