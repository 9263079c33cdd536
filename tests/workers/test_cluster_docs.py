"""docs/cluster.md and docs/jobs say what the program does: options, keys, the script in Python, and
job scripts that parse.
"""

import concurrent.futures
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from landscape.cli import main
from tests.helpers.processes import ROOT, environment_of_scripts, require_dask
from tests.helpers.spectra_study import make_study, stored

PAGE = (ROOT / "docs" / "cluster.md").read_text()
JOBS = ROOT / "docs" / "jobs"
FILES = [JOBS / "array.sbatch", JOBS / "coordinator.sbatch"]
OWN_KEYS = {"cluster", "workers"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[list[str]]:
    """Words of every `landscape ...` line, comments left out and continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    matches = [re.match(r"(?:#\s+|exec )?(landscape .*)", line) for line in lines]
    return [match[1].split(" #")[0].split() for match in matches if match]


def option_names(command: str) -> set[str]:
    parameters = main.commands[command].params
    return {
        name for option in parameters if isinstance(option, click.Option) for name in option.opts
    }


ALL_COMMANDS = [
    words
    for text in (*blocks("sh"), *(path.read_text() for path in FILES))
    for words in commands_of(text)
]


def test_every_command_of_the_page_and_of_the_jobs_exists_with_its_options():
    assert len(ALL_COMMANDS) >= 9
    for _, command, *rest in ALL_COMMANDS:
        options = {word.split("=")[0] for word in rest if word.startswith("-")}
        assert options <= option_names(command), (command, options)


def test_every_option_in_the_text_is_one_of_spectra_or_of_dask():
    spoken = set(
        re.findall(
            r"`(--[a-z-]+)", re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
        )
    )
    assert {"--workers", "--threads", "--shard", "--cluster", "--scheduler"} <= spoken
    assert spoken - option_names("spectra") == {"--nthreads"}


def test_the_commands_of_the_page_run_as_far_as_a_dry_run(tmp_path, monkeypatch):
    make_study(tmp_path, with_config=True)
    monkeypatch.chdir(tmp_path)
    values = {"vit": "one", "0,25": "0,1", "10": "2", '"$SLURM_ARRAY_TASK_ID/$num_shards"': "1/16"}
    measured = [words for words in ALL_COMMANDS if words[1] == "spectra"]
    for words in {tuple(words): None for words in measured}:
        given = [values.get(word, word) for word in words[1:] if word != "--dry-run"]
        given = ["1" if word == '"$SLURM_CPUS_PER_TASK"' else word for word in given]
        result = CliRunner().invoke(main, [*given, "--dry-run"])
        assert result.exit_code == 0, (words, result.output)


def test_the_cluster_file_is_valid_with_what_its_comments_offer(tmp_path):
    require_dask()
    from landscape.workers.cluster_file import read_cluster_file

    settings = read_cluster_file(JOBS / "slurm.yaml")
    assert (
        settings.kind == "slurm" and settings.num_workers == 16 and settings.options["cores"] == 4
    )
    offered = re.sub(
        r"^# ([a-z_]+: )", r"\1", (JOBS / "slurm.yaml").read_text(), flags=re.MULTILINE
    )
    (tmp_path / "all.yaml").write_text(offered)
    settings = read_cluster_file(tmp_path / "all.yaml")
    assert settings.options["processes"] == 1 and settings.options["job_extra_directives"] == [
        "--gres=gpu:1"
    ]


def test_the_keys_in_the_table_are_those_of_cluster_files():
    require_dask()
    from landscape.workers.cluster_file import CLUSTERS, keys_of

    section = PAGE[PAGE.index("| key | meaning |") : PAGE.index("* **GPUs**")]
    rows = [line.split("|")[1] for line in section.splitlines()[2:] if line.startswith("|")]
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert len(keys) >= 10 and keys <= keys_of("slurm") | {"queue"} | OWN_KEYS
    row = next(line for line in section.splitlines() if line.startswith("| `cluster`"))
    assert set(re.findall(r"`(\w+)`", row)) - {"cluster"} == set(CLUSTERS)


def test_the_job_scripts_are_bash_and_the_array_is_as_large_as_its_shards():
    for path in FILES:
        subprocess.run(["bash", "-n", str(path)], check=True)
    text = FILES[0].read_text()
    (last,), (shards,) = re.findall(r"--array=1-(\d+)", text), re.findall(r"num_shards=(\d+)", text)
    assert (
        last == shards
        and f"shard-{{1..{shards}}}.h5" in text
        and f"shard-{{1..{shards}}}.h5" in PAGE
    )


def test_the_page_links_to_files_that_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert {"jobs/array.sbatch", "jobs/slurm.yaml"} <= set(targets)
    assert all((ROOT / "docs" / target).exists() for target in targets)
    for test in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (ROOT / test).exists()


class Here(concurrent.futures.Executor):
    """Calculates in this process."""

    def __init__(self, max_workers, mp_context):
        assert max_workers == 2 and mp_context.get_start_method() == "spawn"

    def submit(self, function, /, *arguments, **options):
        future = concurrent.futures.Future()
        future.set_result(function(*arguments, **options))
        return future


def written_script(folder):
    make_study(folder, with_config=True, epochs=(0,), names=("one",))
    (script,) = blocks("python")
    (folder / "script.py").write_text(script)
    return folder / "script.py"


def test_the_script_in_python_runs_with_an_executor_of_this_process(tmp_path, monkeypatch, capsys):
    script = written_script(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Here)
    runpy.run_path(str(script), run_name="__main__")
    assert "3 of 3 batches are measured (3 now, 0 before)" in capsys.readouterr().out
    assert len(stored(tmp_path / "spectra.h5")) == 3


@pytest.mark.slow
def test_the_script_in_python_runs_as_printed(tmp_path):
    written_script(tmp_path)
    result = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment_of_scripts(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "3 of 3 batches are measured (3 now, 0 before)" in result.stdout
    assert len(stored(Path(tmp_path / "spectra.h5"))) == 3
