"""The scripts in launch/, against stand-ins for the commands that they call.

`fake_commands/fakes.py` refuses flags that it does not know. No cloud was ever used.
"""

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
import yaml
from test_readme import ROOT, fenced_lines

LAUNCH = ROOT / "launch"
FAKES = ROOT / "tests" / "fake_commands" / "fakes.py"
COMMANDS = "gcloud kubectl sbatch srun scontrol sudo systemd-run systemctl python3"
SOURCED = "common.sh", "tpu_slice.sh"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
WHEEL = "dist/migan_jax-0.1.0-py3-none-any.whl"
TPU = "--name=pod", "--zone=us-west4-a", "--type=v5litepod-16"
TRAIN = "--", "--config=places256", "--workdir=gs://bucket/it's a run"
FINISHING = {"states": ["PROVISIONING", "ACTIVE"], "ticks": 2, "status": 0}
GKE = (
    "--name=pod --image=here/migan:1 --accelerator=tpu-v5-lite-podslice --topology=4x4 "
    "--hosts=4 --chips=4 --queue=queue --bucket=bucket"
).split()
SLURM = "--nodes=2", "--gpus=8", "--cpus=12", "--time=1:00:00", "--partition=gpu"


class Machine:
    """A folder with a wheel, and the stand-ins first on PATH."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "dist").mkdir()
        (folder / WHEEL).touch()
        (folder / "bin").mkdir()
        for name in [*COMMANDS.split(), "python"]:
            stub = folder / "bin" / name
            run = f'exec {sys.executable} -I -S {FAKES} {name} "$@"'
            stub.write_text(f"#!/bin/sh\n{run}\n")
            stub.chmod(0o755)
        self.environment = {
            **os.environ,
            "FAKES": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "POLL_SECONDS": "0",
        }
        self.play([FINISHING])

    def play(self, creations=(), srun=("finished 4 steps", 0)):
        scenario = {
            "creations": creations,
            "srun": dict(zip(("prints", "status"), srun, strict=True)),
        }
        (self.folder / "scenario.json").write_text(json.dumps(scenario))

    def bash(self, *words, source=LAUNCH, **options):
        script, *rest = words
        command = ["bash", str(source / script) if script in SCRIPTS else script, *rest]
        options = {"timeout": 60, "capture_output": True, "text": True} | options
        return subprocess.run(command, cwd=self.folder, env=self.environment, **options)

    def calls(self):
        """Return the calls since the last time, and forget them."""
        path = self.folder / "calls.jsonl"
        calls = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in calls]

    def forget(self):
        """Forget the slice."""
        (self.folder / "state.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "hosts", ignore_errors=True)

    def own_calls(self):
        """Return the calls on this machine, not those on the slice's hosts."""
        return [call for call in self.calls() if not call[0].startswith("host")]

    def starts(self):
        """Return the training units started on each host."""
        found = [call for call in self.calls() if "systemd-run" in call[0]]
        return [shlex.join(call[call.index("bash") :]) for call in found]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_can_be_parsed(name):
    lines = (LAUNCH / name).read_text().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 88
    assert subprocess.run(["bash", "-n", LAUNCH / name]).returncode == 0
    if name not in SOURCED:
        assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
        assert os.access(LAUNCH / name, os.X_OK)
    assert "TPU_SKIP_MDS_QUERY" not in "\n".join(lines)


@pytest.mark.parametrize("name", sorted({*SCRIPTS} - {*SOURCED, "slurm_job.sh"}))
def test_help_prints_the_header_with_an_example(name, machine):
    ended = machine.bash(name, "--help")
    assert ended.returncode == 0 and f"{name} " in ended.stdout
    assert "set -euo" not in ended.stdout and not machine.calls()


