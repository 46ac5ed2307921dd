#!/bin/sh
# Segment a CT with pfms, by curl (7.76 or later):
#
#   sh pfms.sh SERVER upload MODEL WEIGHTS
#   sh pfms.sh SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
#   sh pfms.sh SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there
set -eu

case "${2-} $#" in
"upload 4" | "infer 5" | "submit 6") ;;
*)
    sed -n 's/^#   sh/usage:/p' "$0" >&2
    exit 2
    ;;
esac
server=$1 command=$2 model=$3 file=$4 output=${5-} key=${6-}
api=$server/api/v1/spleenseg
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

# Make a call with curl's arguments. Leaves the answer in $scratch, or prints the error and exits.
call() {
    : >"$scratch/body"
    curl --silent --show-error --fail-with-body \
        --dump-header "$scratch/head" --output "$scratch/body" "$@" && return
    echo "$(text detail) $(text remedy)" >&2
    exit 1
}

# A string in the JSON of the answer. If you have jq, `jq -r .NAME` is better.
text() {
    sed -nE 's/.*"'"$1"'": *"(([^"\\]|\\.)*)".*/\1/p' "$scratch/body" | sed -E 's/\\(.)/\1/g'
}

header() {
    tr -d '\r' <"$scratch/head" | grep -i "^$1:" | tail -n 1 | cut -d ' ' -f 2-
}

case $command in
upload)
    call -F "file=@\"$file\"" "$api/modelpth?modelID=$model"
    echo "stored with the checksum $(text sha256)"
    exit
    ;;
infer)
    call -F "file=@\"$file\"" "$api/NIfTIinference?modelID=$model"
    ;;
submit)
    # The same key again finds the same job, so a call that broke off can be made again.
    call -F "file=@\"$file\"" -H "Prefer: respond-async" -H "Idempotency-Key: $key" \
        "$api/NIfTIinference?modelID=$model"
    ;;
esac
echo "job $(header X-Pfms-Job)"
location=$(header Location)
if [ -n "$location" ]; then # status 202: the job has not ended yet
    job=$(echo "$server" | sed -E 's|^([a-z]+://[^/]+).*|\1|')$location
    call "$job"
    while [ "$(text state)" = queued ] || [ "$(text state)" = running ]; do
        sleep 1
        call "$job"
    done
    call "$job/result"
fi
mv "$scratch/body" "$output"
