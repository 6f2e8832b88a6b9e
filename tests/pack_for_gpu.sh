#!/usr/bin/env bash
# Packs into .dev, which git ignores, what a lent GPU's machine lacks when it has PyTorch and no
# network: the wheel of zstandard, data, tokenizers, and another entry's script to be timed there.
#
#     bash tests/pack_for_gpu.sh DATA_FOLDER [PEER_SCRIPT]
#
# DATA_FOLDER holds datasets/ and tokenizers/ as the challenge's repository does. The data of the
# 8,192-token vocabulary come along if they exist and fit. tests/run_on_gpu.sh unpacks all of it.
set -euo pipefail
cd "$(dirname "$0")/.."

most=$((60 * 1024 * 1024)) # bytes of the tree and .dev together
python=3.12                # of the machine with the GPU
# shellcheck disable=SC2016 # OUT is for the other machine to fill in
command='PYTHONUNBUFFERED=1 OUT="${OUT:-results}" bash tests/run_on_gpu.sh'

die() {
    echo "$*" >&2
    exit 1
}

# Bytes of .dev and of all that git would commit.
packed_bytes() {
    { git ls-files -z --cached --others --exclude-standard && find .dev -type f -print0; } |
        xargs -0 stat --format=%s 2> /dev/null | awk '{ sum += $1 } END { print sum }'
}

mebibytes() {
    awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'
}

get_wheel() {
    local pinned
    pinned=$(grep '^zstandard==' requirements.txt) || die "requirements.txt pins no zstandard."
    python3 -m pip download --quiet --dest .dev --no-deps --only-binary=:all: \
        --python-version "$python" --platform manylinux2014_x86_64 "$pinned" ||
        die "The wheel of $pinned for Python $python could not be downloaded."
}

# pack_data SIZE: the shards and the tokenizer of a vocabulary of that size. A token is two bytes.
pack_data() {
    local shards=datasets/fineweb10B_sp$1 model=tokenizers/fineweb_$1_bpe.model
    ls "$data/$shards"/fineweb_train_*.bin "$data/$shards"/fineweb_val_*.bin > /dev/null 2>&1 ||
        die "$data/$shards lacks fineweb_train_*.bin or fineweb_val_*.bin."
    [ -f "$data/$model" ] || die "$data/$model is missing."
    tar --create --dereference --directory "$data" "$shards" "$model" |
        xz --threads=0 --lzma2=preset=6,lp=1,pb=1 > ".dev/sp$1.tar.xz"
}

[ $# -ge 1 ] && [ $# -le 2 ] || die "Usage: bash tests/pack_for_gpu.sh DATA_FOLDER [PEER_SCRIPT]"
data=$1 peer=${2:-}
[ -d "$data" ] || die "$data is not a folder."
[ -z "$peer" ] || [ -f "$peer" ] || die "$peer is not a file."
for tool in git tar xz python3; do
    command -v "$tool" > /dev/null || die "$tool is not installed."
done

rm -rf .dev
mkdir .dev
get_wheel
pack_data 1024
[ -z "$peer" ] || cp "$peer" .dev/peer.py
[ "$(packed_bytes)" -le "$most" ] ||
    die "The tree and .dev have $(mebibytes "$(packed_bytes)"), more than $(mebibytes "$most")."
if [ -d "$data/datasets/fineweb10B_sp8192" ]; then
    pack_data 8192
    if [ "$(packed_bytes)" -gt "$most" ]; then
        rm .dev/sp8192.tar.xz
        echo "The data of the 8,192-token vocabulary do not fit and stay here."
    fi
fi

find .dev -type f -printf '  %f, %s bytes\n' | sort
echo "The tree and .dev have $(mebibytes "$(packed_bytes)"). Next, at the root of the tree on the" \
    "machine with the GPU, .dev along with it:"
echo "    $command"