@pytest.mark.parametrize(
    "words",
    [
        ["tpu_vm.sh"],
        ["tpu_vm.sh", "create"],
        ["tpu_vm.sh", "creat", *TPU],
        ["tpu_vm.sh", "create", "run", *TPU],
        ["tpu_vm.sh", "create", *TPU[:2]],
        ["tpu_vm.sh", "create", *TPU[:2], "--type=v9-8"],
        ["tpu_vm.sh", "create", *TPU, "--spott"],
        ["tpu_vm.sh", "create", "--name", "pod"],
        ["tpu_vm.sh", "create", *TPU, "--spot=yes"],
        ["tpu_vm.sh", "run", *TPU],
        ["tpu_vm.sh", "setup", *TPU],  # the project's url leads nowhere
        ["tpu_vm.sh", "babysit", *TPU, "--wheel=dist/no.whl", *TRAIN],
        ["tpu_host.sh"],
        ["gke.sh", "apply", *GKE[:-1], *TRAIN],
        ["gke.sh", "apply", *GKE],
        ["gke.sh", "describe", *GKE],
        ["slurm.sh", *SLURM],
        ["slurm.sh", *SLURM[1:], *TRAIN],
        ["slurm.sh", *SLURM, "--gpus=all", *TRAIN],
        ["local.sh", "--", "--config=scenes64"],
        ["local.sh", "--processes=2"],
        ["local.sh", "--processes=0", "--", "--config=scenes64"],
        ["local.sh", "--processes=2", "--config=scenes64"],
        ["local.sh", "--processes=2", "--timeout=soon", "--", "--config=scenes64"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_sentence(words, machine):
    ended = machine.bash(*words)
    assert ended.returncode == 2 and not machine.calls()
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["tpu_vm.sh", "create", *TPU, "--spot", "--project=mine"],
        ["tpu_vm.sh", "setup", *TPU, f"--wheel={WHEEL}", "--prepare=echo 'a  b' >c"],
        ["tpu_vm.sh", "run", *TPU, *TRAIN],
        ["tpu_vm.sh", "delete", *TPU],
        ["tpu_vm.sh", "babysit", *TPU, f"--wheel={WHEEL}", *TRAIN],
        ["gke.sh", "apply", *GKE, *TRAIN],
        ["gke.sh", "watch", *GKE],
        ["gke.sh", "delete", *GKE],
        ["slurm.sh", *SLURM, *TRAIN],
        ["local.sh", "--processes=2", "--port=1", *TRAIN],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_dry_run_prints_what_runs(words, machine):
    if words[1] in ("run", "delete"):  # what comes before
        for action in "create", "setup":
            machine.bash("tpu_vm.sh", action, *TPU, f"--wheel={WHEEL}")
        machine.calls()
    printed = machine.bash(words[0], "--dry-run", *words[1:])
    assert printed.returncode == 0, printed.stderr
    assert not machine.calls()
    machine.bash("-c", printed.stdout)
    from_dry_run = machine.own_calls()
    if words[1] != "run":
        machine.forget()
    if words[1] == "delete":
        machine.bash("tpu_vm.sh", "create", *TPU)
        machine.calls()
    ended = machine.bash(*words)
    really = machine.own_calls()
    if "babysit" in words:  # looks repeatedly
        really = [call for i, call in enumerate(really) if call not in really[:i]]
    else:
        assert ended.returncode == 0, ended.stderr
    assert from_dry_run and sorted(from_dry_run) == sorted(really)


@pytest.mark.parametrize(
    "type, runtime",
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_the_runtime_follows_from_the_type(type, runtime, machine):
    ended = machine.bash("tpu_vm.sh", "create", "--dry-run", *TPU, f"--type={type}")
    assert f" --runtime-version={runtime} " in ended.stdout


def test_everything_can_be_repeated(machine):
    options = *TPU, f"--wheel={WHEEL}"
    for action in "create", "setup", "run":
        for _ in range(2):
            ended = machine.bash("tpu_vm.sh", action, *options, *TRAIN)
            assert ended.returncode == 0, ended.stderr
    assert len(machine.starts()) == 2  # one for each host
    for _ in range(2):
        assert machine.bash("tpu_vm.sh", "delete", *TPU).returncode == 0
        assert machine.bash("gke.sh", "delete", *GKE).returncode == 0


def test_babysit_starts_over_after_a_preemption(machine):
    preempted = {"ticks": 99, "status": 0}
    states = ["WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE"]
    machine.play(
        [
            preempted | {"states": [*states, "SUSPENDING", "SUSPENDED"]},
            preempted | {"states": states, "vm": "PREEMPTED"},
            FINISHING,
        ]
    )
    options = *TPU, "--spot", f"--wheel={WHEEL}", "--prepare=touch data"
    ended = machine.bash("tpu_vm.sh", "babysit", *options, *TRAIN)
    assert ended.returncode == 0, ended.stderr
    calls = machine.calls()
    made = [call[4] for call in calls if call[1:4:2] == ["compute", "queued-resources"]]
    made = [action for action in made if action != "describe"]
    assert made == ["create", "delete"] * 3  # the last when training has finished
    starts = [call for call in calls if "systemd-run" in call[0]]
    arguments = {tuple(call[call.index("train") + 1 :]) for call in starts}
    assert len(starts) == 4 and arguments == {TRAIN[1:]}  # on two hosts, twice


def test_babysit_repeats_a_run_that_crashes_but_not_for_ever(machine):
    crashing = {"states": ["ACTIVE"], "ticks": 0, "status": 1}
    machine.play([crashing])
    machine.environment["HOSTS"] = "0"
    ended = machine.bash("tpu_vm.sh", "babysit", *TPU, f"--wheel={WHEEL}", *TRAIN)
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith("error: ")
    assert 2 <= len(machine.starts()) <= 5


def test_a_host_that_has_saved_and_stopped_is_started_again(machine):
    """Not all hosts report that they have finished."""
    options = *TPU, f"--wheel={WHEEL}"
    for action in "create", "setup":
        machine.bash("tpu_vm.sh", action, *options)
    for host, status in ("0", "143"), ("1", "0"):
        (machine.folder / "hosts" / host / "train.status").write_text(status)
    machine.calls()
    ended = machine.bash("tpu_vm.sh", "babysit", *options, *TRAIN)
    assert ended.returncode == 0 and len(machine.starts()) == 2


def test_stopping_a_host_is_not_finishing(tmp_path):
    """`train` exits with 0 in both cases."""
    python = tmp_path / "migan_jax" / "bin" / "python"
    python.parent.mkdir(parents=True)
    stub = "trap 'echo saved; exit 0' TERM\necho started\nwhile :; do sleep 0.05; done"
    python.write_text(f"#!/usr/bin/env bash\n{stub}\n")
    python.chmod(0o755)
    command = ["bash", LAUNCH / "tpu_host.sh", "train", "--config=places256"]
    unit = subprocess.Popen(command, env={**os.environ, "HOME": str(tmp_path)})
    log = tmp_path / "train.log"
    while not log.exists() or "started" not in log.read_text():
        assert unit.poll() is None
        time.sleep(0.02)
    unit.send_signal(signal.SIGTERM)
    assert unit.wait(timeout=20) == 0 and "saved" in log.read_text()
    assert (tmp_path / "train.status").read_text() == "143\n"


def test_the_commit_is_pinned_and_must_be_complete(machine):
    def git(*words):
        identity = "-c", "user.name=a", "-c", "user.email=a@b"
        command = ["git", *identity, *words]
        return subprocess.run(command, cwd=clone, check=True, capture_output=True)

    def setup(*more):
        words = "setup", "--dry-run", *TPU, *more
        return machine.bash("tpu_vm.sh", *words, source=clone / "launch")

    clone = machine.folder / "clone"
    shutil.copytree(LAUNCH, clone / "launch")
    (clone / "setup.cfg").write_text("url = https://git.test/migan_jax\n")
    git("init")
    git("add", ".")
    git("commit", "--message=all")
    head = git("rev-parse", "HEAD").stdout.decode().strip()
    wanted = "migan_jax[tpu,gcs] @ git+https://git.test/migan_jax@"
    for options, commit in ((), head), (("--commit=abc",), "abc"):
        lines = setup(*options).stdout.splitlines()
        flag = shlex.split(lines[-1])[7]
        command = shlex.split(flag.removeprefix("--command="))
        assert command == ["bash", "tpu_host.sh", "setup", wanted + commit]
    (clone / "setup.cfg").write_text("url = https://git.test/other\n")
    ended = setup()
    assert ended.returncode == 2 and ended.stderr.startswith("error: ")


def test_the_jobset(machine):
    arguments = [
        "--config=places256",
        'a "b" & \\c: {d} #e',
        "--workdir=gs://b/__NAME__",
    ]
    assert machine.bash("gke.sh", "apply", *GKE, "--", *arguments).returncode == 0
    jobset = yaml.safe_load((machine.folder / "applied.yaml").read_text())
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "pod"
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "queue"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == "here/migan:1" and container["args"] == arguments
    for kind in "requests", "limits":
        assert container["resources"][kind] == {"google.com/tpu": 4}


@pytest.mark.parametrize("signalled, status", [(False, 0), (True, 143)])
def test_a_pod_that_is_stopped_has_not_succeeded(signalled, status, tmp_path):
    """Kubernetes sends SIGTERM to the pod's first process, a shell."""
    python = tmp_path / "python"
    stub = "trap 'exit 0' TERM; touch started; while [ ! -f end ]; do sleep 0.05; done"
    python.write_text(f"#!/usr/bin/env bash\n{stub}\n")
    python.chmod(0o755)
    text = (LAUNCH / "jobset.yaml").read_text()
    jobset = yaml.safe_load(re.sub("__(HOSTS|CHIPS)__", "1", text))
    (slices,) = jobset["spec"]["replicatedJobs"]
    (container,) = slices["template"]["spec"]["template"]["spec"]["containers"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [*container["command"], "--config=places256"]
    pod = subprocess.Popen(command, cwd=tmp_path, env=os.environ | path)
    while not (tmp_path / "started").exists():
        assert pod.poll() is None
        time.sleep(0.02)
    pod.send_signal(signal.SIGTERM) if signalled else (tmp_path / "end").touch()
    assert pod.wait(timeout=20) == status


@pytest.mark.parametrize(
    "srun, requeued, status",
    [
        (("finished 4 steps", 0), False, 0),
        (("stopped at step 2, saved", 0), True, 0),
        (("error: no", 1), False, 1),
    ],
)
def test_a_slurm_job_is_requeued_until_it_has_finished(srun, requeued, status, machine):
    machine.play(srun=srun)
    ended = machine.bash("slurm.sh", *SLURM, *TRAIN)
    assert ended.returncode == status and srun[0] in ended.stdout
    calls = {call[0]: call for call in machine.calls()}
    assert ("scontrol" in calls) == requeued
    assert calls["sbatch"][1:5] == [
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=12",
    ]
    assert calls["srun"][-2:] == list(TRAIN[1:])


def test_the_sky_task():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    known = "resources workdir envs file_mounts setup run"
    assert {*task} == {*known.split()} and task["resources"]["use_spot"] is True
    for part in "setup", "run":
        checked = subprocess.run(["bash", "-n"], input=task[part], text=True)
        assert checked.returncode == 0


def test_the_dockerfile():
    text = (LAUNCH / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", "", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    words = [line.split(maxsplit=1) for line in lines if line]
    known = {"FROM", "ARG", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT"}
    assert {name for name, _ in words} == known
    for _, image in (pair for pair in words if pair[0] == "FROM"):
        assert re.match(r"python:3\.\d+-slim-\w+( AS \w+)?$", image)
    assert not re.search("latest|https?:", text)
    for _, command in (pair for pair in words if pair[0] == "RUN"):
        assert "pip " not in command or "--no-cache-dir" in command
        shell = re.sub(r"--mount=\S+", "", command)
        assert subprocess.run(["bash", "-n"], input=shell, text=True).returncode == 0
    order = [name for name, _ in words]
    assert order.index("USER") > order.index("RUN")
    assert ["USER", "migan"] in words
    assert json.loads(words[-1][1]) == ["python", "-m", "migan_jax"]
    (extras,) = re.findall(r"(\w+(?:\|\w+)+)\)", text)
    (default,) = re.findall(r"ARG EXTRA=(\w+)", text)
    offered = re.findall(r"(?m)^(\w+) =$", (ROOT / "setup.cfg").read_text())
    assert default in extras.split("|") and {*extras.split("|")} <= {*offered}
    copied = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    for line in copied:
        assert not line.startswith("!") or (ROOT / line[1:]).exists()


STUB = """#!/usr/bin/env bash
index=$(grep -o 'process-id=.' <<<"$*" | tail -c 2)
echo "up $index"
trap 'echo saved; exit 0' TERM
case $MODE$index in
  kill1) sleep 0.2; kill -KILL $$ ;;
  deaf0) trap '' TERM ;;
  fail0) exit 3 ;;
  done?) exit 0 ;;
esac
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    "mode, signalled, status, said",
    [
        ("done", False, 0, ["[0] up 0", "[1] up 1"]),
        ("kill", False, 1, ["error: process 1 was killed by SIGKILL", "[0] saved"]),
        ("fail", False, 1, ["error: process 0 ended with status 3", "[1] saved"]),
        ("good", True, 0, ["[0] saved", "[1] saved"]),
        ("deaf", True, 1, ["[1] saved", "error: process 0 "]),
    ],
)
def test_local_processes(mode, signalled, status, said, tmp_path):
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    words = "--processes=2", "--port=1", "--timeout=1", "--", "--config=scenes64"
    launcher = subprocess.Popen(
        ["bash", LAUNCH / "local.sh", *words],
        env={**os.environ, "PYTHON": str(python), "MODE": mode},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = [launcher.stdout.readline() for _ in range(2)]
    if signalled:
        time.sleep(0.2)
        launcher.send_signal(signal.SIGTERM)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == status, out
    lines = [*first, *out.splitlines()]
    for wanted in said:
        assert any(line.startswith(wanted) for line in lines), lines


DOCUMENT = "docs/first_pod_run.md"
LINES = [line.split(" #")[0] for line in fenced_lines(DOCUMENT) if line.strip()]
VERB = "python -m migan_jax."


@pytest.mark.parametrize("line", LINES)
def test_documented_commands(line, machine, monkeypatch):
    """They run with the stand-ins, or their verbs take the arguments."""
    if line.startswith(VERB):
        check_verb(line, monkeypatch)
    elif line.startswith("launch/"):
        script, *words = shlex.split(line)
        ended = machine.bash(script.removeprefix("launch/"), "--dry-run", *words)
        assert ended.returncode == 0, ended.stderr
        pasted = machine.bash("-c", ended.stdout)
        assert machine.calls() and "unknown" not in pasted.stderr, pasted.stderr
        if words.count("--"):  # train's arguments
            arguments = words[words.index("--") + 1 :]
            check_verb(f"{VERB}train {shlex.join(arguments)}", monkeypatch)
    elif line.startswith(("gcloud ", "kubectl ", "sbatch ")):
        ended = machine.bash("-c", line)
        assert machine.calls() and ended.returncode != 2, ended.stderr
    else:
        assert line.startswith(("make ", "docker ", "sky ", "ssh-add ", "pip install "))


def check_verb(line, monkeypatch):
    _, _, module, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    importlib.import_module(module).parse_arguments()


@pytest.mark.full
def test_the_stand_in_knows_only_flags_of_gcloud():
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed")
    for name, (valued, plain) in runpy.run_path(str(FAKES))["GCLOUD"].items():
        command = ["gcloud", *name.split(), "--help"]
        page = subprocess.run(command, capture_output=True, text=True, check=True)
        for flag in valued | plain:
            assert re.search(rf"{flag}\b", page.stdout.replace("[no-]", "")), flag


# Real processes.

STEPS = 90
SETTINGS = runs.SETTINGS | {"data.held_out": 4, "save_every_steps": 30}


def start_launcher(workdir, cache, *more, timeout=30):
    """Start two processes that train; their outputs go to WORKDIR.log."""
    _, _, _, *arguments = runs.command(workdir, STEPS, *more, **SETTINGS)
    options = "--processes=2", f"--timeout={timeout}"
    with open(f"{workdir}.log", "a") as log:
        launcher = subprocess.Popen(
            ["bash", LAUNCH / "local.sh", *options, "--", *arguments],
            env=runs.environment(cache) | {"PYTHON": sys.executable},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    runs.started.append(launcher)
    return launcher


def wait_for_checkpoint(launcher, workdir):
    while not runs.steps(workdir):
        assert launcher.poll() is None, Path(f"{workdir}.log").read_text()
        time.sleep(0.02)


def finish(launcher, workdir, timeout=200):
    status = launcher.wait(timeout=timeout)
    return status, Path(f"{workdir}.log").read_text()


@pytest.mark.slow
def test_real_processes_resume_after_a_kill_and_a_signal(cache, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    status, log = finish(start_launcher(whole, cache), whole)
    assert status == 0 and f"[0] finished {STEPS} steps" in log, log

    launcher = start_launcher(parts, cache, timeout=10)
    wait_for_checkpoint(launcher, parts)
    found = ["pgrep", "--parent", str(launcher.pid), "--full", "process-id=1"]
    (killed,) = subprocess.check_output(found, text=True).split()
    os.kill(int(killed), signal.SIGKILL)
    start = time.monotonic()
    status, log = finish(launcher, parts)
    assert status == 1 and "error: process 1 was killed by SIGKILL" in log, log
    assert time.monotonic() - start < 10 + 5

    saved = runs.steps(parts)[-1]
    launcher = start_launcher(parts, cache, "--config.data.workers=2")
    while f"resuming at step {saved}" not in Path(f"{parts}.log").read_text():
        time.sleep(0.02)
    while runs.metrics(parts)[-1]["step"] <= saved:
        assert launcher.poll() is None, Path(f"{parts}.log").read_text()
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    status, log = finish(launcher, parts)
    step = runs.steps(parts)[-1]
    assert status == 0 and f"[0] stopped at step {step}, saved" in log, log

    status, log = finish(start_launcher(parts, cache), parts)
    assert status == 0 and f"[0] finished {STEPS} steps" in log, log
    assert runs.metrics(parts) == runs.metrics(whole)
    ours, theirs = (runs.read_checkpoint(run)["exported"] for run in (parts, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
