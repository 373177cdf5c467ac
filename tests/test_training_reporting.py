"""Metrics of a run, and what a resumed run keeps of them."""

import json

import pytest
import runs

from migan_jax.errors import UserError
from migan_jax.training import reporting
from migan_jax.training.reporting import (
    BOARD_FOLDER,
    METRICS_FILE,
    Averages,
    Clock,
    Reporter,
    truncate_metrics,
)

OPTIONS = {"total_steps": 9, "log_every_steps": 1, "nonfinite_steps": 3, "labels": {}}


def log(workdir, first, last, earlier=None, **options):
    """Log steps `first` + 1 to `last`, with their number as loss; return `position`."""
    settings = {
        "total_steps": 20,
        "log_every_steps": 5,
        "nonfinite_steps": 3,
        "labels": {"g/adversarial": "G", "d/r1": "R1"},
    }
    workdir.mkdir(exist_ok=True)
    with Reporter(
        workdir, first_step=first, earlier=earlier, **(settings | options)
    ) as reporter:
        for step in range(first + 1, last + 1):
            with reporter.loading_data():
                pass
            lazy = {"d/r1": step / 3} if step % 4 == 0 else {}
            reporter.log(step, {"g/adversarial": float(step), **lazy}, images=4)
        reporter.log_pending()
        reporter.flush()
        return reporter.position


def test_a_line_holds_the_means_since_the_last_one(tmp_path, capsys):
    log(tmp_path, 0, 12)
    first, second = runs.metrics(tmp_path)
    assert first == {"step": 5, "g/adversarial": 3.0, "d/r1": 1.33333333}
    assert second == {"step": 10, "g/adversarial": 8.0, "d/r1": 2.66666667}
    lines = capsys.readouterr().out.splitlines()
    for part in ("step 5 of 20", "G 3", "R1 1.33", "img/s"):
        assert part in lines[0]


def test_time_of_steps_and_of_loading(tmp_path):
    log(tmp_path, 0, 5)
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    line = json.loads(line)
    assert 0 <= line["time/data"] <= line["time/step"]
    assert line["time/images_per_second"] == pytest.approx(4 / line["time/step"], 1e-6)


@pytest.mark.parametrize("saved", [4, 5, 7, 10])
@pytest.mark.parametrize("lost", [0, 1, 6])
@pytest.mark.parametrize("tail", [-3, bytes(200), b"\x05" + bytes(7) + b"x" * 40])
def test_a_resumed_run_has_no_gaps_and_no_duplicates(saved, lost, tail, tmp_path):
    """Saved at a step, killed some steps later: what was not synced may be damaged.

    Args:
      tail: how the kill or power cut left TensorBoard's newest file.
    """
    log(tmp_path / "alone", 0, 20)
    workdir = tmp_path / "resumed"
    position = json.loads(json.dumps(log(workdir, 0, saved)))
    log(workdir, saved, saved + lost, position)
    with (workdir / METRICS_FILE).open("a") as file:
        file.write('{"step": 12, "g/adv')
    if lost:
        board = max((workdir / BOARD_FOLDER).iterdir())
        content = board.read_bytes()
        board.write_bytes(content[:tail] if isinstance(tail, int) else content + tail)
    log(workdir, saved, 20, position)
    assert runs.metrics(workdir) == runs.metrics(tmp_path / "alone")
    assert runs.board(workdir) == runs.board(tmp_path / "alone")


def test_a_full_disk_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"metrics .*No space left"):
        with Reporter(tmp_path, **OPTIONS) as reporter:
            reporter._file.close()
            reporter._file = open("/dev/full", "w")
            reporter.log(1, {"g/adversarial": 1.0}, images=4)
            reporter.log_pending()


def test_metrics_without_a_checkpoint_are_dropped(tmp_path):
    log(tmp_path, 0, 7)
    log(tmp_path, 0, 5)
    assert [line["step"] for line in runs.metrics(tmp_path)] == [5]
    assert {step for step, _, _ in runs.board(tmp_path)} == {5}


@pytest.mark.parametrize(
    "bad", [b"nonsense", b"[1]", b'{"step": []}', b"\0" * 9, b"\xff"]
)
def test_only_damaged_lines_are_dropped(bad, tmp_path, caplog):
    path = tmp_path / METRICS_FILE
    first, second = b'{"step": 1, "a": "nan"}\n', b'{"step": 2}\n'
    path.write_bytes(first + bad + b"\n" + second + b'{"step": 3}\n{"step": 2}')
    truncate_metrics(path, 2)
    assert path.read_bytes() == first + second
    assert f"{path}: dropped 1 " in caplog.text
    truncate_metrics(tmp_path / "nothing", 5)


