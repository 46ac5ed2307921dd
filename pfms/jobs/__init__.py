"""The life of a job: it is made from a volume, waits, runs, is judged, kept and removed."""
