"""Times another entry's training script on one GPU, as one rank of eight.

    python tests/bench/peer.py SCRIPT --work FOLDER [--steps N]

The script keeps all its settings but these: it makes N steps, each in a single pass instead of the
eight that it makes on one GPU, and FlashAttention 3, which is not a part of PyTorch, is replaced by
PyTorch's own attention. It is stopped after the last step. DATA_PATH, TOKENIZER_PATH and
TRAIN_BATCH_TOKENS are what the environment says.
"""

import argparse
import os
import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from bench.whole import Figure, lines_of, make_demo_data, show_figures  # noqa: E402

import train_gpt  # noqa: E402

FLASH = re.compile(r"^from flash_attn_interface import flash_attn_func(?: as (\w+))?$", re.M)
ATTENTION = '''
def {name}(q, k, v, causal=True):
    """FlashAttention 3's call, by PyTorch's attention; [batch, tokens, heads, size] each."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=q.size(1) != k.size(1)
    )
    return y.transpose(1, 2)
'''
FIGURES = (
    Figure(r"^model_params:(\d+)", "parameters"),
    Figure(r"^step:(\d+)/\d+ train_loss", "steps"),
    Figure(r"^step:.* train_loss:([\d.]+)", "training loss, nats"),
    Figure(r"^step:.* step_avg:([\d.]+)ms", "step, ms"),
)


def adapted(source: str) -> str:
    """The script with PyTorch's attention, and with one pass a step."""
    source = FLASH.sub(
        lambda found: ATTENTION.format(name=found[1] or "flash_attn_func").strip(), source
    )
    return re.sub(r"grad_accum_steps = 8 // world_size", "grad_accum_steps = 1", source)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for all that it writes")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    script = (args.work / "peer.py").resolve()
    script.write_text(adapted(args.script.read_text(encoding="utf-8")), encoding="utf-8")
    known = {name: os.environ[name] for name in os.environ if name in train_gpt.FIELDS}
    make_demo_data(train_gpt.load_settings(known))  # the other names are the peer's
    environment = {"TRAIN_LOG_EVERY": "5", "VAL_LOSS_EVERY": "0", "WARMUP_STEPS": "5"}
    environment |= dict(os.environ)
    # No warm-down and no cap: neither would be that of a whole run, and entries change with it.
    environment |= {"WARMDOWN_ITERS": "0", "MAX_WALLCLOCK_SECONDS": "0"}
    environment["ITERATIONS"] = str(args.steps)

    for line in lines_of([sys.executable, script], args.work, environment):
        show_figures(line, figures=FIGURES)
        if line.startswith(f"step:{args.steps}/{args.steps} train_loss"):
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
