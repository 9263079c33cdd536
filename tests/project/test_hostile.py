"""Hostile inputs meet every command; and each rule by which they are judged can be broken."""

import json
import shutil
import signal
import subprocess
from collections import Counter

import pytest
from click.testing import CliRunner

from landscape import cli, threads
from tests.helpers.hostile_files import CANARY
from tests.helpers.hostile_grammar import KINDS, Hostile, hostile_input
from tests.helpers.hostile_judge import BYTES, Outcome, judge, snapshot
from tests.helpers.processes import environment_of_scripts, helper_command

# Every fourth of the 400, so that each kind is there nine times or more; every sixteenth, for a run
# that is short, twice or more.
STRIDE, LONG_STRIDE = 4, 16


@pytest.mark.parametrize("stride", [LONG_STRIDE, pytest.param(STRIDE, marks=pytest.mark.slow)])
def test_hostile_inputs_end_as_documented_and_leave_nothing_behind(stride):
    environment = environment_of_scripts() | {"OMP_NUM_THREADS": "1"}
    command = helper_command("hostile", "--stride", stride)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_kind_is_among_the_inputs_and_a_number_always_names_the_same_input():
    names = [hostile_input(number).name for number in range(0, 400, STRIDE)]
    for stride, least in ((STRIDE, 9), (LONG_STRIDE, 2)):
        kinds = Counter(hostile_input(number).kind for number in range(0, 400, stride))
        assert set(kinds) == set(KINDS) and min(kinds.values()) >= least
    assert names == [hostile_input(number).name for number in range(0, 400, STRIDE)]
    assert len(set(names)) > 80 and hostile_input(5, seed=1).name != hostile_input(5).name


@pytest.mark.parametrize("number", [0, 1, 11, 12, 22, 23])
def test_an_input_is_made_of_the_same_bytes_each_time(number, tmp_path):
    from tests.helpers.hostile_study import write_inputs

    contents = []
    for _ in range(2):
        study = tmp_path / "study"
        study.mkdir()
        write_inputs(study)
        hostile_input(number).change(study)
        contents.append(
            {
                path.name: path.read_bytes()
                for path in study.rglob("*")
                if path.is_file() and path.stat().st_size < 10**6
            }
        )
        shutil.rmtree(study)
    assert contents[0] == contents[1]


# each rule, broken


SPECTRA = Hostile("table", "cut", ("spectra", "m.yaml", "-o", "out.h5"))
FIGURE = Hostile("store", "cut", ("figure", "s.h5", "-o", "out.png"))
REFUSED = "landscape: m.yaml, line 2: k is 0.\n"


@pytest.fixture
def judged(tmp_path):
    """Judge an outcome after a change of the study."""

    def judged(
        hostile, status=0, *, seconds=1.0, peak=0, stdout="", stderr="", change=lambda study: None
    ):
        study = tmp_path / "study"
        study.mkdir()
        (tmp_path / "tmp").mkdir()
        (study / "m.yaml").write_text("version: 1\n")
        before = snapshot(study)
        change(study)
        return judge(hostile, Outcome(status, seconds, peak, stdout, stderr), tmp_path, before)

    return judged


@pytest.mark.parametrize(
    ("hostile", "status", "stderr"),
    [
        (SPECTRA, 0, "note: 1 picture is small\n"),
        (SPECTRA, 2, f"vit epoch 0\n{REFUSED}"),
        (SPECTRA, 1, "landscape: the loss is not finite.\n"),
        (FIGURE, 2, "landscape: figure: --width: 'x' is not a number.\n"),
        (
            Hostile("signal", "", ("spectra",), signal=(signal.SIGINT, 0.1)),
            130,
            "landscape: interrupted.\n",
        ),
        (Hostile("signal", "", ("spectra",), signal=(signal.SIGTERM, 0.1)), -signal.SIGTERM, ""),
    ],
)
def test_a_command_that_ends_as_documented_passes(hostile, status, stderr, judged):
    assert judged(hostile, status, stderr=stderr) == []


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("traceback", {"status": 2, "stderr": f"Traceback (most recent call last):\n{REFUSED}"}),
        ("traceback", {"stderr": "Exception ignored in: <function f>\n"}),
        ("an address", {"status": 2, "stderr": "landscape: <Thing at 0x7f12345678> is odd.\n"}),
        ("2.0 GiB", {"peak": BYTES + 1}),
        ("still running", {"status": None}),
        ("not one line", {"status": 2, "stderr": REFUSED * 2}),
        ("not one line", {"status": 2, "stderr": ""}),
        ("not one line", {"status": 2, "stderr": f"{REFUSED}more\n"}),
        ("not one line", {"status": 2, "stderr": "Usage: landscape\n\nError: Invalid value.\n"}),
        ("status 1", {"status": 1, "stderr": "Aborted!\n"}),
        ("status -11", {"status": -11}),
        ("status 139", {"status": 139}),
    ],
)
def test_what_a_command_may_not_print_take_or_return_is_a_fault(said, outcome, judged):
    assert said in judged(SPECTRA, **outcome)[0]


def test_a_figure_has_no_part_that_may_fail(judged):
    assert judged(FIGURE, 1, stderr="landscape: no.\n") == ["status 1"]


@pytest.mark.parametrize(
    ("said", "status", "change"),
    [
        ("pickled code ran", 0, lambda study: (study / CANARY).touch()),
        ("wrote m.yaml", 0, lambda study: (study / "m.yaml").write_text("version: 2\n")),
        ("removed m.yaml", 0, lambda study: (study / "m.yaml").unlink()),
        ("wrote elsewhere", 0, lambda study: (study / "elsewhere").touch()),
        ("left .out.h5.tmp", 0, lambda study: (study / ".out.h5.tmp").touch()),
        (
            "refused, but wrote out.json",
            2,
            lambda study: (study / "out.json").write_text(json.dumps(1)),
        ),
        ("half-written: out.json", 0, lambda study: (study / "out.json").write_text("{")),
        ("half-written: out.png", 0, lambda study: (study / "out.png").write_bytes(b"\x89PNG")),
        ("left in the temporary folder: x", 0, lambda study: (study.parent / "tmp/x").touch()),
    ],
)
def test_what_a_command_may_not_leave_behind_is_a_fault(said, status, change, judged):
    assert said in judged(SPECTRA, status, stderr=REFUSED if status else "", change=change)


def test_ctrl_c_before_a_command_has_begun_is_ctrl_c_too(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "prepare", interrupted)
    result = CliRunner().invoke(cli.main, ["info", "x"])
    assert (result.exit_code, result.stderr) == (
        130,
        "landscape: interrupted before anything was done.\n",
    )
