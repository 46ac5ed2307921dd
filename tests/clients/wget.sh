#!/bin/sh
# wget, with a form made by hand: SERVER upload|infer MODEL FILE [OUTPUT]
set -eu
route=NIfTIinference
if [ "$2" = upload ]; then route=modelpth; fi
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
{
    printf -- '--by-hand\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    cat "$4"
    printf '\r\n--by-hand--\r\n'
} >"$scratch/form"
if ! wget --quiet --content-on-error --output-document "$scratch/body" \
    --header "Content-Type: multipart/form-data; boundary=by-hand" \
    --post-file "$scratch/form" "$1/api/v1/spleenseg/$route?modelID=$3"; then
    cat "$scratch/body" >&2
    exit 1
fi
cat "$scratch/body" >"${5:-/dev/null}"
