"""Small record folders, one kind of fault, of false alarm or of honest habit each.

`CASES` maps names to Cases: the files of a folder and what must and must not be found in it. All
texts are made up; their shapes are those of real entries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Files = dict[str, str]
BYTES_A_TOKEN = 2.4359  # of the challenge's tokenizer
SHORT = "x = 1\n" * 33  # a script of 198 bytes
LONG = "x = 1\n" * 15_000  # of 90,000
ALARMS = ("FAILED", "SUSPICION")


@dataclass
class Case:
    """A folder, and the verdicts on it."""

    files: Files
    wanted: dict[str, tuple[str, ...]] = field(default_factory=dict)  # check -> its verdicts
    calm: tuple[str, ...] = ()  # checks that must raise no alarm; "all": none does
    sound: bool = True  # whether nothing is FAILED but what is wanted
    says: str = ""  # what a detail or a line must hold

    def write(self, home: Path) -> Path:
        folder = home / "track_10min_16mb" / "2026-04-01_entry"
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


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
    data: str = "fineweb10B_sp1024"  # that it trains on
    head: str = ""
    middle: str = ""  # between stop and export
    tail: str = ""

    def text(self) -> str:
        loss = self.bpb * self.ratio * math.log(2)
        exact = f"val_loss:{loss:.8f} val_bpb:{self.bpb:.8f}"
        rounded = f"val_loss:{loss:.4f} val_bpb:{self.bpb:.4f}"
        lines = [
            f"world_size:{self.world} grad_accum_steps:1",
            f"val_loader:shards pattern=fineweb10B_sp1024/fineweb_val_*.bin tokens:{self.tokens}",
            f"train_loader:dataset:{self.data} train_shards:80",
            f"seed:{self.seed}",
            "step:1000/20000 train_loss:2.3000 train_time:45000ms step_avg:45.00ms",
            f"stopping_early: wallclock_cap train_time:{self.trained}ms step:13000/20000",
            *self.middle.splitlines(),
            f"Code size: {self.code} bytes",
            f"Serialized model int8+zlib: {self.model} bytes",
            f"Total submission size int8+zlib: {self.total or self.model + self.code} bytes",
            f"{self.label} {rounded} eval_time:{self.scored}ms",
            f"{self.label}_exact {exact}",
        ]
        return self.head + "\n".join(lines) + "\n" + self.tail


def runs(scores: dict[int, float] | None = None, **changes) -> Files:
    """Logs of several seeds; a change may depend on the seed."""
    scores = scores or {1: 1.119, 2: 1.120, 3: 1.121}
    found = {}
    for seed, bpb in scores.items():
        own = {name: value(seed) if callable(value) else value for name, value in changes.items()}
        found[f"train_seed{seed}.log"] = Run(seed, bpb, **own).text()
    return found


def entry(logs: Files, script: str = SHORT, more: Files | None = None, **claims) -> Files:
    """A whole folder; a claim of None is left out."""
    table = {"val_bpb": 1.12, "bytes_total": 15_900_200, "seeds": [1, 2, 3]} | claims
    table = {"track": "10min_16mb"} | {k: v for k, v in table.items() if v is not None}
    text = json.dumps(table)
    readme = f"# Entry\nval_bpb {table.get('val_bpb', 1.12):.4f}\n"
    files = {"submission.json": text, "README.md": readme, "train_gpt.py": script}
    return logs | files | (more or {})


# ---------------------------------------------------------------- honest habits


@case
def as_it_should_be() -> Case:
    return Case(entry(runs()), calm=("all",))


@case
def packed_again_after_the_first_export() -> Case:
    tail = "storage_pass quant_bytes=15826872\nstorage_pass code_bytes=92888\n"
    tail += "storage_pass estimated_total=15919760\n"
    logs = runs(model=16_210_528, code=92_888, tail=tail)
    return Case(entry(logs, LONG, bytes_total=15_919_760), calm=("size", "bytes_total"))


@case
def packed_again_in_another_form() -> Case:
    tail = "gptq_int6_brotli: 14,622,509 bytes | code: 92,132 | total: 14,714,641 (14.71MB)\n"
    logs = runs(model=17_237_203, code=92_132, tail=tail)
    return Case(entry(logs, LONG, bytes_total=14_714_641), calm=("size", "bytes_total"))


@case
def packed_again_in_a_form_nobody_knows() -> Case:
    logs = runs(model=16_210_528, code=92_888, tail="squeezed to 15,919,760, artifact is final\n")
    return Case(entry(logs, LONG, bytes_total=15_919_760))


@case
def a_sweep_beside_the_logs() -> Case:
    files = entry(runs()) | {"sweep_lr06/train.log": Run(9, 1.30, model=16_040_667).text()}
    return Case(files, calm=("size", "seeds"))


@case
def a_sweep_beside_the_logs_without_a_claim() -> Case:
    files = entry(runs()) | {"sweep/a/train.log": Run(9, 1.30, model=16_040_667).text()}
    del files["submission.json"]
    return Case(files, {"submission.json": ("FAILED",)}, calm=("size",))


@case
def scores_without_a_colon() -> Case:
    text = Run().text().replace("val_bpb:", "val_bpb ").replace("train_time:", "took ")
    files = entry({"train.log": text.replace("eval_time:", "eval ")}, seeds=[1])
    return Case(files, {"val_bpb": ("CONSISTENT",)}, calm=("files",))


@case
def steps_between_bars() -> Case:
    log = "Step 50   | Loss: 5.2885 | Time: 7.1s\nStep 100  | Loss: 4.7 | Time: 8.4s\n"
    return Case(entry({"train.log": log}, seeds=[1]), calm=("files",))


@case
def iterations_in_brackets() -> Case:
    log = "".join(f"[iter {i}] loss=4.{i} dt=1.2s\n" for i in range(9))
    return Case(entry({"train.log": log}, seeds=[1]), calm=("files",))


@case
def a_slow_diagnostic() -> Case:
    scores = {1: 0.999, 2: 1.000, 3: 1.001}
    logs = {}
    for seed, bpb in scores.items():
        tail = f"mixer val_bpb:{bpb:.8f} eval_time:400000ms\n"
        run = Run(seed, 1.12, "quantized_sliding_window", scored=650_000, tail=tail)
        logs[f"train_seed{seed}.log"] = run.text()
    wanted = {"evaluation time": ("NOT CHECKABLE", "SUSPICION")}
    return Case(entry(logs, val_bpb=1.0), wanted, says="650.0 + 400.0 = 1050.0 s")


@case
def compression_is_no_calibration() -> Case:
    middle = "GPTQ:collected 67 Hessians in 4.1s\nGPTQ:compressed+saved in 122.9s\n"
    return Case(entry(runs(trained=588_000, middle=middle)), {"calibration": ("CONSISTENT",)})


@case
def four_is_four_point_zero() -> Case:
    logs = runs(head=lambda seed: f"Hyperparameters:\nmlp_mult: {'4' if seed == 1 else '4.0'}\n")
    return Case(entry(logs), calm=("settings",))


@case
def a_rate_in_two_notations() -> Case:
    logs = runs(head=lambda seed: f"Hyperparameters:\nlr: {'1e-3' if seed == 1 else '0.001'}\n")
    return Case(entry(logs), calm=("settings",))


@case
def times_are_no_settings() -> Case:
    def head(seed: int) -> str:
        return f"Hyperparameters:\nelapsed: 11.8{seed}s\nstart=2026-03-26T1{seed}:00:00\n"

    return Case(entry(runs(head=head)), calm=("settings",))


@case
def pieces_of_the_tokenizer_are_no_tokens() -> Case:
    script = "features = build_logit_calib_features(val_data.sp, 8192, 0)\n"
    return Case(entry(runs(), script), calm=("pattern",))


@case
def an_older_export_of_the_split() -> Case:
    logs = runs(tokens=63_779_840, ratio=2.4424)
    return Case(entry(logs), {"split": ("SUSPICION",)})


@case
def evaluated_in_a_log_of_its_own() -> Case:
    """The training's log has no score of the export, the evaluation's none of the training."""
    logs = {}
    for name, text in runs().items():
        lines = text.splitlines(True)
        logs[name] = "".join(lines[:-2])
        logs[name.replace("train", "eval")] = lines[3] + "".join(lines[-2:])
    wanted = {"training time": ("CONSISTENT",), "val_bpb": ("CONSISTENT",)}
    return Case(entry(logs), wanted, calm=("size", "seeds"))


@case
def three_runs_in_one_log() -> Case:
    wanted = {"val_bpb": ("CONSISTENT",), "seeds": ("CONSISTENT",)}
    return Case(entry({"train.log": "".join(runs().values())}), wanted, calm=("all",))


@case
def a_run_whose_log_is_repeated() -> Case:
    logs = {name: text * 2 for name, text in runs().items()}
    return Case(entry(logs), {"val_bpb": ("CONSISTENT",)}, calm=("all",))


@case
def scored_prefixes_are_no_final_lines() -> Case:
    tail = "".join(
        f"final_int8: scored:{2**i} nats:{2**i * 2.1:.6f} bytes:{2**i * 2} val_bpb:1.0{i}000000\n"
        for i in range(11, 20)
    )
    return Case(entry(runs(tail=tail)), {"val_bpb": ("CONSISTENT",)}, calm=("all",))


# ---------------------------------------------------------------- claims


@case
def seeds_that_claim_other_numbers() -> Case:
    logs = runs({1337: 1.11479, 42: 1.11479, 2025: 1.11444})
    claims = {"1337": {"val_bpb": 1.1142}, "42": {"val_bpb": 1.1148}, "2025": {"val_bpb": 1.1144}}
    files = entry(logs, val_bpb=1.1145, seeds=claims)
    return Case(files, {"seeds": ("FAILED",)}, says="seed 1337 claims 1.1142")


@case
def seeds_that_claim_each_others_numbers() -> Case:
    claims = {"1": 1.123, "2": 1.117, "3": 1.121}
    logs = runs({1: 1.117, 2: 1.123, 3: 1.121})
    return Case(entry(logs, seeds=claims, val_bpb=1.1203), {"seeds": ("SUSPICION",)})


@case
def seeds_that_claim_more_than_their_logs() -> Case:
    """What is higher flatters nobody."""
    claims = {"1": 1.121, "2": 1.123, "3": 1.124}
    return Case(entry(runs(), seeds=claims), {"seeds": ("SUSPICION",)})


@case
def the_best_of_three() -> Case:
    logs = runs({1: 1.10, 2: 1.12, 3: 1.13})
    return Case(entry(logs, val_bpb=1.10), {"val_bpb": ("SUSPICION",)}, says="best of 3 seeds")


@case
def mean_under_another_name() -> Case:
    files = entry(runs(), val_bpb=None, val_bpb_3seed_mean=1.12)
    return Case(files, {"val_bpb": ("CONSISTENT",)})


@case
def mean_in_the_results() -> Case:
    files = entry(runs(), val_bpb=None, results={"mean_bpb": 1.12, "std_bpb": 0.001})
    return Case(files, {"val_bpb": ("CONSISTENT",)})


@case
def a_mean_that_no_log_gives() -> Case:
    return Case(entry(runs(), val_bpb=None, val_bpb_mean=1.05), {"val_bpb": ("FAILED",)})


@case
def three_seeds_by_a_flag() -> Case:
    files = entry({"seed42.log": Run(42).text()}, seeds=[42], compliance={"three_seeds": True})
    return Case(files, {"seeds": ("SUSPICION",)})


@case
def three_seeds_by_a_count() -> Case:
    return Case(
        entry({"seed42.log": Run(42).text()}, seeds=[42], num_seeds=3), {"seeds": ("SUSPICION",)}
    )


@case
def three_seeds_in_words() -> Case:
    files = entry({"seed42.log": Run(42).text()}, seeds=[42], blurb="the three-seed mean of it")
    return Case(files, {"seeds": ("SUSPICION",)})


# ---------------------------------------------------------------- times


def slow_evaluation(bpb: float) -> Case:
    logs = runs(dict.fromkeys((1, 2, 3), bpb), scored=1_167_545)
    return Case(entry(logs, val_bpb=bpb), {"evaluation time": ("FAILED",)})


for number in (1.0574, 1.0897, 1.1196, 1.1245):
    CASES[f"slow_evaluation_of_{number}"] = lambda bpb=number: slow_evaluation(bpb)


@case
def slow_evaluation_with_a_total() -> Case:
    logs = runs(scored=605_460, tail="total_eval_time:605.5s\n")
    return Case(entry(logs), {"evaluation time": ("FAILED",)})


@case
def a_total_over_the_limit() -> Case:
    logs = runs(scored=590_000, tail="total_eval_time:640.0s\n")
    return Case(entry(logs), {"evaluation time": ("FAILED",)})


EPOCHS = "".join(f"prequant_ttt:epoch {i}/21 time=25.0s lr=0.0001\n" for i in range(1, 22))


@case
def adapts_before_it_scores() -> Case:
    logs = runs(scored=115_000, middle=EPOCHS + "prequant_ttt:done total_time=525.0s\n")
    wanted = {"adaptation time": ("FAILED",)}
    return Case(entry(logs), wanted, says="525.0 + 115.0 = 640.0 s")


@case
def adapts_before_it_scores_without_a_total() -> Case:
    return Case(entry(runs(scored=115_000, middle=EPOCHS)), {"adaptation time": ("FAILED",)})


@case
def adapts_within_the_limit() -> Case:
    middle = "prequant_ttt:done total_time=400.0s\n"
    return Case(entry(runs(scored=115_000, middle=middle)), calm=("adaptation time",))


@case
def adapts_within_the_timed_pass() -> Case:
    logs = runs(scored=590_000, tail="ttt:done total_time=585.0s\n")
    return Case(entry(logs), calm=("adaptation time", "evaluation time"))


@case
def four_gpus_for_longer() -> Case:
    logs = runs(world=4, trained=1_410_000)
    wanted = {"training time": ALARMS}
    return Case(entry(logs), wanted, says="4 x 1,410.0 = 5,640 of 4,800 GPU-seconds")


@case
def four_gpus_for_as_long_as_eight() -> Case:
    return Case(entry(runs(world=4, trained=1_190_000)), calm=("training time",))


@case
def calibration_after_the_limit() -> Case:
    logs = runs(trained=599_600, middle="GPTQ:collected 67 Hessians in 4.7s\n")
    return Case(entry(logs), {"calibration": ("SUSPICION",)}, says="599.6 + 4.7 = 604.3 s")


# ---------------------------------------------------------------- bytes and the split


@case
def bytes_that_nothing_explains() -> Case:
    logs = runs(model=7_100_000, total=15_850_200)
    return Case(entry(logs), {"size": ("SUSPICION",)}, says="8,750,000 bytes of the total")


@case
def the_last_export_is_too_large() -> Case:
    later = "Serialized model int6+lzma: 16400000 bytes\n"
    later += "Total submission size int6+lzma: 16400200 bytes\n"
    return Case(entry(runs(tail=later)), {"size": ("FAILED",)})


@case
def a_part_of_the_text() -> Case:
    return Case(entry(runs(tokens=9_662_464, ratio=3.0997)), {"split": ("FAILED",)})


@case
def more_text_than_there_is() -> Case:
    return Case(entry(runs(tokens=62_363_648, ratio=2.9314)), {"split": ("FAILED",)})


@case
def a_tiny_split() -> Case:
    log = "val_loader:tokens:99328\nworld_size:1 grad_accum_steps:8\nseed:1337\n"
    log += "step:0/500 val_loss:6.9 val_bpb:2.37\nstep:500/500 train_loss:1.2 train_time:139687ms\n"
    log += "step:500/500 val_loss:1.9666 val_bpb:0.6773\n"
    files = entry({"train_seed1337.log": log}, val_bpb=0.6773, seeds=[1337])
    return Case(files, {"split": ("FAILED",)})


@case
def words_that_only_look_like_non_record() -> Case:
    files = entry(runs(tokens=9_662_464, ratio=3.0997), track="10min nonstop anonymous")
    return Case(files, {"split": ("FAILED",)})


# ---------------------------------------------------------------- settings, logs, scripts


@case
def a_setting_in_one_log_alone() -> Case:
    def head(seed: int) -> str:
        extra = "ttt_hash_embed: True\n" if seed == 2 else ""
        return f"Hyperparameters:\nmodel_dim: 512\n{extra}"

    return Case(entry(runs(head=head)), {"settings": ("SUSPICION",)}, says="ttt_hash_embed")


@case
def a_setting_that_the_script_knows() -> Case:
    def head(seed: int) -> str:
        extra = "ttt_embed: True\n" if seed == 2 else ""
        return f"Hyperparameters:\nmodel_dim: 512\n{extra}"

    return Case(entry(runs(head=head), "ttt_embed = True\n" + SHORT), calm=("settings",))


@case
def trains_on_a_set_named_valonly() -> Case:
    return Case(entry(runs(data="fineweb10B_sp1024_valonly")), {"pattern": ("SUSPICION",)})


@case
def hints_within_words() -> Case:
    line = "ngram_tilt:hints total=47851520 gated=13023303 within_gate=9866847 word_gate=2891588\n"
    return Case(entry(runs(middle=line)), {"pattern": ("SUSPICION",)})


@case
def hints_that_are_off() -> Case:
    line = "ngram_tilt:hints total=47851520 gated=130 token_gate=628130 within_gate=0 word_gate=0\n"
    return Case(entry(runs(middle=line)), calm=("pattern",))


@case
def ends_in_a_traceback() -> Case:
    tail = 'Traceback (most recent call last):\n  File "train_gpt.py", line 3\nRuntimeError: x\n'
    return Case(entry(runs(tail=tail)), {"pattern": ("SUSPICION",)}, says="ends in an error")


@case
def a_score_that_is_no_number() -> Case:
    return Case(entry(runs(tail="final_ttt val_bpb:nan\n")), {"pattern": ("SUSPICION",)})


ILLEGAL = """def ttt(model, val_tokens, opt):
    for epoch in range(9):
        loss = model(val_tokens)
        loss.backward()
        opt.step()
"""


@case
def syntax_newer_than_this_python() -> Case:
    script = 'd = {"a": [1]}\nprint(f"{", ".join(map(str, d["a"]))}")\n' + ILLEGAL
    return Case(entry(runs(), script), {"pattern": ("SUSPICION",)}, says="without scoring them")


@case
def runs_a_neighbour() -> Case:
    script = 'exec(open(__file__.replace("train_gpt.py", "rest.py")).read())\n'
    files = entry(runs(), script, {"rest.py": "y = 2\n" * 14_000 + ILLEGAL})
    return Case(files, {"code size": ("PROVEN",), "pattern": ("SUSPICION",)}, says="rest.py")
