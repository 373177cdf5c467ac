"""Workdirs and checkpoints in buckets: what is whole, who may write, what is read."""

import configparser
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import emulators
import pytest

from migan_jax import buckets, files
from migan_jax.buckets import Bucket, bucket_address
from migan_jax.errors import UserError
from migan_jax.training import mirror
from migan_jax.training.mirror import Lock, Mirror, open_workdir
from migan_jax.training.reporting import METRICS_FILE
from migan_jax.training.samples import INITIAL_FILE, SAMPLES_FOLDER
from migan_jax.training.stages import REJECTS_FILE
from migan_jax.weights import locations
from migan_jax.weights.locations import find_checkpoint

# Of the libraries, about their own requests.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", params=["gs", "s3"])
def address(request):
    with emulators.emulate(request.param) as (address, _):
        yield address


@pytest.fixture
def bucket(address, request):
    return Bucket(f"{address}/{request.node.originalname}")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(mirror, "PATIENCE", 0)
    for module in (files, mirror, locations):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("gs://a", "gs://a"),
        ("s3://a/b/c/", "s3://a/b/c"),
        (Path("gs://a/b"), "gs://a/b"),
        ("runs/gs", None),
        ("https://a/b", None),
    ],
)
def test_addresses(location, expected):
    assert bucket_address(location) == expected


def test_objects(bucket, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(6 << 20))
    (tmp_path / "empty").write_bytes(b"")
    bucket.upload({"a/large": tmp_path / "large", "a/b/empty": tmp_path / "empty"})
    bucket.write("text", b"one")
    assert not bucket.create("text", b"two")
    assert bucket.create("other", b"two")
    assert bucket.names() == {"a/large": 6 << 20, "a/b/empty": 0, "text": 3, "other": 3}
    assert bucket.names("a/b/") == {"a/b/empty": 0}
    bucket.download(["a/large", "text"], tmp_path / "copy")
    large = (tmp_path / "copy/a/large").read_bytes()
    assert large == (tmp_path / "large").read_bytes()
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["a", "text"]
    bucket.remove(["a/large", "other"])
    assert sorted(bucket.names()) == ["a/b/empty", "text"]
    assert bucket.read("text") == b"one"
    assert bucket.read("other") is None


def test_a_missing_bucket(address):
    missing = Bucket(address.replace("bucket", "missing") + "/run")
    with pytest.raises(UserError):
        missing.write("text", b"")


def test_a_missing_library(address, monkeypatch):
    for library in ("gcsfs.core", "s3fs"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match="pip install"):
        Bucket(address)


def test_a_lock_is_of_one_run(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "STALE_SECONDS", 5)
    monkeypatch.setattr(mirror, "_this_process", dict)  # as from another machine
    with Lock(bucket) as lock:
        with pytest.raises(UserError, match="in use"), Lock(bucket):
            pass
        lock.check()
    assert bucket.names() == {}


def test_a_lock_whose_answer_was_lost(bucket, monkeypatch):
    create = bucket.create
    monkeypatch.setattr(bucket, "create", lambda *file: create(*file) and False)
    with Lock(bucket) as lock:
        lock.check()
    assert bucket.names() == {}


def test_a_lock_that_is_released_while_another_run_waits(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "STALE_SECONDS", 60)
    bucket.write(mirror.LOCK, b'{"host": "elsewhere", "token": "other"}')
    threading.Timer(1, bucket.remove, [[mirror.LOCK]]).start()
    with Lock(bucket) as lock:
        lock.check()


@pytest.mark.parametrize("content", [b"", b'{"host": "elsewhere", "token": "other"}'])
def test_a_lock_that_nobody_refreshes_is_taken_over(bucket, monkeypatch, content):
    monkeypatch.setattr(mirror, "STALE_SECONDS", 0.5)
    bucket.write(mirror.LOCK, content)
    with Lock(bucket) as lock:
        lock.check()


def test_the_lock_of_a_dead_process_is_taken_over(bucket):
    process = subprocess.Popen(["true"])
    process.wait()
    dead = {**mirror._this_process(), "process": process.pid}
    bucket.write(mirror.LOCK, json.dumps(dead).encode())
    with Lock(bucket):
        assert json.loads(bucket.read(mirror.LOCK))["process"] == os.getpid()


def test_a_run_whose_lock_was_taken_writes_nothing(bucket, tmp_path):
    with Lock(bucket) as lock:
        bucket.write(mirror.LOCK, b'{"host": "elsewhere", "token": "other"}')
        (tmp_path / "metrics.jsonl").write_text("{}")
        with pytest.raises(UserError, match="taken over"):
            Mirror(bucket, tmp_path, lock).upload()
    assert list(bucket.names()) == [mirror.LOCK]


