#!/usr/bin/env bash
# All that is to be measured on a GPU, into the folder $OUT: tests, benches, and one training of the full model, exported
# with both codecs. Training and evaluations are joined by a checkpoint, so that each part can be run, or repeated, alone:
#     OUT=results DATA=data bash tests/run_on_gpu.sh [tests] [bench] [peer] [train] [export] [adapt]
# DATA holds datasets/ and tokenizers/ as in the challenge's repository. PEER is another entry's train_gpt.py, for a side
# by side of seconds a step; SECONDS_TO_TRAIN (default 400) is the cap of the training.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?} data=$(realpath "${DATA:-data}")
mkdir -p "$out"
export DATA_PATH=$data/datasets/fineweb10B_sp1024 TOKENIZER_PATH=$data/tokenizers/fineweb_1024_bpe.model
export MAX_WALLCLOCK_SECONDS=${SECONDS_TO_TRAIN:-400} CHECKPOINT_EVERY=60

step() {
    echo "== $1 ($SECONDS s)"
    "${@:2}" > "$out/$1.txt" 2>&1 || echo "$1 failed: $(tail -n 1 "$out/$1.txt")"
}

[ $# -gt 0 ] || set -- tests bench train export adapt
for part in "$@"; do
    case $part in
        tests) step tests pytest -m gpu ;;
        bench)
            step bench_train python tests/bench_train.py --steps 10
            step bench_train_again python tests/bench_train.py --steps 3
            step bench_eval env NUM_LAYERS=11 MODEL_DIM=512 NUM_HEADS=8 NUM_KV_HEADS=4 MLP_HIDDEN=1500 \
                TRAIN_SEQ_LEN=2048 TRAIN_BATCH_TOKENS=786432 TTT_CHUNK_TOKENS=32768 EVAL_BATCH_SEQS=64 \
                python tests/bench_eval.py --tokens 65537 --repeats 3 ;;
        peer) step peer env ITERATIONS=20 VAL_LOSS_EVERY=0 torchrun --standalone --nproc_per_node=1 "${PEER:?}" ;;
        train) step train env RUN_ID=gpu TTT_PROTOCOL=off EVAL_STRIDE=2048 python train_gpt.py ;;
        export)
            for codec in trellis huffman; do
                step "export_$codec" env RUN_ID=gpu RESUME=latest CODEC=$codec TTT_PROTOCOL=off \
                    ARTIFACT_PATH="$out/$codec.pcll" python train_gpt.py
            done ;;
        adapt)
            step adapt env RUN_ID=gpu RESUME=latest ARTIFACT_PATH="$out/adapt.pcll" python train_gpt.py ;;
    esac
done
cp -r logs "$out/"
