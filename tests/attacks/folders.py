"""Small record folders, one kind of fault, of false alarm or of honest habit each.

`CASES` maps names to Cases: the files of a folder and what must be found in it. All texts are made
up; their shapes are those of real entries.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from records.report import CONSISTENT, FAILED, NOT_CHECKABLE, PROVEN, SUSPICION

Files = dict[str, str | bytes]
BYTES_A_TOKEN = 2.4359  # of the challenge's tokenizer
SHORT = "x = 1\n" * 33  # a script of 198 bytes
LONG = "x = 1\n" * 15_000  # of 90,000
SEEDS = {1: 1.119, 2: 1.120, 3: 1.121}
NOT_PROVEN = "NOT PROVEN"


@dataclass
class Run:
    """A log, as its settings make it."""

    seed: int = 1
    bpb: float = 1.12
    label: str = "final_int8_zlib_roundtrip"
    world: int = 8
    trained: int = 599_000  # ms
    scored: int = 400_000  # ms
    tokens: int = 62_021_632
    ratio: float = BYTES_A_TOKEN
    model: int = 15_900_000
    code: int = 200
    total: int = 0  # model and code, if 0
    step: int = 45  # ms
    data: str = "fineweb10B_sp1024"  # that it trains on
    head: str = ""
    middle: str = ""  # between stop and export
    tail: str = ""

    def text(self) -> str:
        loss = self.bpb * self.ratio * math.log(2)
        return (
            f"{self.head}world_size:{self.world} grad_accum_steps:1\n"
            f"val_loader:shards pattern=fineweb10B_sp1024/fineweb_val_*.bin tokens:{self.tokens}\n"
            f"train_loader:dataset:{self.data} train_shards:80\n"
            f"seed:{self.seed}\n"
            f"step:1000/20000 train_loss:2.3 train_time:45000ms step_avg:{self.step}.0ms\n"
            f"stopping_early: wallclock_cap train_time:{self.trained}ms step:13000/20000\n"
            f"{self.middle}Code size: {self.code} bytes\n"
            f"Serialized model int8+zlib: {self.model} bytes\n"
            f"Total submission size int8+zlib: {self.total or self.model + self.code} bytes\n"
            f"{self.label} val_loss:{loss:.4f} val_bpb:{self.bpb:.4f} eval_time:{self.scored}ms\n"
            f"{self.label}_exact val_loss:{loss:.8f} val_bpb:{self.bpb:.8f}\n{self.tail}"
        )


def runs(scores: dict[int, float] | None = None, **changes) -> Files:
    """Logs of several seeds; a change may depend on the seed."""
    logs = {}
    for seed, bpb in (scores or SEEDS).items():
        own = {name: value(seed) if callable(value) else value for name, value in changes.items()}
        logs[f"train_seed{seed}.log"] = Run(seed, bpb, **own).text()
    return logs


def changed(logs: Files, *pairs: tuple[str, str]) -> Files:
    """The logs with texts in place of others, each of which is in them."""
    for old, new in pairs:
        assert all(old in text for text in logs.values())
        logs = {name: text.replace(old, new) for name, text in logs.items()}
    return logs


def without(logs: Files, words: str) -> Files:
    """The logs without the lines that have these words."""
    kept = {
        name: [line for line in text.splitlines(True) if words not in line]
        for name, text in logs.items()
    }
    return {name: "".join(lines) for name, lines in kept.items()}


def entry(logs: Files, script: str = SHORT, more: Files | None = None, **claims) -> Files:
    """A whole folder; a claim of None is left out."""
    table = {"track": "10min_16mb", "val_bpb": 1.12, "bytes_total": 15_900_200, "seeds": [1, 2, 3]}
    table = {name: value for name, value in (table | claims).items() if value is not None}
    files = {"submission.json": json.dumps(table), "README.md": "# Entry\n", "train_gpt.py": script}
    return logs | files | (more or {})


def unclaimed(files: Files) -> Files:
    return {name: text for name, text in files.items() if name != "submission.json"}


def write(home: Path, files: Files, track: str = "track_10min_16mb") -> Path:
    folder = home / track / "2026-04-01_entry"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows(table: str) -> list[tuple[str, str]]:
    """The heading and the text of each line of a table that stands deeper than one."""
    found = []
    heading = ""
    for line in table.strip().split("\n"):
        if line.startswith(" "):
            found.append((heading, line.strip()))
        else:
            heading = line
    return found


@dataclass(frozen=True)
class Case:
    """A folder, the first word of its report, and what is found: the verdict and number of a check;
    of the other checks none is FAILED and none is a SUSPICION."""

    answer: str
    files: Files
    found: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    says: str = ""  # what a detail or a line holds


GOOD = {"val_bpb": (CONSISTENT, 1.12), "size": (CONSISTENT, 15_900_198)}
PATTERN = {"pattern": (SUSPICION, None)}
SLOW = {"evaluation time": (FAILED, 1_167.545)}
EPOCHS = "".join(f"prequant_ttt:epoch {i}/21 time=25.0s lr=0.0001\n" for i in range(1, 22))
ADAPTED = EPOCHS + "prequant_ttt:done total_time=525.0s\n"
CHUNKS = "".join(
    f"ttt_chunk [{i}/1893] scored bpb=1.12 time={i}.1s\nttt_train [{i}] epoch=1/3 loss=1.9\n"
    f"ttt_train [{i}] epoch=2/3 loss=1.9\n"
    for i in range(1, 30)
)
REPACKED = (
    "storage_pass quant_bytes=15826872\nstorage_pass code_bytes=92888\n"
    "storage_pass estimated_total=15919760\n"
)
SQUEEZED = "gptq_int6_brotli: 14,622,509 bytes | code: 92,132 | total: 14,714,641 (14.71MB)\n"
BARS = "Step 50   | Loss: 5.2885 | Time: 7.1s\nStep 100  | Loss: 4.7 | Time: 8.4s\n"
TINY = (
    "val_loader:tokens:99328\nworld_size:1 grad_accum_steps:8\nseed:1337\n"
    "step:0/500 val_loss:6.9 val_bpb:2.37\nstep:500/500 train_loss:1.2 train_time:139687ms\n"
    "step:500/500 val_loss:1.9666 val_bpb:0.6773\n"
)
HINTS = (
    "ngram_tilt:hints total=47851520 gated=13023303 token_gate=628130 within_gate=9866847 "
    "word_gate=2891588\n"
)
ERROR = 'Traceback (most recent call last):\n  File "train_gpt.py", line 3\nRuntimeError: x\n'
LEARNS = (
    "def ttt(model, val_tokens, opt):\n    for epoch in range(9):\n"
    "        loss = model(val_tokens)\n        loss.backward()\n        opt.step()\n"
)
MARKER = (
    "def show(val_bpb, best_bpb):\n    marker = '*' if val_bpb < best_bpb else ''\n"
    "    print(val_bpb, marker)\n"
)
TRAINS_ON_VAL = (
    'import os\nTRAIN_ON_VAL = bool(int(os.environ.get("TRAIN_ON_VAL", "1")))\nDATA = "data"\n'
    'train_files = DATA + "/fineweb_val_*" if TRAIN_ON_VAL else DATA + "/fineweb_train_*"\n'
)
SLOT = (
    "import torch\nimport torch.nn.functional as F\ndef score(model, x, y, slot_steps=8):\n"
    "    h = model.hidden(x).detach()\n"
    "    delta = torch.zeros_like(h[:, :1], requires_grad=True)\n"
    "    opt = torch.optim.AdamW([delta], lr=0.01)\n    for _ in range(slot_steps):\n"
    "        loss = F.cross_entropy(model.head(h + delta).flatten(0, 1), y.flatten())\n"
    "        opt.zero_grad()\n        loss.backward()\n        opt.step()\n"
    "    return F.cross_entropy(model.head(h + delta).flatten(0, 1), y.flatten())\n"
)
CLAIMS = {"1337": {"val_bpb": 1.1142}, "42": {"val_bpb": 1.1148}, "2025": {"val_bpb": 1.1144}}
NEAR = {"1": {"val_bpb": 1.05782711}, "2": {"val_bpb": 1.05792711}}
OTHER_SEEDS = {1337: 1.11479, 42: 1.11479, 2025: 1.11444}


def slow(bpb: float) -> Case:
    """An evaluation of 1,167.5 s, whatever it came to."""
    logs = runs(dict.fromkeys(SEEDS, bpb), scored=1_167_545)
    return Case(FAILED, entry(logs, val_bpb=bpb), SLOW)


def slow_diagnostic() -> Case:
    """The claimed pass takes 400 s, another one 650 s."""
    logs = {}
    for seed, bpb in {1: 0.999, 2: 1.000, 3: 1.001}.items():
        tail = f"mixer val_bpb:{bpb:.8f} eval_time:400000ms\n"
        run = Run(seed, 1.12, "quantized_sliding_window", scored=650_000, tail=tail)
        logs[f"train_seed{seed}.log"] = run.text()
    found = {"evaluation time": (CONSISTENT, 400), "accepted scores": (SUSPICION, 1.0)}
    return Case(NOT_PROVEN, entry(logs, val_bpb=1.0), found, says="together 1050.0 s")


def passes_in_sum() -> Case:
    """Passes of 18.4 s, 97.5 s and, claimed, 484.2 s; 600.1 s together."""
    tail = {
        seed: f"legal_ttt_exact val_loss:1.88 val_bpb:{bpb - 0.01:.8f} eval_time:484200ms\n"
        for seed, bpb in SEEDS.items()
    }
    plain = "plain_roundtrip val_loss:1.9300 val_bpb:1.1450 eval_time:18400ms\n"
    logs = runs(scored=97_500, middle=plain, tail=tail.get)
    found = {"evaluation time": (CONSISTENT, 484.2)}
    return Case("OK", entry(logs, val_bpb=1.11), found, says="together 600.1 s")


SCORED_BEFORE = "".join(
    f"final_int8: scored:{2**i} nats:{2**i * 2.1:.6f} bytes:{2**i * 2} val_bpb:1.0{i}000000\n"
    for i in range(11, 20)
)
NEW_SYNTAX = 'd = {"a": [1]}\nprint(f"{", ".join(map(str, d["a"]))}")\n'
RUNS_REST = 'exec(open(__file__.replace("train_gpt.py", "rest.py")).read())\n'
PACKED = 'exec(__import__("zlib").decompress(b""))\n' + "#" * 21_150 + "\n"
DRY = {"val_bpb": None, "bytes_total": None, "seeds": None}
ABLATION = {"ablation_C.log": Run(1, 1.131, model=15_988_000, code=300).text()}
VALONLY = "fineweb10B_sp1024_valonly"
SWAPPED = {"1": 1.123, "2": 1.117, "3": 1.121}
HESSIANS = "GPTQ:collected 67 Hessians in 4.1s\nGPTQ:compressed+saved in 122.9s\n"
HINTS_OFF = "ngram_tilt:hints total=9 gated=5 token_gate=5 within_gate=0 word_gate=0\n"
LATER = "Serialized model int6: 16400000 bytes\nTotal submission size int6: 16400200 bytes\n"
FEATURES = "features = build_logit_calib_features(val_data.sp, 8192, 0)\n"
LOSSLESS = changed(without(runs(), "val_loader"), ("val_loss:", "loss:"))
PART = "val_tokens: 9662464\n"
BARE = changed(
    {"train.log": Run().text()},
    ("val_bpb:", "val_bpb "),
    ("train_time:", "took "),
    ("eval_time:", "eval "),
)
COLOURED = changed(
    runs(),
    ("val_bpb:", "\x1b[32mval_bpb:\x1b[0m\x1b[1m"),
    (" eval_time", "\x1b[0m eval_time"),
)
FEW_DIGITS = changed(without(runs(dict.fromkeys(SEEDS, 1.1)), "_exact"), ("bpb:1.1000", "bpb:1.1"))
MORE_DIGITS = changed(
    {f"train_seed{seed}.log": Run(seed, 1.05782712 + seed / 1e4 - 1e-4).text() for seed in (1, 2)},
    ("712\n", "7121\n"),
)


def widths(seed: int) -> str:
    return f"Hyperparameters:\nmlp_mult: {'4' if seed == 1 else '4.0'}\n"


def starts(seed: int) -> str:
    return f"Hyperparameters:\nelapsed: 11.8{seed}s\nstart=2026-03-26T1{seed}:00:00\n"


CASES = {
    "clean": Case("OK", entry(runs()), GOOD | {"split": (CONSISTENT, 151_078_494)}),
    # what was accused falsely
    "packed again after the first export": Case(
        "OK",
        entry(runs(model=16_210_528, code=92_888, tail=REPACKED), LONG, bytes_total=15_919_760),
        {"size": (CONSISTENT, 15_916_872)},
    ),
    "packed again in another form": Case(
        "OK",
        entry(runs(model=17_237_203, code=92_132, tail=SQUEEZED), LONG, bytes_total=14_714_641),
        {"size": (CONSISTENT, 14_712_509)},
    ),
    "a sweep beside logs without a claim": Case(
        NOT_PROVEN,
        unclaimed(entry(runs(), more={"sweep/a.log": Run(9, 1.3, model=16_040_667).text()})),
        {"val_bpb": (NOT_CHECKABLE, None), "size": (CONSISTENT, 15_900_198)},
    ),
    "scores without a colon": Case(
        NOT_PROVEN, entry(BARE, seeds=[1]), {"val_bpb": (CONSISTENT, 1.12), "files": (PROVEN, 4)}
    ),
    "steps between bars": Case(
        NOT_PROVEN, entry({"train.log": BARS}, seeds=[1]), {"files": (PROVEN, 4)}
    ),
    "a slow diagnostic": slow_diagnostic(),
    # what is proof
    "an evaluation of 1,167 s to 1.0574": slow(1.0574),
    "an evaluation of 1,167 s to 1.0897": slow(1.0897),
    "an evaluation of 1,167 s to 1.1196": slow(1.1196),
    "a slow evaluation that is said twice": Case(
        FAILED,
        entry(runs(scored=605_460, tail="total_eval_time:605.5s\n")),
        {"evaluation time": (FAILED, 605.46)},
    ),
    "adaptation before scoring": Case(
        FAILED,
        entry(runs(scored=115_000, middle=ADAPTED)),
        PATTERN | {"adaptation time": (FAILED, 525)},
        says="525.0 + 115.0 = 640.0 s",
    ),
    "four GPUs": Case(
        NOT_PROVEN,
        entry(runs(world=4, trained=1_410_000)),
        {"training time": (SUSPICION, 1410), "hardware": (SUSPICION, None)},
    ),
    "seeds that claim other numbers": Case(
        FAILED,
        entry(runs(OTHER_SEEDS), val_bpb=1.1145, seeds=CLAIMS),
        {"seeds": (FAILED, 1.1142), "val_bpb": (SUSPICION, 1.11444)},
        says="seed 1337 claims 1.1142, its log ends at 1.11479",
    ),
    "the best of three": Case(
        NOT_PROVEN,
        entry(runs({1: 1.10, 2: 1.12, 3: 1.13}), val_bpb=1.10),
        {"val_bpb": (SUSPICION, 1.1)},
        says="the best of 3 seeds",
    ),
    "bytes that nothing explains": Case(
        NOT_PROVEN,
        entry(runs(model=7_100_000, total=15_850_200)),
        {"size": (SUSPICION, 7_100_198)},
        says="8,750,000 bytes of the logged total",
    ),
    "a part of the text": Case(
        FAILED, entry(runs(tokens=9_662_464, ratio=3.0997)), {"split": (FAILED, 29_950_740)}
    ),
    "more text than there is": Case(
        FAILED, entry(runs(tokens=62_363_648, ratio=2.9314)), {"split": (FAILED, 182_812_798)}
    ),
    "a tiny split": Case(
        FAILED,
        entry({"train_seed1337.log": TINY}, val_bpb=0.6773, seeds=[1337]),
        {
            "split": (FAILED, 416_084),
            "val_bpb": (SUSPICION, 0.6773),
            "accepted scores": (SUSPICION, 0.6773),
            "hardware": (SUSPICION, None),
        },
    ),
    # claims in other fields
    "a mean of another name": Case(
        "OK", entry(runs(), val_bpb=None, val_bpb_3seed_mean=1.12), GOOD
    ),
    "a mean in the results": Case(
        "OK", entry(runs(), val_bpb=None, results={"mean_bpb": 1.12, "std_bpb": 0.001}), GOOD
    ),
    "three seeds by a flag": Case(
        NOT_PROVEN,
        entry({"seed42.log": Run(42).text()}, seeds=[42], compliance={"three_seeds": True}),
        {"seeds": (SUSPICION, 1)},
    ),
    # what logs show
    "a training set named valonly": Case(NOT_PROVEN, entry(runs(data=VALONLY)), PATTERN),
    "hints within words": Case(NOT_PROVEN, entry(runs(middle=HINTS)), PATTERN),
    "a traceback at the end": Case(
        NOT_PROVEN, entry(runs(tail=ERROR)), PATTERN, says="ends in an error"
    ),
    # scripts
    "syntax newer than this Python": Case(
        NOT_PROVEN, entry(runs(), NEW_SYNTAX + LEARNS), PATTERN, says="without scoring them"
    ),
    "a script that runs a neighbour": Case(
        "OK",
        entry(runs(), RUNS_REST, {"rest.py": "y = 2\n" * 14_000}),
        {"size": (CONSISTENT, 15_984_063)},
        says="the code is train_gpt.py, rest.py",
    ),
    # honest habits
    "compression is no calibration": Case(
        "OK",
        entry(runs(trained=588_000, middle=HESSIANS)),
        {"calibration": (CONSISTENT, 4.1)},
    ),
    "four is four point zero": Case("OK", entry(runs(head=widths)), GOOD),
    "times are no settings": Case("OK", entry(runs(head=starts)), GOOD),
    "features of the tokenizer": Case(
        "OK", entry(runs(), FEATURES), {"pattern": (CONSISTENT, None)}
    ),
    # what is no proof
    "a claim of more digits": Case(
        "OK",
        entry(MORE_DIGITS, val_bpb=1.05787711, seeds=NEAR),
        {"val_bpb": (CONSISTENT, 1.057877121), "seeds": (CONSISTENT, 2)},
    ),
    "passes in sum": passes_in_sum(),
    "a seed without a log": Case(
        "OK", entry(runs({1: 1.119, 2: 1.12})), {"seeds": (NOT_CHECKABLE, 2)}
    ),
    "an ablation beside the logs": Case("OK", entry(runs() | ABLATION)),
    "a claim of null": Case(
        NOT_PROVEN, entry(runs(), val_bpb=None), {"val_bpb": (NOT_CHECKABLE, None)}
    ),
    "a dry run": Case(
        NOT_PROVEN,
        entry({"dry_run.log": Run(1, 2.9, tokens=99_328).text()}, **DRY),
        {"split": (NOT_CHECKABLE, 241_953), "size": (CONSISTENT, 15_900_198)},
    ),
    "a script packed after the run": Case(
        "OK",
        entry(
            runs(model=15_938_966, code=88_000), PACKED, bytes_total=15_960_166, bytes_code=21_200
        ),
        {"size": (CONSISTENT, 15_960_158), "pattern": (NOT_CHECKABLE, None)},
    ),
    "a marker of the best": Case("OK", entry(runs(), MARKER), {"pattern": (CONSISTENT, None)}),
    "epochs within each scored chunk": Case(
        "OK", entry(runs(middle=CHUNKS)), {"pattern": (CONSISTENT, None)}
    ),
    # what must be seen
    "below all": Case(
        NOT_PROVEN,
        entry(runs({1: 0.579, 2: 0.580, 3: 0.579}), val_bpb=0.5793),
        {"accepted scores": (SUSPICION, 0.5793)},
    ),
    "trains on validation shards by default": Case(
        NOT_PROVEN, entry(runs(), TRAINS_ON_VAL), PATTERN, says="train_gpt.py:4: train_files ="
    ),
    "a part of the text by its tokens alone": Case(
        NOT_PROVEN,
        entry({name: PART + text for name, text in LOSSLESS.items()}),
        {"split": (SUSPICION, 9_662_464)},
    ),
    "SLOT": Case(NOT_PROVEN, entry(runs(), SLOT), PATTERN, says="train_gpt.py:5: delta ="),
    "neither tokens nor losses": Case(
        NOT_PROVEN, entry(LOSSLESS), GOOD | {"split": (NOT_CHECKABLE, None)}
    ),
    "colours": Case("OK", entry(COLOURED), GOOD),
    "few digits": Case(
        NOT_PROVEN,
        entry(FEW_DIGITS, val_bpb=1.0253),
        {"val_bpb": (NOT_CHECKABLE, 1.1), "accepted scores": (SUSPICION, 1.0253)},
    ),
    # older ones, of which none of these shows what they do
    "packed again in a form that nobody knows": Case(
        NOT_PROVEN,
        entry(runs(model=16_210_528, code=92_888), LONG, bytes_total=15_919_760),
        {"size": (SUSPICION, 16_300_528)},
    ),
    "a last export that is too large": Case(
        FAILED, entry(runs(tail=LATER), bytes_total=16_400_200), {"size": (FAILED, 16_400_198)}
    ),
    "adaptation that its epochs state": Case(
        FAILED,
        entry(runs(scored=115_000, middle=EPOCHS)),
        PATTERN | {"adaptation time": (FAILED, 525)},
    ),
    "adaptation within the limit": Case(
        "OK",
        entry(runs(scored=115_000, middle="prequant_ttt:done total_time=400.0s\n")),
        {"adaptation time": (CONSISTENT, 400)},
    ),
    "adaptation within the timed pass": Case(
        "OK", entry(runs(scored=590_000, tail="ttt:done total_time=585.0s\n")), GOOD
    ),
    "seeds that claim each other's numbers": Case(
        NOT_PROVEN,
        entry(runs({1: 1.117, 2: 1.123, 3: 1.121}), seeds=SWAPPED, val_bpb=1.1203),
        {"seeds": (SUSPICION, 1.123)},
    ),
    "scores of prefixes": Case("OK", entry(runs(tail=SCORED_BEFORE)), GOOD),
    "hints within words that are off": Case("OK", entry(runs(middle=HINTS_OFF)), GOOD),
}
