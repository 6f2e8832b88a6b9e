#!/usr/bin/env bash
# All that one GPU is asked, in the order of the parts that are named, within TOTAL_SECONDS:
#
#     OUT=results bash tests/run_on_gpu.sh [PART ...]
#
#     smoke      three tests: the network, Newton-Schulz, and an update that never waits
#     bench      a step at one rank's share of eight: its time, parts, kernels, memory, compilation
#     run        a minute of training, calibration, export, scores, adaptation, and verify.py
#     peer       the time of a step of another entry's script
#     speed      each change that makes a step faster beside the plain form, and all kernels
#     tests      pytest -m gpu
#     tuned      compiled NorMuon, and tuned matrix products, beside the script as it is
#     frontier   what bench asks, of PRESET=frontier, before and after its recurrence sets in
#     documents  the run of PRESET=frontier, with adaptation per document
#     losses     300 steps in the plain form and as it is: do they train to the same loss?
#
# Without a name it is the first four. What makes a step faster is measured by three calls, with one
# TORCHINDUCTOR_CACHE_DIR for all: "speed"; "tests tuned"; "frontier documents losses".
#
# Each part has its own seconds (SMOKE_SECONDS and so on) and leaves one text file in the folder OUT,
# the runs also their log and artifact in OUT/logs; one that fails or is cut does not stop the next.
# Last comes a table of all figures, as table.txt, too. PRESET=frontier asks bench, run, peer, speed,
# tuned and losses of that preset. The data are those that tests/pack_for_gpu.sh left in .dev, or
# those in DATA.
# REHEARSE=1 goes through all of it on a CPU, with the demo's sizes and data.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${OUT:?names the folder for the results}
mkdir -p "$out"
out=$(realpath "$out")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

total=${TOTAL_SECONDS:-575}
reserve=5 # seconds, for the table
rehearse=${REHEARSE:-0}
declare -A seconds=(
    [smoke]=${SMOKE_SECONDS:-60} [bench]=${BENCH_SECONDS:-130} [run]=${RUN_SECONDS:-290}
    [peer]=${PEER_SECONDS:-110} [speed]=${SPEED_SECONDS:-570} [tests]=${TESTS_SECONDS:-250}
    [tuned]=${TUNED_SECONDS:-320} [frontier]=${FRONTIER_SECONDS:-160}
    [documents]=${DOCUMENTS_SECONDS:-240} [losses]=${LOSSES_SECONDS:-170}
)
export PYTHONUNBUFFERED=1
# What one part compiles, all use; and so does a second call that names the same folder.
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}
# To train_gpt.py these would be misspelt settings.
export -n TOTAL_SECONDS
for part in "${!seconds[@]}"; do
    export -n "${part^^}_SECONDS"
done

# ---- The parts. Each is run by a shell of its own, so that it can be cut.

smoke() {
    # A test's seconds become a line of the table, and so does what went wrong in it.
    COLUMNS=200 python3 -m pytest -s -v --durations=0 --durations-min=0 -m "$mark" -k smoke \
        tests/test_gpu.py |
        sed -E -e 's/^([0-9.]+)s call +.*::test_smoke_(.*)$/\2, s\t\1/' \
            -e 's/^FAILED .*::test_smoke_([^ ]+)( - )?(.*)$/\1, FAILED\t\3/'
}

bench() {
    python3 tests/bench/train.py --steps "$steps"
}

run() {
    local folder=$work/${1:-run}
    mkdir -p "$folder" "$out/logs"
    ln -s "$out/logs" "$folder/logs"
    python3 tests/bench/whole.py --work "$folder" \
        --val-tokens "$val_tokens" --seconds "$((limit * 3 / 4))" # the rest is for verify.py
}

peer() {
    if [ ! -f "$peer" ]; then
        echo "there is no script of a peer: tests/pack_for_gpu.sh takes one"
        return 1
    fi
    python3 tests/bench/peer.py "$peer" --work "$work/peer" --steps "$peer_steps"
}

speed() {
    python3 tests/bench/train.py --pairs speed --steps "$steps" --turns "$turns" \
        --kernels "$out/kernels_plain.txt"
}

tests() {
    COLUMNS=200 python3 -m pytest -v -m "$mark" $tests tests/test_gpu.py
}

tuned() {
    python3 tests/bench/train.py --pairs tuned --steps "$steps" --turns "$turns" \
        --kernels "$out/kernels.txt"
}

frontier() {
    use_preset frontier
    bench
}

documents() {
    use_preset frontier
    TTT_PROTOCOL=per_document run documents
}

losses() {
    python3 tests/bench/train.py --losses "$losses"
}

# ---- Set-up

# Sets each NAME=VALUE that the caller has not set.
default() {
    local item name
    for item in "$@"; do
        name=${item%%=*}
        [ -n "${!name:-}" ] || export "$name=${item#*=}"
    done
}

# use_preset NAME: its settings and the data of its vocabulary; a rehearsal stays with the demo.
use_preset() {
    local vocabulary=1024
    [ "$rehearse" != 1 ] || return 0
    export PRESET=$1
    [ "$PRESET" != frontier ] || vocabulary=8192
    export DATA_PATH=$data/datasets/fineweb10B_sp$vocabulary
    export TOKENIZER_PATH=$data/tokenizers/fineweb_${vocabulary}_bpe.model
}

