#!/bin/sh
# What the image runs. exec, so that the signals of `docker stop` reach pfms itself.
exec pfms serve "$@"
