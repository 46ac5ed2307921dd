"""What the command line does on this machine, without a server: demo, doctor, replay."""
