"""Stand-ins for the commands that launch/ calls: `fakes.py NAME ARGUMENT...`.

They refuse subcommands and flags that they do not know, record each call, and play the
scenario in $FAKES/scenario.json:

  creations: for each slice, one after the other, the `states` that its queued resource
    shows at each look, the number of looks (`ticks`) until training ends on its hosts,
    and its exit `status` on each.
  srun: what a step prints, and its exit status.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ.get("FAKES", "."))
HOSTS = [ROOT / "hosts" / name for name in os.environ.get("HOSTS", "01")]
STATE = ROOT / "state.json"

EVERYWHERE = {"--project", "--format", "--verbosity"}, {"--quiet"}
# Subcommand: flags with values, flags without.
GCLOUD = {
    "compute tpus queued-resources create": (
        {"--zone", "--node-id", "--accelerator-type", "--runtime-version"},
        {"--spot"},
    ),
    "compute tpus queued-resources describe": ({"--zone"}, set()),
    "compute tpus queued-resources delete": ({"--zone"}, {"--force"}),
    "compute tpus queued-resources list": ({"--zone"}, set()),
    "compute tpus accelerator-types list": ({"--zone"}, set()),
    "compute tpus tpu-vm describe": ({"--zone"}, set()),
    "compute tpus tpu-vm ssh": ({"--zone", "--worker", "--command"}, set()),
    "compute tpus tpu-vm scp": ({"--zone", "--worker"}, set()),
    "services enable": (set(), set()),
    "projects describe": (set(), set()),
    "storage buckets create": ({"--location"}, {"--uniform-bucket-level-access"}),
    "storage buckets add-iam-policy-binding": ({"--member", "--role"}, set()),
    "storage cp": (set(), {"--recursive", "--no-clobber"}),
    "storage rsync": (set(), {"--recursive"}),
    "storage ls": (set(), set()),
    "storage rm": (set(), {"--recursive"}),
}
KUBECTL = {
    "apply": ({"--filename"}, set()),
    "get": (set(), set()),
    "logs": (
        {"--tail", "--max-log-requests", "--container", "--selector"},
        {"--follow"},
    ),
    "delete": (set(), {"--ignore-not-found"}),
}
SBATCH = (
    {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"}
    | {"--time", "--partition", "--account"},
    set(),
)


def refuse(message):
    print(message, file=sys.stderr)
    sys.exit(2)


def read_flags(words, valued, plain):
    """Split words into flags with their values, and others; refuse unknown flags."""
    flags, others = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            others.append(word)
        elif (equals and name in valued and value) or (not equals and name in plain):
            flags[name] = value
        else:
            refuse(f"unknown flag {word}")
    return flags, others


def subcommand(table, words):
    for length in range(4, 0, -1):
        name = " ".join(words[:length])
        if name in table:
            return name, words[length:]
    refuse(f"unknown subcommand {words[:4]}")


def scenario(key):
    return json.loads((ROOT / "scenario.json").read_text())[key]


def load():
    if STATE.exists():
        return json.loads(STATE.read_text())
    return {"exists": False, "creations": 0, "looks": 0}


def gcloud(words):
    name, words = subcommand(GCLOUD, words)
    valued, plain = GCLOUD[name]
    flags, others = read_flags(words, valued | EVERYWHERE[0], plain | EVERYWHERE[1])
    kind, action = name.split()[-2:]
    if kind == "queued-resources" and action != "list":
        queued_resource(action, flags)
    elif kind == "tpu-vm":
        {"describe": describe_vm, "ssh": ssh, "scp": scp}[action](flags, others)


def queued_resource(action, flags):
    state = load()
    if action == "create":
        needed = GCLOUD["compute tpus queued-resources create"][0]
        if missing := needed - flags.keys():
            refuse(f"missing {missing}")
        if state["exists"]:
            sys.exit("ERROR: (gcloud) ALREADY_EXISTS: it exists")
        state.update(exists=True, creations=state["creations"] + 1, looks=0)
    elif not state["exists"]:
        sys.exit("ERROR: (gcloud) NOT_FOUND: it was not found")
    elif action == "delete":
        if not {"--force", "--quiet"} <= flags.keys():
            refuse("it has a node, and nobody can answer a question")
        state["exists"] = False
        for host in HOSTS:
            shutil.rmtree(host, ignore_errors=True)
    else:
        states = creation(state)["states"]
        print(states[min(state["looks"], len(states) - 1)])
        state["looks"] += 1
    STATE.write_text(json.dumps(state))


def creation(state):
    creations = scenario("creations")
    return creations[min(state["creations"], len(creations)) - 1]


def describe_vm(flags, others):
    print(creation(load()).get("vm", "READY"))


def ssh(flags, others):
    """Run the command in the hosts' home folders, one after the other."""
    if flags["--worker"] != "all":
        refuse("not on all hosts")
    status = 0
    for host in HOSTS:
        host.mkdir(parents=True, exist_ok=True)
        command = ["bash", "-c", flags["--command"]]
        environment = {**os.environ, "HOME": str(host)}
        ended = subprocess.run(command, cwd=host, env=environment)
        status = ended.returncode or status
    sys.exit(status)


