#!/bin/sh
# For debugging: serves, and restarts at each change of a source file. With the source mounted:
#   docker run ... -v $PWD/pfms:/app:ro -e PFMS_INSECURE=true local/pfms /start-reload.sh
exec pfms serve --reload "$@"