def write_checkpoint(bucket, step, manifest=True):
    names = [f"checkpoints/{step}/{name}" for name in ("exported/a", "optimizer/a")]
    for name in names + [f"checkpoints/{step}/manifest.json"] * manifest:
        bucket.write(name, str(step).encode())


def test_a_kill_between_upload_and_commit(bucket, tmp_path):
    write_checkpoint(bucket, 3)
    write_checkpoint(bucket, 10, manifest=False)
    for name in ("metrics.jsonl", "tensorboard/events", "datasets/photo.jpg"):
        bucket.write(name, b"{}")
    for placeholder in ("", "checkpoints/", "checkpoints/3/"):
        bucket.write(placeholder, b"")
    with open_workdir(Path(bucket.address), clear=False) as (folder, own):
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")}
        assert found == {"checkpoints/3/manifest.json", "metrics.jsonl"}
        (folder / "metrics.jsonl").write_text("more")
        (new := tmp_path / "new").mkdir()
        for name in ("run", "manifest.json"):
            (new / name).write_text(name)
        own.upload_checkpoint(new, 10)
    names = bucket.names("checkpoints/10/")
    assert set(names) == {"checkpoints/10/run", "checkpoints/10/manifest.json"}
    assert not folder.exists()
    assert bucket.read("metrics.jsonl") == b"more"
    assert bucket.read(mirror.LOCK) is None


def test_the_first_error_is_reported(bucket, monkeypatch):
    def fail(*arguments):
        raise UserError("the bucket cannot be reached")

    with pytest.raises(UserError, match="diverged"):
        with open_workdir(Path(bucket.address), clear=False) as (folder, _):
            (folder / "metrics.jsonl").write_text("{}")
            for method in ("read", "write", "upload", "remove"):
                monkeypatch.setattr(Bucket, method, fail)
            raise UserError("the run has diverged")


def test_failing_requests_are_repeated(bucket, monkeypatch):
    monkeypatch.setattr(buckets.time, "sleep", lambda seconds: None)
    answers = iter([OSError("reset"), TimeoutError(), b"content"])

    def cat_file(path):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(bucket._files, "cat_file", cat_file)
    with pytest.raises(UserError, match="reset"):
        bucket.read("object")
    bucket.patience = 100
    assert bucket.read("object") == b"content"


def test_a_checkpoint_is_complete_once_its_manifest_is_there(bucket, tmp_path):
    for name in ("exported", "manifest.json"):
        (tmp_path / name).write_text(name)
    lock = Lock(bucket)
    own = Mirror(bucket, tmp_path, lock)
    written, upload = [], bucket.upload
    bucket.upload = lambda files: (written.append(sorted(files)), upload(files))
    own.upload_checkpoint(tmp_path, 7)
    assert written == [["checkpoints/7/exported"], ["checkpoints/7/manifest.json"]]
    own.set_aside_checkpoint(7, "7.damaged-1")
    assert set(bucket.names()) == {
        "checkpoints/7.damaged-1/exported",
        "checkpoints/7.damaged-1/manifest.json",
    }


def test_checkpoints_are_downloaded(bucket):
    for step in (3, 20):
        write_checkpoint(bucket, step)
    write_checkpoint(bucket, 30, manifest=False)
    bucket.write("config.json", b"{}")
    bucket.write("released.safetensors", b"tensors")
    newest = find_checkpoint(Path(bucket.address))
    assert newest.name == "20"
    assert (newest / "exported/a").read_text() == "20"
    assert not (newest / "optimizer").exists()
    assert (newest.parent.parent / "config.json").exists()
    given = find_checkpoint(Path(f"{bucket.address}/checkpoints/3"))
    assert (given / "exported/a").read_text() == "3"
    file = find_checkpoint(Path(f"{bucket.address}/released.safetensors"))
    assert file.read_bytes() == b"tensors"
    for name in ("checkpoints/30", "missing.pt", "missing"):
        with pytest.raises(UserError):
            find_checkpoint(Path(f"{bucket.address}/{name}"))


def test_requests_are_repeated(address):
    with emulators.emulate(address[:2], fails=0.2) as (own, failures):
        bucket = Bucket(f"{own}/run")
        while len(failures) < 4:
            bucket.write("object", b"content")
            assert bucket.read("object") == b"content"


@pytest.mark.parametrize(("extra", "library"), buckets.EXTRAS.values())
def test_the_libraries_have_extras(extra, library):
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg")
    assert setup["options.extras_require"][extra].strip().startswith(library)


def test_a_resumed_run_finds_what_it_reads():
    grid = f"{SAMPLES_FOLDER}/{INITIAL_FILE}"
    assert set(mirror.NEEDED) == {METRICS_FILE, REJECTS_FILE, grid}