def scp(flags, others):
    *sources, target = others
    if not target.endswith(":") or flags["--worker"] != "all":
        refuse("not into all home folders")
    for host in HOSTS:
        host.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(source, host)


def python3(words):
    """Run `pip` and `uv`, which installs a stub with the scenario's exit status."""
    home, known = Path.home(), {"--python", "--reinstall-package"}
    match words:
        case ["-m", "pip", "install", "--user", "--quiet", "uv"]:
            (home / "uv").touch()
        case ["-m", "uv", "venv", *rest] if (home / "uv").exists():
            _, (folder,) = read_flags(rest, known, {"--quiet", "--allow-existing"})
            (home / folder / "bin").mkdir(parents=True, exist_ok=True)
        case ["-m", "uv", "pip", "install", *rest] if (home / "migan_jax").exists():
            flags, (requirement,) = read_flags(rest, known, {"--quiet"})
            if requirement.startswith("./"):
                assert (home / requirement.partition("[")[0]).exists()
            python = home / flags["--python"]
            python.write_text(f"#!/bin/sh\nexit {creation(load())['status']}\n")
            python.chmod(0o755)
        case _:
            refuse(f"unknown {words}")


def sudo(words):
    os.execvp(words[0], words)


SYSTEMD_RUN = (
    {"--unit", "--uid", "--working-directory", "--setenv", "--property"},
    {"--quiet", "--collect"},
)


def systemd_run(words):
    """Keep the command; `systemctl is-active` runs it when its time has come."""
    start = words.index("bash")
    read_flags(words[:start], *SYSTEMD_RUN)
    unit = Path.home() / "unit.json"
    if unit.exists():
        refuse("the unit exists")
    unit.write_text(json.dumps([creation(load())["ticks"], words[start:]]))


def systemctl(words):
    if words != ["is-active", "--quiet", "migan_jax"]:
        refuse(f"unknown {words}")
    unit = Path.home() / "unit.json"
    if not unit.exists():
        sys.exit(3)
    ticks, command = json.loads(unit.read_text())
    if ticks:
        unit.write_text(json.dumps([ticks - 1, command]))
        return
    subprocess.run(command, check=True)
    unit.unlink()
    sys.exit(3)


def kubectl(words):
    name, words = subcommand(KUBECTL, words)
    flags, _ = read_flags(words, *KUBECTL[name])
    applied = ROOT / "applied.yaml"
    if name == "apply":
        applied.write_text(sys.stdin.read())
    elif name == "delete":
        if not applied.exists() and "--ignore-not-found" not in flags:
            sys.exit("Error from server (NotFound)")
        applied.unlink(missing_ok=True)


def sbatch(words):
    """Run the batch script at once, as on the first node."""
    script = next(i for i, word in enumerate(words) if not word.startswith("-"))
    flags, _ = read_flags(words[:script], *SBATCH)
    for line in Path(words[script]).read_text().splitlines():
        if line.startswith("#SBATCH "):
            known = {"--job-name", "--signal", "--open-mode", "--output"}
            read_flags([line.split()[1]], known, {"--requeue"})
    environment = {
        **os.environ,
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": flags["--cpus-per-task"],
    }
    sys.exit(subprocess.run(["bash", *words[script:]], env=environment).returncode)


def srun(words):
    start = words.index("python")
    read_flags(words[:start], {"--kill-on-bad-exit"}, set())
    step = scenario("srun")
    print(step["prints"])
    sys.exit(step["status"])


def scontrol(words):
    if words[:1] != ["requeue"]:
        refuse(f"unknown {words}")


def python(words):
    """Stand in for a process of local.sh."""


def main():
    name, *words = sys.argv[1:]
    with open(ROOT / "calls.jsonl", "a") as calls:
        home = Path.home()
        host = f"host {home.name}: " if home in HOSTS else ""
        calls.write(json.dumps([host + name, *words]) + "\n")
    globals()[name.replace("-", "_")](words)


if __name__ == "__main__":
    main()
