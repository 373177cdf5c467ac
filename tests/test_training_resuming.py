"""What may change between a checkpoint and the run that goes on from it."""

import json

import pytest

from migan_jax.config import load_config
from migan_jax.data.sources import Fingerprint
from migan_jax.errors import UserError
from migan_jax.families import FAMILIES
from migan_jax.systems.base import Frozen
from migan_jax.training import resuming
from migan_jax.training.resuming import FREE, identity

DATA = Fingerprint("photos", 12, 3400, "abc")
FAMILY = FAMILIES["migan"]


def noted(*settings, data=DATA, held_out=DATA, teacher=None):
    config = load_config("places256", settings, False)
    frozen = {} if teacher is None else {"teacher": teacher}
    return json.loads(json.dumps(identity(config, FAMILY, data, held_out, frozen)))


def check(now, earlier, force):
    resuming.check(now, earlier, FAMILY, force)


def refused(now, earlier, force=False):
    with pytest.raises(UserError) as caught:
        check(now, earlier, force)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_changed(caplog):
    check(noted(), noted(), False)
    assert not caplog.records


def test_changed_settings_are_named_key_by_key(caplog):
    now = noted("optimizer.learning_rate=0.5", "seed=3", "data.workers=3")
    sentence = refused(now, noted())
    assert "optimizer.learning_rate was 0.001 and is 0.5; seed was 0 and is 3" in (
        sentence
    )
    assert "--force-resume" in sentence and "workers" not in sentence
    check(now, noted(), True)
    assert "data.workers was 0 and is 3" in caplog.text
    assert "going on all the same: optimizer.learning_rate was" in caplog.text


def test_how_a_run_is_done_may_change(caplog):
    changed = "parts=2", "mesh.space=2", "networks.dtype=float32"
    check(noted("total_kimg=1", *changed), noted("networks.dtype=bfloat16"), False)
    assert "parts was 1 and is 2" in caplog.text
    assert "networks.dtype was 'bfloat16' and is 'float32'" in caplog.text


def test_other_networks_cannot_be_forced():
    sentence = refused(noted("networks.channel_max=64"), noted(), force=True)
    assert "networks.channel_max was 512 and is 64" in sentence
    assert "cannot go on with other networks" in sentence
    for halflives in ((0, 20), (20, 0)):
        now, earlier = (noted(f"optimizer.ema_halflife_kimg={n}") for n in halflives)
        assert "Use the settings it began with (optimizer.ema" in refused(
            now, earlier, force=True
        )
    check(noted("optimizer.ema_halflife_kimg=10"), noted(), force=True)


def test_other_pictures_are_noticed(caplog):
    moved = Fingerprint("elsewhere", 12, 3400, "abc")
    check(noted("data.source=elsewhere", data=moved), noted(), False)
    assert "data.source was" in caplog.text
    more = Fingerprint("photos", 13, 3500, "abd")
    assert "it had 12 pictures" in refused(noted(data=more), noted())
    check(noted(data=more), noted(), True)


def test_other_validation_pictures_are_noticed(caplog):
    earlier = noted("data.validation=here")
    check(noted("data.validation=there"), earlier, False)
    assert "data.validation was 'here' and is 'there'" in caplog.text
    others = Fingerprint("here", 12, 3400, "abd")
    sentence = refused(noted("data.validation=here", held_out=others), earlier)
    assert "data.validation holds other pictures" in sentence
    check(noted(held_out=others), noted(), False)  # they come with the data


def test_a_setting_that_came_later_had_its_default():
    earlier = noted()
    del earlier["config"]["losses.l1"]
    check(noted(), earlier, False)
    assert "losses.l1 was 0.0 and is 1.0" in refused(noted("losses.l1=1"), earlier)


def test_another_teacher_is_noticed():
    teachers = [Frozen(None, None, digest) for digest in ("a", "b")]
    first, second = (noted(f"teacher={t.digest}", teacher=t) for t in teachers)
    assert "teacher was 'a' and is 'b'" in refused(second, first)
    renamed = noted("teacher=copy", teacher=teachers[0])
    check(renamed, first, False)
    assert "the teacher's weights are others" in refused(noted(), first)


def test_another_version_is_said(caplog):
    earlier = noted()
    earlier["versions"]["jax"] = "0.1"
    check(noted(), earlier, False)
    assert "jax was 0.1 and is" in caplog.text


def test_the_lists_are_of_settings_that_exist():
    settings = noted()["config"]
    for family in FAMILIES.values():
        free = {*FREE, *family.frozen.values()}
        assert free | set(family.architecture) <= set(settings)
        assert not free & set(family.architecture)
