"""HTTP to service and back: no file and no process is touched here."""
