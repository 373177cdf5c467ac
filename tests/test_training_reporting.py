"""What a run writes of itself, and what of it stays when the run goes on."""

import json

import pytest
import runs

from migan_jax.errors import UserError
from migan_jax.training.reporting import (
    BOARD_FOLDER,
    METRICS_FILE,
    Averages,
    Reporter,
    cut_lines,
)

OPTIONS = {
    "total_steps": 9,
    "log_every_steps": 1,
    "nonfinite_steps": 3,
    "labels": {},
}


def report(workdir, first, last, earlier=None, **options):
    """Steps `first` + 1 to `last`, whose loss is their number; gives the position."""
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
            with reporter.waiting():
                pass
            lazy = {"d/r1": step / 3} if step % 4 == 0 else {}
            reporter.report(step, {"g/adversarial": float(step), **lazy}, images=4)
        reporter.catch_up()
        reporter.flush()
        return reporter.position


def test_means_over_the_steps_since_the_last_line(tmp_path, capsys):
    report(tmp_path, 0, 12)
    first, second = runs.metrics(tmp_path)
    assert first == {"step": 5, "g/adversarial": 3.0, "d/r1": 1.33333333}
    assert second == {"step": 10, "g/adversarial": 8.0, "d/r1": 2.66666667}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 5 of 20  ") and "G 3, R1 1.33" in lines[0]
    assert " img/s  " in lines[0] and " left  " in lines[0]


def test_time_of_a_step_and_of_waiting_are_told_apart(tmp_path):
    report(tmp_path, 0, 5)
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    line = json.loads(line)
    assert 0 <= line["time/data"] <= line["time/step"]
    assert line["time/images_per_second"] == pytest.approx(4 / line["time/step"], 1e-6)


@pytest.mark.parametrize("saved", [4, 5, 7, 10])
@pytest.mark.parametrize("lost", [0, 1, 6])
def test_going_on_leaves_no_gaps_and_no_doubles(saved, lost, tmp_path):
    """Saved at a step, killed some steps later, resumed: as if never interrupted."""
    report(tmp_path / "alone", 0, 20)
    workdir = tmp_path / "resumed"
    position = json.loads(json.dumps(report(workdir, 0, saved)))
    report(workdir, saved, saved + lost, position)
    with (workdir / METRICS_FILE).open("a") as file:
        file.write('{"step": 12, "g/adv')
    report(workdir, saved, 20, position)
    assert runs.metrics(workdir) == runs.metrics(tmp_path / "alone")
    assert runs.board(workdir) == runs.board(tmp_path / "alone")


def test_an_event_that_was_not_finished_is_dropped(tmp_path):
    position = report(tmp_path, 0, 10)
    (path,) = (tmp_path / BOARD_FOLDER).iterdir()
    before = list(runs.events(path))
    path.write_bytes(path.read_bytes()[:-3])
    report(tmp_path, 10, 10, position)
    assert list(runs.events(path)) == before[:-1]


@pytest.mark.parametrize("tail", [bytes(200), b"\x05" + bytes(7) + b"x" * 40])
def test_what_a_power_cut_leaves_is_cut_off(tail, tmp_path):
    position = report(tmp_path, 0, 10)
    (path,) = (tmp_path / BOARD_FOLDER).iterdir()
    before = path.read_bytes()
    path.write_bytes(before + tail)
    report(tmp_path, 10, 10, position)
    assert path.read_bytes() == before


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match=r"Metrics cannot be written to .*No space left"
    ):
        with Reporter(tmp_path, **OPTIONS) as reporter:
            reporter._file.close()
            reporter._file = open("/dev/full", "w")
            reporter.report(1, {"g/adversarial": 1.0}, images=4)
            reporter.catch_up()


def test_what_was_never_saved_is_begun_anew(tmp_path):
    report(tmp_path, 0, 7)
    report(tmp_path, 0, 5)
    assert [line["step"] for line in runs.metrics(tmp_path)] == [5]
    assert {step for step, _, _ in runs.board(tmp_path)} == {5}


@pytest.mark.parametrize(
    "bad", [b"nonsense", b"[1]", b'{"step": []}', b"\0" * 9, b"\xff"]
)
def test_a_damaged_line_does_not_take_others_with_it(bad, tmp_path, caplog):
    path = tmp_path / METRICS_FILE
    first, second = b'{"step": 1, "a": "nan"}\n', b'{"step": 2}\n'
    path.write_bytes(first + bad + b"\n" + second + b'{"step": 3}\n{"step": 2}')
    cut_lines(path, 2)
    assert path.read_bytes() == first + second
    assert f"{path}: left out 1 damaged lines" in caplog.text
    cut_lines(tmp_path / "nothing", 5)


def test_a_damaged_event_does_not_take_others_with_it(tmp_path, caplog):
    position = report(tmp_path, 0, 15)
    (path,) = (tmp_path / BOARD_FOLDER).iterdir()
    before = runs.board(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"g/adversarial", b"g/adversariaL", 1))
    report(tmp_path, 15, 15, position)
    assert "left out 1 damaged records" in caplog.text
    assert len(runs.board(tmp_path)) == len(before) - 1


def test_losses_that_stay_infinite_stop_the_run(tmp_path):
    bad = {"g/adversarial": float("nan"), "d/adversarial": 1.0}
    with Reporter(tmp_path, **OPTIONS) as reporter:

        def take(step, metrics):
            reporter.report(step, metrics, images=4)
            reporter.catch_up()

        for step in (1, 2):
            take(step, bad)
            assert not reporter.is_finite
        take(3, {"g/adversarial": 1.0})
        assert reporter.is_finite
        for step in (4, 5):
            take(step, bad)
        with pytest.raises(UserError, match="g/adversarial has not been finite for 3"):
            take(6, bad)
    lines = runs.metrics(tmp_path)
    assert [line["g/adversarial"] for line in lines[:3]] == ["nan", "nan", 1.0]


def test_a_step_is_reported_when_the_next_is_on_its_way(tmp_path):
    """Asking for its metrics would wait for it."""

    class Metric:
        def __float__(self):
            asked.append(self)
            return 1.0

    first, second, asked = Metric(), Metric(), []
    with Reporter(tmp_path, **OPTIONS) as reporter:
        reporter.report(1, {"loss": first}, images=4)
        assert asked == []
        reporter.report(2, {"loss": second}, images=8)
        assert asked == [first]
        reporter.catch_up()
        reporter.catch_up()
        assert asked == [first, second]
    assert [line["step"] for line in runs.metrics(tmp_path)] == [1, 2]


def test_averages_survive_json():
    averages = Averages()
    averages.add({"a": 0.1, "b": 1e-30})
    averages.add({"a": 0.2})
    again = Averages(json.loads(json.dumps(averages.sums)))
    again.add({"a": 0.7})
    averages.add({"a": 0.7})
    assert again.means() == averages.means() == {"a": (0.1 + 0.2 + 0.7) / 3, "b": 1e-30}
