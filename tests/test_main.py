"""The package as a command: its verbs, and what a misspelt word gets."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import migan_jax
from migan_jax import __main__ as command
from migan_jax.__main__ import VERBS

PACKAGE = Path(migan_jax.__file__).parent


def run(monkeypatch, *words):
    """Exit status of `migan-jax WORDS`."""
    monkeypatch.setattr(sys, "argv", ["migan-jax", *map(str, words)])
    try:
        command.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_every_verb_is_listed_with_what_it_is_for(monkeypatch, capsys):
    there = {p.stem for p in PACKAGE.glob("*.py") if "run_verb(main)" in p.read_text()}
    assert set(VERBS) == there
    for words in ((), ("--help",)):
        assert run(monkeypatch, *words) == 0
        lines = capsys.readouterr().out.splitlines()
        for verb in VERBS:
            (line,) = (x for x in lines if x.split()[:1] == [verb])
            assert len(line.split()) > 4
        assert any("github.com/Picsart-AI-Research/MI-GAN" in line for line in lines)


def test_verbs_run_by_their_names(monkeypatch, capsys):
    assert run(monkeypatch, "inpaint", "--help") == 0
    assert "--checkpoint" in capsys.readouterr().out
    words = "convert", "nothing.pt", "out.safetensors"
    assert "nothing.pt" in run(monkeypatch, *words)
    assert run(monkeypatch, "inpant") == 2
    assert "inpaint?" in capsys.readouterr().err
    assert run(monkeypatch, "--version") == 2
    assert "inpaint, train" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--outptu", "-outptu"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_flag_is_named_first(verb, flag, monkeypatch, capsys):
    """Others are required, and one that is misspelt is missing, too."""
    monkeypatch.setattr(sys, "argv", [verb, f"{flag}=x", "--checkpont", "x"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"migan_jax.{verb}").parse_arguments()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert flag in last and "required" not in last


@pytest.mark.parametrize("verb", ["inpaint", "evaluate", "export", "convert"])
def test_a_wrong_checkpoint_is_named_before_jax_is_imported(verb, tmp_path):
    (tmp_path / "README.md").write_text("no network")
    (tmp_path / "folder").mkdir()
    arguments = {
        "inpaint": "--checkpoint={} --image=a.png --mask=b.png --output=c.png",
        "evaluate": "--checkpoint={} --images=scenes --samples=2 --output=out",
        "export": "--checkpoint={} --kind=network --output=a.onnx",
        "convert": "{} out.safetensors",
    }[verb]
    program = (
        "import sys\n"
        "from migan_jax.config import run_verb\n"
        f"from migan_jax import {verb}\n"
        "for path in sys.argv[1].split():\n"
        f"    sys.argv = ['', *{arguments!r}.format(path).split()]\n"
        "    try:\n"
        f"        run_verb({verb}.main)\n"
        "    except SystemExit as stopped:\n"
        "        print(stopped.code, 'jax' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "nothing.pt README.md folder http://b/x.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = ended.stdout.splitlines()
    parts = (
        "no checkpoint at",
        "README.md is not a",
        "not a run's workdir",
        "an address",
    )
    for line, part in zip(said, parts, strict=True):
        assert line.startswith("error: ") and part in line and line.endswith(" False")


def run_as_a_verb(main, folder, **options):
    """Run a program that begins and ends as verbs do."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # also in CI
    code = f"from migan_jax.config import run_verb\n{main}\nrun_verb(main)"
    command = [sys.executable, "-c", f"import signal\n{heard}\n{code}"]
    return subprocess.run(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, timeout=20, **options
    )


# What begins while it is imported, or by the garbage collector, and what goes on.
INTERRUPTED = {
    "importing": """
import time
def main():
    import interrupting
    time.sleep(60)
""",
    "collecting garbage": """
import gc, time
def interrupt(phase, info):
    import interrupting  # which the first time only does anything
def main():
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(60)
""",
}
SWALLOWING = """
import signal, time
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.1)
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("when", INTERRUPTED)
def test_ctrl_c_is_not_swallowed(when, tmp_path):
    (tmp_path / "interrupting.py").write_text(SWALLOWING)
    ended = run_as_a_verb(INTERRUPTED[when], tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "interrupted\n")


def test_ctrl_c_stays_ignored_in_the_background(tmp_path):
    main = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
def main():
    signal.raise_signal(signal.SIGINT)
    open("done", "w").close()
"""
    assert run_as_a_verb(main, tmp_path).returncode == 0
    assert (tmp_path / "done").exists()


def test_output_that_cannot_be_written_is_found_at_the_start(tmp_path):
    with open("/dev/full", "w") as full:
        main = "def main(): open('begun', 'w')"
        ended = run_as_a_verb(main, tmp_path, stdout=full)
    assert ended.returncode == 1 and list(tmp_path.iterdir()) == []
    assert ended.stderr.startswith("error: ") and "No space" in ended.stderr


def test_output_that_is_closed_is_left_out(tmp_path):
    """And no file that is opened gets its number, and with it what is printed."""
    main = "def main():\n  with open('result', 'w') as file: print(1), file.write('2')"
    closing = "import os; os.close(0); os.close(1); os.execv"
    code = f"from migan_jax.config import run_verb\n{main}\nrun_verb(main)"
    python = sys.executable
    program = f"{closing}({python!r}, [{python!r}, '-c', {code!r}])"
    ended = subprocess.run([python, "-c", program], cwd=tmp_path)
    assert ended.returncode == 0 and (tmp_path / "result").read_text() == "2"
