"""tools/fuzz.py: it notices what it is there for, and a short run of every target finds nothing wrong."""

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from norton_plugin import artifact
from norton_plugin.errors import ArtifactError

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    from fuzzing import bit_flips, cpd, kills, manifests, savers_common, watch
    from fuzzing.artefacts import known_artefacts
    from fuzzing.commands import Printed, judge
    from fuzzing.damage import State
    from fuzzing.manifest_edits import edited
    from fuzzing.sealing import covered_by_hashes, sealed
    from fuzzing.targets import PLANTED, TARGETS
    from fuzzing.verdict import OK, Wrong
    from fuzzing.worker import examine
finally:
    sys.path.remove(str(TOOLS))


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """Bait in a folder of this test; the current directory and the path of modules come back."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield watch.lay_bait(tmp_path)
    sys.modules.pop(watch.MODULE, None)


def kinds(target, state, number=0):
    return [kind for kind, _ in examine(target, state, seed=0, number=number).wrong]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (2, "raised KeyError"),
        (6, "touched what it must not: open"),
        (7, "ran planted code"),
        (8, "ran planted code"),
        (9, "touched what it must not: socket.getaddrinfo"),
        (10, "raised SystemExit"),
    ],
)
def test_what_breaks_the_contract_is_noticed(bait, number, kind):
    assert kinds(PLANTED, bait, number) == [f"the planted code {kind}"]
    assert not bait.ran.exists()


def test_what_keeps_the_contract_is_counted(bait):
    fine, refused = (examine(PLANTED, bait, seed=0, number=number) for number in (0, 1))
    assert (fine.ok, fine.refused, fine.wrong) == (1, 0, ())
    assert (refused.ok, refused.refused, refused.wrong) == (0, 1, ())


@pytest.fixture
def digits(bait, tmp_path):
    return State(tmp_path, known_artefacts(tmp_path, only=("demo",)))


def changed_weight(directory, model):
    loaded = copy.deepcopy(model)
    next(iter(loaded.parameters())).data.view(-1)[0] += 1e-6
    return loaded


def raw_error(directory, model):
    raise KeyError("modules")


def reads_bait(directory, model):
    torch.load(Path(directory).parent / watch.TOKEN / "weights.pth")
    raise ArtifactError("told clearly, but too late")


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (changed_weight, "damage passed unseen by load"),
        (raw_error, "load raised KeyError"),
        (reads_bait, "load touched what it must not: open"),
    ],
)
def test_a_wrong_load_is_noticed(digits, monkeypatch, planted, kind):
    number = next(n for n in range(50) if kinds(bit_flips.TARGET, digits, n) == [])
    monkeypatch.setattr(artifact, "load", planted)
    assert kinds(bit_flips.TARGET, digits, number) == [kind]


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (lambda result: result.nmse.mul_(1.01).add_(1e-9), "the NMSE is wrong"),
        (lambda result: result.factors.head.view(-1)[:1].fill_(float("nan")), "head is not finite"),
        (lambda result: torch.rand(1), "decompose_filters used the global random numbers"),
    ],
)
def test_a_wrong_decomposition_is_noticed(monkeypatch, planted, kind):
    right = cpd.decompose_filters

    def wrong(*args, **options):
        result = right(*args, **options)
        planted(result)
        return result

    numbers = [n for n in range(40) if examine(cpd.TARGET, None, seed=0, number=n) == OK]
    assert numbers
    monkeypatch.setattr(cpd, "decompose_filters", wrong)
    assert kind in {found for number in numbers for found in kinds(cpd.TARGET, None, number)}


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (lambda target: (target / "left.tmp").touch(), "the next save leaves what a killed one began"),
        (lambda target: (target / "NOTES.txt").unlink(missing_ok=True), "save removed files of the user"),
        (lambda target: (target / "norton.json").write_text("{"), "a kill during save left no artefact that loads"),
    ],
)
def test_a_wrong_save_is_noticed(tmp_path, monkeypatch, planted, kind):
    place = tmp_path / "place"
    place.mkdir()
    models = savers_common.make_models()
    state = kills.State(tmp_path, models, {}, [])
    savers_common.write(place, models, 0)
    state.names.extend(savers_common.listing(place))
    savers_common.add_own_files(place)
    monkeypatch.setattr(kills, "write", lambda *_: planted(place / savers_common.ARTEFACT))
    if "no artefact" in kind:
        planted(place / savers_common.ARTEFACT)
    else:
        monkeypatch.setattr(kills, "which_variant", lambda *_: 1)
    with pytest.raises(Wrong, match=kind):
        kills._check(state, place, fresh=False)


@pytest.mark.parametrize(
    ("printed", "as_json", "kind"),
    [
        (Printed(1, "", "error: ValueError: embedded null byte (-v shows where)\n"), False, "met ValueError"),
        (Printed(2, "", "Traceback (most recent call last)\n"), False, "showed a traceback"),
        (Printed(2, "", "error: one\nerror: two\n"), False, "without exactly one line"),
        (Printed(2, "half a table", "error: one\n"), False, "without exactly one line"),
        (Printed(-11, "", ""), False, "exit code -11"),
        (Printed(2, "", "error: one\n"), True, "printed no JSON"),
        (Printed(2, "{}", "error: one\n"), True, "its JSON holds no error"),
        (Printed(0, "table", ""), True, "printed no JSON"),
    ],
)
def test_a_wrong_answer_of_the_command_line_is_noticed(printed, as_json, kind):
    with pytest.raises(Wrong, match=kind):
        judge(printed, as_json=as_json)
    assert judge(Printed(0, '{"a": 1}', ""), as_json=True) and judge(Printed(0, "text", ""), as_json=False)
    assert not judge(Printed(2, '{"error": "x"}', "error: x\n"), as_json=True)
    assert not judge(Printed(2, "", "warning: y\nerror: x\n"), as_json=False)


def test_hashes_of_edited_manifests_fit(digits):
    [known] = digits.known
    weights = (known.directory / "model.safetensors").read_bytes()
    covered = covered_by_hashes(known.data, weights)
    assert {"structure_hash", "weights_hash"} <= covered.keys()
    assert sealed(known.data, covered, weights) == known.data
    other = sealed({**known.data, "structure": {"version": 1}}, covered, weights)
    assert (
        other["structure_hash"] != known.data["structure_hash"] and other["weights_hash"] == known.data["weights_hash"]
    )
    with pytest.raises(RuntimeError, match="new_hash of norton.json covers something unknown"):
        covered_by_hashes({**known.data, "new_hash": "0" * 64}, weights)


def test_an_edit_depends_on_seed_and_number_alone(digits, bait):
    [known] = digits.known
    labels = [edited(random.Random(f"0/m/{n}"), known.data, [known.data], bait).label for n in (1, 1, 2)]
    assert labels[0] == labels[1] != labels[2]
    before = json.dumps(known.data)
    assert json.dumps(edited(random.Random(5), known.data, [known.data], bait).data) != before
    assert json.dumps(known.data) == before


def test_an_edit_that_nobody_sees_is_noticed(digits, bait, monkeypatch):
    """With hashes left as they were, what is read must be what was saved."""
    [known] = digits.known
    weights = (known.directory / "model.safetensors").read_bytes()
    covered = covered_by_hashes(known.data, weights)
    state = manifests.State(digits.folder, bait, digits.known, {known.name: covered}, [])
    right = artifact.read_manifest
    other = right(known.directory)
    other.source["kwargs"]["widths"] = [1, 2, 3]
    monkeypatch.setattr(artifact, "read_manifest", lambda directory: other)
    found = {kind for number in range(1, 31, 2) for kind in kinds(manifests.TARGET, state, number)}
    assert "an edit passed unseen by read_manifest" in found


def fuzz(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOLS / "fuzz.py"), *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOLS.parent)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **threads}, check=False)


@pytest.mark.slow
def test_a_crash_a_hang_and_a_flood_are_counted_and_the_run_goes_on(tmp_path):
    answer = fuzz("--only", "planted", "--cases", 11, "--out", "found.json", cwd=tmp_path)
    assert answer.returncode == 1, answer.stderr
    facts = json.loads((tmp_path / "found.json").read_text())
    [row] = facts["targets"]
    assert (row["tried"], row["ok"], row["refused"], row["wrong"]) == (11, 1, 1, 9)
    assert row["kinds"]["crashed: SIGSEGV"] == row["kinds"]["hung for more than 3 s"] == 1
    assert row["kinds"]["took more memory than it may"] == 1
    assert facts["command"] == "python tools/fuzz.py --only planted --cases 11 --out found.json"
    assert str(tmp_path) not in json.dumps(facts) and "/tmp/fuzz-" not in json.dumps(facts)
    assert "python tools/fuzz.py --only planted --seed 0 --case 3" in answer.stdout


@pytest.mark.slow
def test_one_case_can_be_run_again(tmp_path):
    answer = fuzz("--only", "planted", "--case", 2, cwd=tmp_path)
    assert answer.returncode == 1 and "KeyError: 'modules'" in answer.stdout
    assert fuzz("--only", "planted", "--case", 0, cwd=tmp_path).returncode == 0
    assert fuzz("--case", 2, cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_a_short_run_of_every_target_finds_nothing_wrong(tmp_path):
    answer = fuzz("--scale", 0.02, "--seed", 11, "--out", "found.json", cwd=tmp_path)
    facts = json.loads((tmp_path / "found.json").read_text())
    assert [row["target"] for row in facts["targets"]] == list(TARGETS)
    assert {row["target"]: row["kinds"] for row in facts["targets"] if row["wrong"]} == {}
    assert all(row["tried"] >= 1 or row["skipped"] for row in facts["targets"])
    assert answer.returncode == 0
