"""What may change between a checkpoint and the run that resumes from it."""

import json

import pytest

from migan_jax.config import load_config
from migan_jax.data.sources import Fingerprint
from migan_jax.errors import UserError
from migan_jax.families import FAMILIES
from migan_jax.systems.base import Frozen
from migan_jax.training.identity import FREE, check_resume, run_identity

DATA = Fingerprint("photos", 12, 3400, "abc")
FAMILY = FAMILIES["migan"]


def make_identity(*settings, data=DATA, held_out=DATA, teacher=None):
    config = load_config("places256", settings, False)
    frozen = {} if teacher is None else {"teacher": teacher}
    return json.loads(json.dumps(run_identity(config, FAMILY, data, held_out, frozen)))


def check(now, earlier, force):
    check_resume(now, earlier, FAMILY, force)


def refused(now, earlier, force=False):
    with pytest.raises(UserError) as caught:
        check(now, earlier, force)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_changed(caplog):
    check(make_identity(), make_identity(), False)
    assert not caplog.records


def test_changed_settings_are_named_key_by_key(caplog):
    now = make_identity("optimizer.learning_rate=0.5", "seed=3", "data.workers=3")
    message = refused(now, make_identity())
    for change in ("optimizer.learning_rate was 0.001", "0.5;", "seed was 0"):
        assert change in message
    assert "--force-resume" in message and "workers" not in message
    check(now, make_identity(), True)
    assert "data.workers was 0" in caplog.text
    assert "optimizer.learning_rate was" in caplog.text


def test_settings_that_do_not_affect_the_result_may_change(caplog):
    changed = "microbatches=2", "mesh.space=2", "networks.dtype=float32"
    check(
        make_identity("total_kimg=1", *changed),
        make_identity("networks.dtype=bfloat16"),
        False,
    )
    assert "microbatches was 1" in caplog.text
    assert "networks.dtype was 'bfloat16'" in caplog.text


def test_other_networks_cannot_be_forced():
    message = refused(
        make_identity("networks.channel_max=64"), make_identity(), force=True
    )
    assert "networks.channel_max was 512" in message
    assert "--force-resume" not in message
    for halflives in ((0, 20), (20, 0)):
        now, earlier = (
            make_identity(f"optimizer.ema_halflife_kimg={n}") for n in halflives
        )
        assert "(optimizer.ema_halflife_kimg)" in refused(now, earlier, force=True)
    check(make_identity("optimizer.ema_halflife_kimg=10"), make_identity(), force=True)


def test_changed_data_is_detected(caplog):
    moved = Fingerprint("elsewhere", 12, 3400, "abc")
    check(make_identity("data.source=elsewhere", data=moved), make_identity(), False)
    assert "data.source was" in caplog.text
    more = Fingerprint("photos", 13, 3500, "abd")
    assert "12" in refused(make_identity(data=more), make_identity())
    check(make_identity(data=more), make_identity(), True)


def test_changed_validation_data_is_detected(caplog):
    earlier = make_identity("data.validation=here")
    check(make_identity("data.validation=there"), earlier, False)
    assert "data.validation was 'here'" in caplog.text
    others = Fingerprint("here", 12, 3400, "abd")
    message = refused(make_identity("data.validation=here", held_out=others), earlier)
    assert "data.validation" in message
    check(
        make_identity(held_out=others), make_identity(), False
    )  # taken from the source


def test_settings_of_later_versions_had_their_defaults():
    earlier = make_identity()
    del earlier["config"]["losses.l1"]
    check(make_identity(), earlier, False)
    assert "losses.l1 was 0.0" in refused(make_identity("losses.l1=1"), earlier)


def test_changed_teacher_is_detected():
    teachers = [Frozen(None, None, digest) for digest in ("a", "b")]
    first, second = (make_identity(f"teacher={t.digest}", teacher=t) for t in teachers)
    assert "teacher was 'a'" in refused(second, first)
    renamed = make_identity("teacher=copy", teacher=teachers[0])
    check(renamed, first, False)
    assert "the teacher's weights" in refused(make_identity(), first)


def test_changed_versions_are_logged(caplog):
    earlier = make_identity()
    earlier["versions"]["jax"] = "0.1"
    check(make_identity(), earlier, False)
    assert "jax was 0.1" in caplog.text


def test_listed_settings_exist():
    settings = make_identity()["config"]
    for family in FAMILIES.values():
        free = {*FREE, *family.frozen.values()}
        assert free | set(family.architecture) <= set(settings)
        assert not free & set(family.architecture)
