"""Who imports whom, what loads what, and that both verifiers run from any folder."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENTRY = ROOT / "records/track_non_record_16mb/2026-11-29_cpu_6x256_pcll"
ARROWS = {  # file -> the project's modules that it imports
    "verify.py": "decode_artifact check code files logs report",
    "records/check.py": "code files logs report",
    "records/pack.py": "check files logs report",
    "records/plot.py": "decode_artifact files pack report",
    "records/wrap.py": "code files pack report",
    "records/code.py": "files",
    "records/logs.py": "files",
    "records/report.py": "",
    "records/files.py": "",
    "decode_artifact.py": "",
}
OURS = "verify train_gpt decode_artifact records tests check logs code report files pack plot wrap"
DECOYS = "check.py logs.py code.py files.py report.py decode_artifact.py records/__init__.py"


def imports(file: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module)
    return {name.removeprefix("records.") for name in found if name.split(".")[0] in OURS.split()}


@pytest.mark.parametrize("file", ARROWS)
def test_arrows_point_one_way(file):
    assert imports(ROOT / file) == {*ARROWS[file].split()}


def test_nothing_of_an_entry_is_run():
    """Nor is there a circle of imports: each module comes after those that it imports."""
    assert [*TopologicalSorter({Path(f).stem: ARROWS[f].split() for f in ARROWS}).static_order()]
    runs = {"exec", "eval", "__import__", "import_module", "run_path", "system", "popen", "Popen"}
    for file in ARROWS:
        for node in ast.walk(ast.parse((ROOT / file).read_bytes())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name.rpartition(".")[2] not in runs
            assert not isinstance(node, ast.Import) or node.names[0].name != "subprocess"


def test_record_folders_need_neither_torch_nor_a_tokenizer():
    program = "import sys; import records.check; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"records.check", "records.code", "records.logs"} <= loaded
    assert not loaded & {"torch", "sentencepiece", "verify", "train_gpt", "decode_artifact"}


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder whose files are named like ours, and stop whoever imports them."""
    (tmp_path / "records").mkdir()
    for name in DECOYS.split():
        (tmp_path / name).write_text("raise SystemExit('a decoy was imported')\n")
    return tmp_path


def findings(script: str, target: Path, cwd: Path) -> list[dict]:
    done = subprocess.run(
        [sys.executable, ROOT / script, target, "--json"], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["findings"]


def test_both_run_from_another_folder_and_agree(elsewhere):
    for path in ENTRY.iterdir():
        if path.suffix != ".pcll":
            (elsewhere / path.name).write_bytes(path.read_bytes())
    alone = findings("records/check.py", elsewhere, elsewhere)
    assert {row["check"] for row in alone} >= {"files", "val_bpb", "evaluation time", "pattern"}
    assert findings("verify.py", elsewhere, elsewhere) == alone


def test_check_py_takes_the_options_of_a_record_folder(tmp_path):
    script = [sys.executable, ROOT / "records/check.py"]
    done = subprocess.run([*script, ENTRY, "--against", "2.1"], capture_output=True, text=True)
    assert done.returncode == 1 and "significance" in done.stdout
    for arguments in ([tmp_path / "absent"], [ROOT / "verify.py"], [ENTRY, "--against", "x"]):
        done = subprocess.run([*script, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("check.py: ")
        assert done.stderr.count("\n") == 1 and done.stdout == ""
