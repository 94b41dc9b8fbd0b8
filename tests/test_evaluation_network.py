"""Enhancing a test set before it is scored, with functions in place of a network."""

import numpy as np
import pytest
from pairs import RATE_HZ, write_pairs

from saf_jax import audio
from saf_jax.errors import UserError
from saf_jax.evaluation_network import Clock, Network, check_targets, enhance_pairs, output_path


class Stub:
    """Stands in for an Enhancer: applies a function and counts."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def many(self, signals, sample_rate_hz):
        assert sample_rate_hz == RATE_HZ
        self.calls += len(signals)
        return [self.function(signal) for signal in signals]

    def check_seconds(self, seconds):
        pass


@pytest.fixture
def pairs(tmp_path) -> list[audio.Pair]:
    root = write_pairs(tmp_path / "set", count=3)
    return audio.list_pairs(root / "clean", root / "noisy")


def enhance(pairs, folder, function, fingerprint="a"):
    stub, clock = Stub(function), Clock()
    outcomes = {out.file: out for out in enhance_pairs(Network(None, None, fingerprint), pairs, folder, clock, stub)}
    return outcomes, stub.calls, clock


def test_files_are_written_once_per_network_and_input(pairs, tmp_path):
    out = tmp_path / "out"
    outcomes, calls, clock = enhance(pairs, out, lambda x: 0.5 * x)
    assert calls == 3 and not any(outcome.failure for outcome in outcomes.values())
    assert clock.audio_seconds == pytest.approx(4.5) and clock.network_seconds > 0
    noisy, made = (audio.read_mono(path, RATE_HZ) for path in (pairs[0].noisy, output_path(out, "s0")))
    np.testing.assert_allclose(made, 0.5 * noisy, atol=1 / 32768)
    assert enhance(pairs, out, lambda x: x)[1] == 0
    audio.write(pairs[1].noisy, audio.Audio(noisy[:8000], RATE_HZ))
    output_path(out, "s2").unlink()
    assert enhance(pairs, out, lambda x: x)[1] == 2
    assert enhance(pairs, out, lambda x: x, fingerprint="b")[1] == 3


def test_what_is_too_long_for_the_network_fails_alone(pairs, tmp_path, monkeypatch):
    audio.write(pairs[1].noisy, audio.Audio(np.ones(3 * RATE_HZ, np.float32), RATE_HZ))

    def check(self, seconds):
        if seconds > 2:
            raise UserError("too long")

    monkeypatch.setattr(Stub, "check_seconds", check)
    outcomes, calls, _ = enhance(pairs, tmp_path / "out", lambda x: x)
    assert calls == 2
    assert {name: outcome.failure for name, outcome in outcomes.items()} == {
        "s0": None,
        "s1": "s1: too long",
        "s2": None,
    }


def test_a_death_on_the_way_leaves_no_file_of_another_network_behind(pairs, tmp_path):
    out = tmp_path / "out"
    enhance(pairs, out, lambda x: 0.5 * x)

    def die(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enhance(pairs, out, die, fingerprint="b")
    # Neither the old network's files nor half of the new one's are taken for finished.
    assert enhance(pairs, out, lambda x: x, fingerprint="a")[1] == 3


def test_what_was_written_before_a_death_may_be_replaced(pairs, tmp_path, monkeypatch):
    """Killed after its first file and before that is recorded as finished: the same call goes on."""
    out, write = tmp_path / "out", audio.write

    def die_afterwards(*args):
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(audio, "write", die_afterwards)
    with pytest.raises(KeyboardInterrupt):
        enhance(pairs, out, lambda x: x)
    monkeypatch.undo()
    assert output_path(out, "s0").exists()
    check_targets(pairs, out)
    assert enhance(pairs, out, lambda x: x)[1] == 3


def test_what_goes_wrong_is_said_per_file(pairs, tmp_path):
    pairs[0].noisy.write_bytes(b"broken")
    outcomes, calls, _ = enhance(pairs, tmp_path / "out", lambda x: 20 * x if len(x) else x)
    assert calls == 2 and "s0.wav" in outcomes["s0"].failure
    assert outcomes["s1"].clipped_samples > 0
    outcomes, _, _ = enhance(pairs, tmp_path / "nan", lambda x: x * np.nan)
    assert "not finite" in outcomes["s2"].failure and not output_path(tmp_path / "nan", "s2").exists()
