"""The summary is that of the whole frames; what was sent is listed here."""

import json
from pathlib import Path

import pytest

SUMMARY = Path("/root/summary.json")
# of each sensor: the number of frames, and the sum of their values in tenths
SENT = {"1": (41, 10964), "2": (53, 14274), "3": (61, 10400), "7": (64, 20883)}


@pytest.fixture
def summary():
    return json.loads(SUMMARY.read_text())


def test_all_sensors_are_there_and_no_other(summary):
    assert set(summary) == set(SENT)


@pytest.mark.parametrize("sensor", SENT)
def test_a_sensor_has_its_count_and_mean(summary, sensor):
    count, total = SENT[sensor]
    assert summary[sensor]["count"] == count
    assert summary[sensor]["mean"] == pytest.approx(total / count / 10, abs=0.0006)
