"""The text of `command.sh`: a POSIX shell script that repeats a job's plugin call. Pure."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from pfms.plugin.python_settings import NOT_FOR_RUNS

_SCRIPT = r"""#!/bin/sh
# Repeats a run of pfms: the same call of the plugin, in the same environment.
# It needs this folder and the plugin (pip install spleenseg), but not pfms. The same versions on
# the same kind of processor give the same voxels.
set -eu

if [ $# -gt 1 ] || case "${1:-}" in -*) true ;; *) false ;; esac; then
    cat <<'END'
usage: command.sh [OUTPUTDIR]

Runs the plugin on input/ in this folder, as pfms did. OUTPUTDIR is absolute, or relative to the
folder that you call this from; it must be empty, or not exist yet. Without it, the output goes to
'rerun', beside 'output'. The segmentation is OUTPUTDIR/inference/input/input_seg.nii.gz. (With
fewer than 21 slices the plugin writes it, then ends with an IndexError of its own.)
END
    case "$*" in -h | --help) exit 0 ;; *) exit 2 ;; esac
fi

fail() {
    printf 'command.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

caller=$(pwd -P)
self=$0
while [ -L "$self" ]; do
    target=$(readlink "$self")
    case $target in
    /*) self=$target ;;
    *) self=$(dirname "$self")/$target ;;
    esac
done
here=$(CDPATH='' cd "$(dirname "$self")" && pwd -P)
cd "$here"

case "${1:-}" in
'') out=rerun shown=$here/rerun ;;
/*) out=$1 shown=$1 ;;
*) out=$caller/$1 shown=$caller/$1 ;;
esac

for file in @FILES@; do
    [ -f "$file" ] || fail "$file is no longer there: this run cannot be repeated"
done
@COMMAND@
mkdir -p "$out"
[ -z "$(ls -A "$out")" ] || fail "$shown is not empty: name another OUTPUTDIR" 2

unset @UNSET@
@ENVIRONMENT@
# What the plugin's libraries need on any machine: a user's name and a writable home.
if ! id -un >/dev/null 2>&1; then
    export USER="${USER:-pfms}"
fi
if [ ! -d "${HOME:-}" ] || [ ! -w "${HOME:-}" ]; then
    HOME=$(mktemp -d)
    export HOME MPLCONFIGDIR="$HOME/matplotlib"
fi

printf 'The segmentation will be in %s\n' "$shown"/@RESULT@
exec "$@" @ARGUMENTS@ "$out"
"""

_EXECUTABLE = r"""
recorded=@EXECUTABLE@
name=@NAME@
if [ -f "$recorded" ] && [ -x "$recorded" ]; then
    set -- "$recorded"
elif found=$(command -v "$name"); then
    set -- "$found"
else
    fail "neither $recorded nor '$name' on PATH was found: install it" 127
fi
"""

_SCRIPT_OF_AN_INTERPRETER = r"""
for file in @COMMAND@; do
    [ -f "$file" ] || fail "the plugin was run by $file, which was not found" 127
done
set -- @COMMAND@
"""

# Left to the script, which sets them for the machine that it runs on.
_MACHINE_SPECIFIC = {"USER", "HOME", "MPLCONFIGDIR"}


def render(
    command: Sequence[str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    files: Sequence[str],
    result: str,
) -> str:
    """The script, which needs nothing of pfms.

    Args:
        command: The executable, or an interpreter and its script. If an executable is gone, the
            script looks on PATH for one with the same name.
        arguments: The plugin's arguments, except the output folder, which comes last.
        environment: The run's environment; what depends on the machine is left out.
        files: The files that must exist, relative to the script's folder.
        result: The segmentation, relative to the output folder.
    """
    if len(command) == 1:
        name = PurePosixPath(command[0]).name
        find = _fill(
            _EXECUTABLE,
            EXECUTABLE=shlex.quote(command[0]),
            NAME=shlex.quote(name),
        )
    else:
        find = _fill(_SCRIPT_OF_AN_INTERPRETER, COMMAND=shlex.join(command))
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n"
        for name, value in sorted(environment.items())
        if name not in _MACHINE_SPECIFIC
    )
    return _fill(
        _SCRIPT,
        FILES=shlex.join(files),
        COMMAND=find,
        UNSET=" ".join(NOT_FOR_RUNS),
        ENVIRONMENT=exports,
        RESULT=shlex.quote(result),
        ARGUMENTS=shlex.join(arguments),
    )


def _fill(template: str, **parts: str) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], template)
