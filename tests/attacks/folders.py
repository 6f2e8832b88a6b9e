"""Small record folders, one kind of fault, of false alarm or of honest habit each, with what must
be found in them: `CASES`. All texts are made up; their shapes are those of real entries."""

import json
import math
import random
import re
from dataclasses import dataclass, fields
from pathlib import Path

Files = dict[str, str | bytes]
SHORT = "x = 1\n" * 33  # a script of 198 bytes


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
    ratio: float = 1.0  # of the 2.436 bytes that a token should have
    model: int = 15_900_000
    code: int = 200
    total: int = 0  # model and code, if 0
    step: int = 45  # ms
    vocab: int = 1024
    data: str = "fineweb10B"  # that it trains on
    head: str = ""
    middle: str = ""  # between stop and export
    tail: str = ""

    def text(self) -> str:
        loss = self.bpb * self.ratio * 151_080_000 / 62_021_632 * math.log(2)
        return (
            f"{self.head}world_size:{self.world} grad_accum_steps:1\n"
            f"val_loader:shards pattern=fineweb_sp{self.vocab}/val_*.bin tokens:{self.tokens}\n"
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


SEEDS = {1: 1.119, 2: 1.120, 3: 1.121}


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
        if not all(old in text for text in logs.values()):
            raise ValueError(f"a log lacks {old!r}")
        logs = {name: text.replace(old, new) for name, text in logs.items()}
    return logs


def without(logs: Files, words: str) -> Files:
    """The logs without the lines that have one of these words."""
    return {name: re.sub(rf"(?m)^.*(?:{words}).*\n", "", text) for name, text in logs.items()}


def entry(logs: Files, script: str = SHORT, more: Files | None = None, **claims) -> Files:
    """A whole folder; a claim of None is left out."""
    table = {"track": "10min_16mb", "val_bpb": 1.12, "bytes_total": 15_900_200, "seeds": [1, 2, 3]}
    table = {name: value for name, value in (table | claims).items() if value is not None}
    files = {"submission.json": json.dumps(table), "README.md": "# Entry\n", "train_gpt.py": script}
    return logs | files | (more or {})


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


def entry_of(words: str) -> Files:
    """The folder of a row: NAME=VALUE, where a value is JSON or one of TEXTS. A name is a field of
    Run or of submission.json; `scores` of seeds 1, 2, 3, or one for all; `logs`, or `lines` for one
    log of these scores; `lacks`, words of lines that are left out; `script`, `more` files; or
    `helper`, the bytes of a file that the script imports."""
    given = {}
    for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\{[^{}]*\}|\S+)', words):
        given[name] = TEXTS[value] if value in TEXTS else json.loads(value)

    scores = given.pop("scores", None)
    scores = [scores] * 3 if isinstance(scores, float) else scores
    scores = dict(enumerate(scores, 1)) if isinstance(scores, list) else scores
    own = {field.name: given.pop(field.name) for field in fields(Run) if field.name in given}
    logs = given.pop("logs", None) or runs(scores, **own)
    if lines := given.pop("lines", ()):
        text = "".join(f"final_mix val_bpb:{line} eval_time:9ms\n" for line in lines)
        logs = {"train.log": f"seed:1\nTotal submission size x: 15900200 bytes\n{text}"}
        given |= {"seeds": [1]}
    if helper := given.pop("helper", 0):
        given |= {"script": "import helper\n", "more": {"helper.py": TEXTS["NOISE"][:helper]}}
    logs = without(logs, given.pop("lacks", "^$"))
    return entry(logs, given.pop("script", SHORT), given.pop("more", None), **given)


