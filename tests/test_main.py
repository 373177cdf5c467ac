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
    assert "no checkpoint at nothing.pt" in run(monkeypatch, *words)
    assert run(monkeypatch, "inpant") == 2
    assert "did you mean inpaint?" in capsys.readouterr().err
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
    assert f"there is no flag {flag}" in last and "required" not in last


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
        [sys.executable, "-c", program, "nothing.pt README.md folder gs://b/x.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = ended.stdout.splitlines()
    parts = "no checkpoint at", "README.md is not a", "not a run's workdir", "a bucket"
    for line, part in zip(said, parts, strict=True):
        assert line.startswith("error: ") and part in line and line.endswith(" False")
