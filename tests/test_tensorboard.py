"""TensorBoard's files: what a reader of them finds."""

import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from saf_jax.errors import UserError
from saf_jax.observers import ListeningFile
from saf_jax.tensorboard import TensorBoard


def events_in(folder) -> list[Event]:
    """Reads the records of all event files: length, its checksum, the event, its checksum."""
    events = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return events


def test_scalars_pictures_and_sounds(tmp_path):
    board = TensorBoard(tmp_path, 8000)
    board.show({"event": "start", "step": 40, "devices": "1 x cpu"})
    board.show({"unix_seconds": 5.0, "event": "train", "step": 60, "loss": 0.5, "learning_rate": 1e-3})
    board.show({"unix_seconds": 6.0, "event": "scores", "step": 60, "wb_pesq": 2.25})
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000).astype(np.float32)
    file = ListeningFile("p287_001", {"noisy": tone, "enhanced": 0.5 * tone, "clean": tone})
    board.hear(60, [file])
    board.hear(80, [file])
    board.close()
    events = events_in(tmp_path / "tensorboard")
    values = [(event.step, value) for event in events for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values if value.HasField("simple_value")}
    assert scalars == pytest.approx(
        {(60, "train/loss"): 0.5, (60, "train/learning_rate"): 1e-3, (60, "scores/wb_pesq"): 2.25}
    )
    sounds = [(step, value.tag) for step, value in values if value.HasField("audio")]
    pictures = {(step, value.tag): value.image for step, value in values if value.HasField("image")}
    expected = {(60, "p287_001/noisy"), (60, "p287_001/enhanced"), (60, "p287_001/clean"), (80, "p287_001/enhanced")}
    assert len(sounds) == 4 and set(sounds) == set(pictures) == expected
    picture = pictures[60, "p287_001/clean"]
    assert picture.height == 257 and picture.encoded_image_string.startswith(b"\x89PNG")
    # What was written beyond step 40 by an interrupted run is hidden.
    assert [event.step for event in events if event.session_log.status] == [41]


def test_loud_line_is_bright_at_its_frequency():
    from saf_jax.report_figures import spectrogram_db
    from saf_jax.tensorboard import _picture

    power = spectrogram_db(np.sin(2 * np.pi * 0.125 * np.arange(8000)))
    picture = _picture(power, power.max()).astype(int).sum(axis=-1)
    # An eighth of the sampling rate is a quarter of the height, counted from the bottom.
    assert picture.shape == power.shape
    assert picture[:, 20].argmax() == pytest.approx(256 - 64, abs=1)


def test_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"need the package tensorboardX: pip install 'saf-jax\[tensorboard\]'"):
        TensorBoard(tmp_path, 16000)