LOSSLESS = changed(without(runs(), "val_loader"), ("val_loss:", "loss:"))
CHUNK = "ttt_chunk [{0}/1893] scored bpb=1.12 time={0}.1s\n"
CHUNK += "ttt_train [{0}] epoch=1/3 loss=1.9\nttt_train [{0}] epoch=2/3 loss=1.9\n"
LEARNS = """def ttt(model, val_tokens, opt):
    for epoch in range(9):
        loss = model(val_tokens)
        loss.backward()
        opt.step()
"""
SLOT = """def score(model, x, y, slot_steps=8):
    h = model.hidden(x).detach()
    delta = torch.zeros_like(h[:, :1], requires_grad=True)
    opt = torch.optim.AdamW([delta], lr=0.01)
    for _ in range(slot_steps):
        loss = F.cross_entropy(model.head(h + delta).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return F.cross_entropy(model.head(h + delta).flatten(0, 1), y.flatten())
"""
TEXTS = {
    "NOISE": "".join(random.Random(0).choices("abcdefgh", k=60_000)),  # 24,036 bytes by lzma
    "LONG": "x = 1\n" * 15_000,
    "NEW_SYNTAX": 'd = {"a": [1]}\nprint(f"{", ".join(map(str, d["a"]))}")\n' + LEARNS,
    "RUNS_REST": 'exec(open(__file__.replace("train_gpt.py", "rest.py")).read())\n',
    "FEATURES": "features = build_logit_calib_features(val_data.sp, 8192, 0)\n",
    "PACKED": 'exec(__import__("zlib").decompress(b""))\n' + "#" * 21_150 + "\n",
    "MARKER": "def show(val_bpb, best_bpb):\n    marker = '*' if val_bpb < best_bpb else ''\n"
    "    print(val_bpb, marker)\n",
    "TRAINS": 'import os\nTRAIN_ON_VAL = bool(int(os.environ.get("TRAIN_ON_VAL", "1")))\n'
    'train_files = "data/fineweb_val_*" if TRAIN_ON_VAL else "data/fineweb_train_*"\n',
    "SLOT": SLOT,
    "REPACKED": "storage_pass quant_bytes=15826872\nstorage_pass code_bytes=92888\n"
    "storage_pass estimated_total=15919760\n",
    "SQUEEZED": "gptq_brotli: 14,622,509 bytes | code: 92,132 | total: 14,714,641 (14.71MB)\n",
    "LATER": "Serialized model x: 16400000 bytes\nTotal submission size x: 16400200 bytes\n",
    "SAID_TWICE": "total_eval_time:605.5s\n",
    "ADAPTS": "".join(f"prequant_ttt:epoch {i}/21 time=25.0s\n" for i in range(1, 22))
    + "prequant_ttt:done total_time=525.0s\n",
    "CHUNKS": "".join(CHUNK.format(i) for i in range(1, 30)),
    "HINTS": "ngram_tilt:hints total=47851520 within_gate=9866847 word_gate=2891588\n",
    "OUTSIDE": "ttt val_loss:1.88 val_bpb:1.1100 eval_time:590000ms\n"
    "ttt_exact val_loss:1.88 val_bpb:1.11003333 eval_time:600100ms\n",
    "ERROR": 'Traceback (most recent call last):\n  File "x", line 3\nRuntimeError: x\n',
    "HESSIANS": "GPTQ:collected 67 Hessians in 4.1s\nGPTQ:compressed+saved in 122.9s\n",
    "MIXER": lambda seed: f"mixer val_bpb:{0.998 + seed / 1e3:.8f} eval_time:400000ms\n",
    "PLAIN": "plain_roundtrip val_loss:1.9300 val_bpb:1.1450 eval_time:18400ms\n",
    "LEGAL": lambda seed: (
        f"legal_exact val_loss:1.88 val_bpb:{1.108 + seed / 1e3:.8f} eval_time:484200ms\n"
    ),
    "ALONE": {"train.log": Run(1, 1.119).text()},
    "RERUNS": {f"{'xabc'[seed]}.log": Run(seed, bpb).text() for seed, bpb in SEEDS.items()},
    "FIVE": runs(SEEDS | {4: 1.13, 5: 1.14}),
    "BARE": changed(
        {"train.log": Run().text()},
        ("val_bpb:", "val_bpb "),
        ("train_time:", "took "),
        ("eval_time:", "eval "),
    ),
    "BARS": {"train.log": "Step 50   | Loss: 5.2885 | Time: 7.1s\nStep 100  | Loss: 4.7 |\n"},
    "TINY": {
        "train.log": "val_loader:tokens:99328\nworld_size:1 grad_accum_steps:8\nseed:1337\n"
        "step:0/500 val_loss:6.9 val_bpb:2.37\nstep:500/500 train_loss:1.2 train_time:139687ms\n"
        "step:500/500 val_loss:1.9666 val_bpb:0.6773\n"
    },
    "MORE_DIGITS": changed(runs({1: 1.05782712, 2: 1.05792712}), ("712\n", "7121\n")),
    "LOSSLESS": LOSSLESS,
    "COLOURED": changed(
        runs(), ("val_bpb:", "\x1b[32mval_bpb:\x1b[0m\x1b[1m"), (" eval_time", "\x1b[0m eval_time")
    ),
    "FEW_DIGITS": changed(without(runs(dict.fromkeys(SEEDS, 1.1)), "_exact"), ("1.1000", "1.1")),
    "CLAIMED": runs(
        {1: 1.1185, 2: 1.1197, 3: 1.1203},
        middle="plain val_loss:1.89 val_bpb:1.1222\nchunk 3/9 val_bpb:1.1501\n",
        tail="NOT LEGAL (learned) val_loss:1.8 val_bpb:1.10120000\n",
    ),
    "DRY_RUN": {"dry_run.log": Run(1, 2.9, tokens=99_328).text()},
    "SWEEP": {"sweep/a.log": Run(9, 1.3, model=16_040_667).text(), "submission.json": ""},
    "REST": {"rest.py": "y = 2\n" * 14_000},
    "ABLATION": {"ablation_C.log": Run(1, 1.131, model=15_988_000, code=300).text()},
    "PART": changed(LOSSLESS, ("world_size", "val_tokens: 9662464\nworld_size")),
}
# A folder; the words of its entry; the first word of its report and findings, with their numbers.
# Beside these none is FAILED and none is a SUSPICION.
CASES = """
clean
    -> OK; CONSISTENT val_bpb 1.12; CONSISTENT size 15900198; CONSISTENT split 151080000
packed again after the first export
    model=16210528 code=92888 tail=REPACKED script=LONG bytes_total=15919760
    -> OK; CONSISTENT size 15916872
packed again in another form
    model=17237203 code=92132 tail=SQUEEZED script=LONG bytes_total=14714641
    -> OK; CONSISTENT size 14712509
a sweep beside logs without a claim
    more=SWEEP -> NOT PROVEN; NOT CHECKABLE val_bpb; CONSISTENT size 15900198
scores without a colon
    logs=BARE seeds=[1] -> NOT PROVEN; CONSISTENT val_bpb 1.12; PROVEN files 4
steps between bars
    logs=BARS seeds=[1] -> NOT PROVEN; PROVEN files 4
a slow diagnostic of 650 s
    label="quantized" scores=1.12 scored=650000 tail=MIXER val_bpb=1.0
    -> NOT PROVEN; CONSISTENT evaluation time 400; SUSPICION accepted scores 1.0
an evaluation of 1,167 s to 1.0574
    scores=1.0574 scored=1167545 val_bpb=1.0574 -> FAILED; FAILED evaluation time 1167.545
a slow evaluation that is said twice
    scored=605460 tail=SAID_TWICE -> FAILED; FAILED evaluation time 605.46
adaptation before scoring
    scored=115000 middle=ADAPTS -> FAILED; FAILED adaptation time 525; SUSPICION pattern
four GPUs
    world=4 trained=1410000 -> NOT PROVEN; SUSPICION training time 1410; SUSPICION hardware
seeds that claim other numbers
    scores=[1.11479,1.11479,1.11444] val_bpb=1.1145 seeds={"1":1.1142,"2":1.1148,"3":1.1144}
    -> FAILED; FAILED seeds 1.1142; SUSPICION val_bpb 1.11444
the best of three
    scores=[1.10,1.12,1.13] val_bpb=1.1 -> NOT PROVEN; SUSPICION val_bpb 1.1
bytes that nothing explains
    model=7100000 total=15850200 -> NOT PROVEN; SUSPICION size 7100198
a part of the text
    tokens=9662464 ratio=1.2725 -> FAILED; FAILED split 29950872
more text than there is
    tokens=62363648 ratio=1.2034 -> FAILED; FAILED split 182812255
a tiny split
    logs=TINY val_bpb=0.6773 seeds=[1337] -> FAILED; FAILED split 416084;
    SUSPICION val_bpb 0.6773; SUSPICION accepted scores 0.6773; SUSPICION hardware
a mean under another name
    val_bpb=null val_bpb_3seed_mean=1.12 -> OK; CONSISTENT val_bpb 1.12
a mean in the results
    val_bpb=null results={"mean_bpb":1.12,"std_bpb":0.001} -> OK; CONSISTENT val_bpb 1.12
three seeds by a flag
    scores={"42":1.12} seeds=[42] compliance={"three_seeds":true} -> NOT PROVEN; SUSPICION seeds 1
a training set that is named valonly
    data="fineweb10B_valonly" -> NOT PROVEN; SUSPICION pattern
hints within words
    middle=HINTS -> NOT PROVEN; SUSPICION pattern
a traceback at the end
    tail=ERROR -> NOT PROVEN; SUSPICION pattern
syntax newer than this Python's
    script=NEW_SYNTAX -> NOT PROVEN; SUSPICION pattern
a script that runs a neighbour
    script=RUNS_REST more=REST -> OK; CONSISTENT size 15900200
compression is no calibration
    trained=588000 middle=HESSIANS -> OK; CONSISTENT calibration 4.1
features of the tokenizer
    script=FEATURES -> OK; CONSISTENT pattern
a claim of more digits
    logs=MORE_DIGITS val_bpb=1.05787711 seeds={"1":1.05782711,"2":1.05792711}
    -> OK; CONSISTENT val_bpb 1.057877121; CONSISTENT seeds 2
passes of 600.1 s in sum
    scored=97500 middle=PLAIN tail=LEGAL val_bpb=1.11 -> OK; CONSISTENT evaluation time 484.2
a seed without a log
    scores=[1.119,1.12] -> OK; NOT CHECKABLE seeds 2
an ablation beside the logs
    more=ABLATION -> OK; CONSISTENT val_bpb 1.12; CONSISTENT size 15900198
a dry run
    logs=DRY_RUN val_bpb=null bytes_total=null seeds=null
    -> NOT PROVEN; NOT CHECKABLE split 241955; CONSISTENT size 15900198
a script that was packed after the run
    model=15938966 code=88000 script=PACKED bytes_total=15960166 bytes_code=21200
    -> OK; CONSISTENT size 15960158; NOT CHECKABLE pattern
a marker of the best
    script=MARKER -> OK; CONSISTENT pattern
epochs within each scored chunk
    middle=CHUNKS -> OK; CONSISTENT pattern
below all
    scores=[0.579,0.58,0.579] val_bpb=0.5793 -> NOT PROVEN; SUSPICION accepted scores 0.5793
trains on validation shards by default
    script=TRAINS -> NOT PROVEN; SUSPICION pattern
a part of the text by its tokens alone
    logs=PART -> NOT PROVEN; SUSPICION split 9662464
SLOT
    script=SLOT -> NOT PROVEN; SUSPICION pattern
neither tokens nor losses
    logs=LOSSLESS -> NOT PROVEN; NOT CHECKABLE split; CONSISTENT val_bpb 1.12
colours around numbers
    logs=COLOURED -> OK; CONSISTENT val_bpb 1.12
few digits
    logs=FEW_DIGITS val_bpb=1.0253
    -> NOT PROVEN; NOT CHECKABLE val_bpb 1.1; SUSPICION accepted scores 1.0253
packed again in a form that nobody knows
    model=16210528 code=92888 script=LONG bytes_total=15919760
    -> NOT PROVEN; SUSPICION size 16300528
a last export that is too large
    tail=LATER bytes_total=16400200 -> FAILED; FAILED size 16400198
"""