def test_losses_that_stay_nonfinite_stop_the_run(tmp_path):
    bad = {"g/adversarial": float("nan"), "d/adversarial": 1.0}
    with Reporter(tmp_path, **OPTIONS) as reporter:

        def log_step(step, metrics):
            reporter.log(step, metrics, images=4)
            reporter.log_pending()

        for step in (1, 2):
            log_step(step, bad)
            assert not reporter.is_finite
        log_step(3, {"g/adversarial": 1.0})
        assert reporter.is_finite
        for step in (4, 5):
            log_step(step, bad)
        with pytest.raises(UserError, match=r"g/adversarial .*3 steps"):
            log_step(6, bad)
    lines = runs.metrics(tmp_path)
    assert [line["g/adversarial"] for line in lines[:3]] == ["nan", "nan", 1.0]


def test_metrics_are_fetched_after_the_next_step_was_dispatched(tmp_path):
    """Fetching them earlier would wait for the step."""

    class Metric:
        def __float__(self):
            fetched.append(self)
            return 1.0

    first, second, fetched = Metric(), Metric(), []
    with Reporter(tmp_path, **OPTIONS) as reporter:
        reporter.log(1, {"loss": first}, images=4)
        assert fetched == []
        reporter.log(2, {"loss": second}, images=8)
        assert fetched == [first]
        reporter.log_pending()
        reporter.log_pending()
        assert fetched == [first, second]
    assert [line["step"] for line in runs.metrics(tmp_path)] == [1, 2]


def test_averages_survive_json():
    averages = Averages()
    averages.add({"a": 0.1, "b": 1e-30})
    averages.add({"a": 0.2})
    again = Averages(json.loads(json.dumps(averages.sums)))
    again.add({"a": 0.7})
    averages.add({"a": 0.7})
    assert again.means() == averages.means() == {"a": (0.1 + 0.2 + 0.7) / 3, "b": 1e-30}


def test_a_position_stays_as_it_was(tmp_path):
    with Reporter(tmp_path, **OPTIONS | {"log_every_steps": 9}) as reporter:
        for step in (1, 2, 3):
            reporter.log(step, {"g/adversarial": 1.0}, images=4)
            if step == 2:
                position = reporter.position
    assert position == {"sums": {"g/adversarial": (1.0, 1)}}


def test_shares_of_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(reporting.time, "time", lambda: now[0])
    clock = Clock(None)
    now[0] += 6
    clock.add("data", 1)
    clock.add("evaluation", 2)
    saved = json.loads(json.dumps(clock.saved()))
    now[0] += 50  # steps that are lost, and the time until the run resumes
    clock = Clock(saved)
    now[0] += 4
    shares = clock.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert {kind: round(60 * share, 6) for kind, share in shares.items()} == {
        "steps": 7,
        "data": 1,
        "evaluation": 2,
        "saving": 0,
        "compilation": 0,
        "restarts": 50,
    }


def test_a_slow_step_is_reported(tmp_path, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: now[0])
    with Reporter(tmp_path, **OPTIONS | {"total_steps": 1000}) as reporter:
        for step in range(1, 100):
            now[0] += 12 if step in (20, 80) else 1
            if (step - 1) % 16 == 0:  # the step before, that is waited for
                now[0] += 30
            if step == 90:
                with reporter.spending("evaluation"):
                    now[0] += 100
            lazy = {"d/r1": 0.0} if step % 16 == 0 else {}
            reporter.log(step, {"g/adversarial": 0.0, **lazy}, images=4)
    (message,) = caplog.messages  # lazy turns are no news
    assert "12 s" in message and "79" in message


def test_each_checkpoint_has_its_own_file_in_a_bucket(tmp_path):
    with Reporter(tmp_path, rotates=True, **OPTIONS) as reporter:
        for step in range(1, 4):
            reporter.write(step, {"eval/psnr": float(step)})
            reporter.flush()
    points = [(step, value) for step, _, value in runs.board(tmp_path)]
    assert points == [(1, 1.0), (2, 2.0), (3, 3.0)]
    files = sorted((tmp_path / BOARD_FOLDER).iterdir())
    assert [len([*runs.events(file)]) for file in files] == [3, 2, 2, 1]
