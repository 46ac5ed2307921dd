"""What becomes of a volume: a job is made, waits, runs, is judged, kept and removed."""