# A minute of training is some 600 steps: schedule, momentum and EMA are a tenth of a full run's.
sizes_of_the_gpu() {
    mark=gpu steps=10 turns=5 val_tokens=262144 peer_steps=20 losses=300
    tests="" peer=${PEER:-.dev/peer.py}
    default PRESET=pcll TRAIN_BATCH_TOKENS=98304 # the share of one rank of eight
    default MAX_WALLCLOCK_SECONDS=63 WARMUP_STEPS=5 WARMDOWN_ITERS=300
    default MUON_MOMENTUM=0.95 MUON_MOMENTUM_WARMUP_STEPS=150 EMA_DECAY=0.98
}

sizes_of_the_rehearsal() {
    mark="not gpu" steps=2 turns=1 val_tokens=2048 peer_steps=4 losses=6
    tests="-k smoke" peer=${PEER:-train_gpt.py}
    default PRESET=demo CUDA_VISIBLE_DEVICES=
    default DATA_PATH="$work/demo" TOKENIZER_PATH="$work/demo/bpe_1024.model"
    default LOOP_LAST=1 LOOP_PASSES=2 # as PRESET=frontier has a recurrent span
    default NUM_LAYERS=6 TRAIN_SEQ_LEN=64 TRAIN_BATCH_TOKENS=512 MAX_WALLCLOCK_SECONDS=8
    default WARMDOWN_ITERS=20 CALIBRATION_TOKENS=512 TTT_CHUNK_TOKENS=1024 EVAL_STRIDE=32
}

# Where pip is missing, a wheel is still a zip file.
install() {
    if python3 -m pip --version > /dev/null 2>&1; then
        python3 -m pip install --quiet --no-index --no-deps --target "$work/packages" "$1"
    else
        python3 -m zipfile -e "$1" "$work/packages"
    fi
}

unpack() {
    local archive wheel
    if [ "$rehearse" = 1 ]; then
        sizes_of_the_rehearsal
        return
    fi
    sizes_of_the_gpu
    for wheel in .dev/zstandard-*.whl; do
        [ ! -f "$wheel" ] || install "$wheel"
    done
    export PYTHONPATH=$work/packages${PYTHONPATH:+:$PYTHONPATH}
    data=$(realpath "${DATA:-$work/data}")
    mkdir -p "$data"
    for archive in .dev/*.tar.xz; do
        [ ! -f "$archive" ] || tar -xJf "$archive" -C "$data"
    done
    use_preset "$PRESET"
}

card() {
    nvidia-smi --query-gpu=name --format=csv,noheader 2> "$work/errors" || echo "a CPU"
}

# ---- Budgets, and what became of each part

# measure PART: runs it for its seconds, or for those that are left of the whole.
measure() {
    local part=$1 file=$out/$1.txt left=$((total - reserve - SECONDS)) began=$SECONDS status
    export limit=$((seconds[$part] < left ? seconds[$part] : left))
    if [ "$limit" -lt 1 ]; then
        echo "no time was left" > "$file"
        printf '%s\tseconds, NOT STARTED\t0: no time was left\n' "$part" >> "$work/table"
        return
    fi
    echo "== $part, at most $limit s"
    timeout --kill-after=3 "$limit" bash -o pipefail -c "$part" > "$file" 2>&1
    status=$?
    figures "$part" "$file" | tee -a "$work/table" | tabulate
    outcome "$part" "$status" $((SECONDS - began)) "$(last_line "$file")" |
        tee -a "$work/table" | tabulate
}

# The lines "figure<TAB>value" of a file; of a figure that is stated again the last value.
figures() {
    awk -F '\t' -v part="$1" '
        NF == 2 { if (!($1 in value)) order[++count] = $1; value[$1] = $2 }
        END { for (i = 1; i <= count; i++) print part FS order[i] FS value[order[i]] }' "$2"
}

last_line() {
    grep -v '^[[:space:]]*$' "$1" | tail -n 1 | tr '\t' ' ' | sed -E 's/^=+ | =+$//g' | cut -c 1-160
}

outcome() {
    local part=$1 status=$2 took=$3 last=$4
    case $status in
        0) printf '%s\tseconds\t%s\n' "$part" "$took" ;;
        124 | 137) printf '%s\tseconds, CUT\t%s: %s\n' "$part" "$took" "$last" ;;
        *) printf '%s\tseconds, FAILED\t%s: %s\n' "$part" "$took" "$last" ;;
    esac
}

tabulate() {
    awk -F '\t' '{ printf "%-9s %-62.62s %s\n", $1, $2, $3 }'
}

[ $# -gt 0 ] || set -- smoke bench run peer
for part in "$@"; do
    if [ -z "${seconds[$part]:-}" ]; then
        echo "$part is not one of smoke, bench, run, peer, speed, tests, tuned, frontier, documents," \
            "losses." >&2
        exit 2
    fi
done
unpack
export mark tests steps turns val_tokens peer_steps losses peer work out data rehearse
export -f smoke bench run peer speed tests tuned frontier documents losses use_preset
for part in "$@"; do
    measure "$part"
done
{
    echo "All figures, of $(card), in $SECONDS s"
    tabulate < "$work/table"
} | tee "$out/table.txt"
