import subprocess
import sys
import tracemalloc
from pathlib import Path

import networks
import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import tone_in_noise

import saf_jax.enhance_files as enhance_files_module
from saf_jax import audio, enhancement, parallel
from saf_jax.audio_blocks import Recording
from saf_jax.config import STFTConfig
from saf_jax.enhance_files import enhance_files, survey
from saf_jax.enhance_jobs import Job
from saf_jax.enhancement import Enhancer, enhance_padded
from saf_jax.model.transformer import attention_bytes
from saf_jax.recomposition import Fifo, Treatment

# 1600 samples a second: the longest block is 32000.
RATE = networks.STFT.sample_rate_hz
WHOLE = Treatment(high_band="drop")


class PassingOn:
    """Stands in for an Enhancer: holds a block of five seconds and changes nothing."""

    config = networks.least(stft=STFTConfig())

    def blocks(self, pieces, level):
        held = None
        for piece in pieces:
            held = held or Fifo(len(piece))
            held.put(piece.T)
            while held.length >= 80000:
                yield held.take(80000).T
        yield held.take(80000).T

    def many(self, signals, sample_rate_hz, levels):
        return signals

    def check_seconds(self, seconds):
        pass


@pytest.fixture(scope="module")
def enhancer():
    config = networks.least(attention_kernel=3)
    return Enhancer(config, networks.net_variables(config))


def write(path, samples, rate=RATE, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **{"subtype": "FLOAT", **kwargs})
    return path


def job_of(path):
    return Job(Recording(path, str(path)), path.with_name("out") / path.name)


def run(enhancer, paths, treatment=WHOLE):
    """What became of the files, in their order, and their outputs [n, channels]."""
    seconds = []
    jobs = [job_of(path) for path in paths]
    outcomes = {outcome.job: outcome for outcome in enhance_files(enhancer, jobs, treatment, seconds.append)}
    assert outcomes.keys() == set(jobs)
    done = [outcomes[job] for job in jobs]
    assert sum(seconds) == pytest.approx(sum(outcome.seconds for outcome in done))
    return done, [audio.read(job.target).samples if outcomes[job].error is None else None for job in jobs]


def one_pass(enhancer, samples, level):
    length = np.array([len(samples)], np.int32)
    levels = np.array([level], np.float32)
    return np.asarray(enhance_padded(enhancer.config, enhancer.variables, samples[None], length, levels))[0]


@pytest.mark.parametrize("rate", [RATE, 4410], ids=["own rate", "another rate"])
def test_a_long_file_in_blocks_equals_one_pass(tmp_path, enhancer, rate):
    samples = tone_in_noise(61 * rate + 5)
    samples[10 * rate : 25 * rate] *= 1e-3  # a stretch whose own level is another
    _, (got,) = run(enhancer, [write(tmp_path / "a.wav", samples, rate)])
    inner = audio.resample(samples, rate, RATE)
    wanted = audio.resample(one_pass(enhancer, inner, enhancer.level(inner, RATE)), RATE, rate)
    wanted = np.pad(wanted, (0, max(0, len(samples) - len(wanted))))[: len(samples)]
    assert np.abs(wanted).max() > 0.05
    np.testing.assert_allclose(got[:, 0], wanted, atol=1e-5)


def test_files_in_company_are_as_alone(tmp_path, enhancer):
    paths = [
        write(tmp_path / f"{i}.wav", 10.0**-i * tone_in_noise(length, i), rate)
        for i, (length, rate) in enumerate([(1000, RATE), (50000, RATE), (1, 4410), (9000, 4410), (7, RATE)])
    ]
    (tmp_path / "bad.wav").write_text("no audio")
    outcomes, together = run(enhancer, [*paths, tmp_path / "bad.wav"])
    assert [outcome.error is None for outcome in outcomes] == [True] * 5 + [False]
    for path, got in zip(paths, together):
        _, (alone,) = run(enhancer, [path])
        np.testing.assert_allclose(got, alone, atol=1e-5)


def test_the_network_runs_once_for_channels_alike_and_never_for_silence(tmp_path, enhancer, monkeypatch):
    given = []
    many = Enhancer.many

    def listen(self, signals, *args):
        given.extend(signals)
        return many(self, signals, *args)

    monkeypatch.setattr(Enhancer, "many", listen)
    first, second = tone_in_noise(3000, 1), 0.01 * tone_in_noise(3000, 2)
    channels = [np.zeros(3000), first, second, first, -np.zeros(3000), second]
    path = write(tmp_path / "a.wav", np.stack(channels, axis=1))
    _, (out,) = run(enhancer, [path])
    run(enhancer, [write(tmp_path / "b.wav", np.zeros((100, 2)))])
    assert len(given) == 2
    level = survey(Recording(path, "a.wav"), enhancer).level
    assert level == pytest.approx(enhancer.level(np.sqrt((first**2 + second**2) / 2), RATE), rel=1e-5)
    np.testing.assert_allclose(out[:, 1], enhancer(first, RATE, level), atol=1e-6)
    np.testing.assert_allclose(out[:, 2], enhancer(second, RATE, level), atol=1e-6)
    assert not out[:, [0, 4]].any()
    np.testing.assert_array_equal(out[:, 3], out[:, 1])
    np.testing.assert_array_equal(out[:, 5], out[:, 2])


def test_channels_of_a_long_file_are_worked_off_together(tmp_path, enhancer):
    first, second = tone_in_noise(30 * RATE, 1), tone_in_noise(30 * RATE, 2)
    path = write(tmp_path / "a.wav", np.stack([first, np.zeros(30 * RATE), second, first], axis=1))
    _, (out,) = run(enhancer, [path])
    level = survey(Recording(path, "a.wav"), enhancer).level
    np.testing.assert_allclose(out[:, 0], one_pass(enhancer, first, level), atol=1e-5)
    np.testing.assert_allclose(out[:, 2], one_pass(enhancer, second, level), atol=1e-5)
    assert not out[:, 1].any()
    np.testing.assert_array_equal(out[:, 3], out[:, 0])


def test_survey_finds_what_the_network_needs(tmp_path, enhancer):
    samples = np.stack([tone_in_noise(70001, 1), np.zeros(70001)], axis=1)
    path = write(tmp_path / "a.wav", samples, 4410)
    found = survey(Recording(path, "a.wav"), enhancer)
    assert (found.samples, found.format.sample_rate_hz, found.columns) == (70001, 4410, (0, None))
    # What the network does not see does not count: the level is that of the resampled recording.
    inner = audio.resample(samples[:, 0], 4410, RATE)
    assert found.level == pytest.approx(enhancer.level(inner, RATE), rel=1e-5)


def test_channels_of_a_causal_network_share_its_running_level(tmp_path):
    """Its blocks must see them together: alone, a quiet channel would be given to the network louder."""
    config = networks.least(causal=True, outputs="both")
    net = Enhancer(config, networks.net_variables(config))
    loud, quiet = tone_in_noise(3000, 1), 0.1 * tone_in_noise(3000, 2)
    _, (pair,) = run(net, [write(tmp_path / "a.wav", np.stack([loud, quiet], axis=1))])
    _, (swapped,) = run(net, [write(tmp_path / "b.wav", np.stack([quiet, loud], axis=1))])
    np.testing.assert_allclose(pair, swapped[:, ::-1], atol=1e-5)
    _, (alone,) = run(net, [write(tmp_path / "c.wav", quiet)])
    assert np.abs(pair[:, 1] - alone[:, 0]).max() > 1e-4


def test_a_transformer_takes_files_whole_and_refuses_what_is_too_long(tmp_path, monkeypatch):
    config = networks.least(layer_kind="transformer", outputs="both")
    net = Enhancer(config, networks.net_variables(config))
    signals = [tone_in_noise(2000, 1), tone_in_noise(23 * RATE, 2), tone_in_noise(26 * RATE, 3)]
    paths = [write(tmp_path / f"{i}.wav", samples) for i, samples in enumerate(signals)]
    frames = config.stft.frames(25 * RATE)
    limit = attention_bytes(config.model, config.stft.bins, frames) / 1e9 / enhancement.MEMORY_SHARE
    monkeypatch.setattr(parallel, "memory_limit_gb", lambda: 1.001 * limit)
    (short, long, longest), outputs = run(net, paths)
    assert short.error is long.error is None
    for samples, out in zip(signals[:2], outputs):
        np.testing.assert_allclose(out[:, 0], one_pass(net, samples, net.level(samples, RATE)), atol=1e-5)
    assert str(longest.error).startswith(f"{paths[2]}: a signal of 26.0 s: model.layer_kind=transformer")
    assert "parts of at most 25 s" in str(longest.error) and "\n" not in str(longest.error)


def test_a_file_that_changes_between_the_passes_fails_alone(tmp_path, enhancer, monkeypatch):
    paths = [write(tmp_path / name, tone_in_noise(3000)) for name in ("a.wav", "b.wav")]

    def surveyed(recording, enhancer):
        found = survey(recording, enhancer)
        if recording.path.name == "a.wav":
            recording.path.unlink()
        return found

    monkeypatch.setattr(enhance_files_module, "survey", surveyed)
    (first, second), _ = run(enhancer, paths)
    assert "no such file" in str(first.error)
    assert second.error is None
    assert not first.job.target.exists()


@settings(max_examples=25, deadline=None)
@example(rate=16000, length=2_000_000, kinds=[1], stored=("wav", "PCM_16"))
@example(rate=44100, length=2_000_000, kinds=[2, 0], stored=("wav", "FLOAT"))
@given(
    rate=st.sampled_from([1000, 8000, 11025, 16000, 22050, 44100, 48000, 192000]),
    length=st.one_of(st.integers(1, 50), st.integers(1, 100_000), st.sampled_from([65536, 131072])),
    kinds=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    stored=st.sampled_from(
        [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("w64", "PCM_U8")]
    ),
)
def test_a_network_that_changes_nothing_gives_back_any_file(tmp_path_factory, rate, length, kinds, stored):
    """Of any rate, length, channels (0 is silence, equal numbers are alike) and format, to the format's last step."""
    folder = tmp_path_factory.mktemp("files")
    suffix, subtype = stored
    length = min(length, 130 * rate)
    rng = np.random.default_rng(length)
    # Below 90 % of the band: at its very edge resampling there and back attenuates.
    channels = [
        0.3 * np.sin(2 * np.pi * rng.uniform(0, min(0.45 * rate, 3000)) / rate * np.arange(length)) for _ in "012"
    ]
    samples = np.stack([channels[kind] * (kind > 0) for kind in kinds], axis=1)
    path = write(folder / f"a.{suffix}", samples, rate, subtype=subtype)
    (outcome,), (got,) = run(PassingOn(), [path], Treatment())
    assert outcome.error is None
    before = audio.read(path).samples
    assert got.shape == before.shape
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23, "FLOAT": 0}[subtype]
    # Below the network's rate what there is comes back but for the ends, where resampling rings.
    inner = slice(None) if rate >= 16000 else slice(200, -200)
    np.testing.assert_allclose(got[inner], before[inner], atol=step + 2e-5)
    path.unlink()
    outcome.job.target.unlink()


def test_a_network_whose_output_is_no_number_fails_in_one_line(tmp_path):
    class Broken(PassingOn):
        def many(self, signals, sample_rate_hz, levels):
            return [np.full_like(signal, np.nan) for signal in signals]

    (outcome,), _ = run(Broken(), [write(tmp_path / "a.wav", tone_in_noise(3000))])
    assert "the network's output is not finite" in str(outcome.error)
    assert not list((tmp_path / "out").iterdir())


def test_memory_does_not_grow_with_the_length(tmp_path):
    rate, peaks = 48000, []
    for minutes in (1, 5):
        path = tmp_path / f"{minutes}.flac"
        with soundfile.SoundFile(path, "w", rate, 1) as file:
            for second in range(60 * minutes):
                file.write(tone_in_noise(rate, second))
        tracemalloc.start()
        (outcome,) = enhance_files(PassingOn(), [job_of(path)], Treatment())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert outcome.seconds == 60 * minutes
        assert soundfile.info(outcome.job.target).frames == 60 * minutes * rate
    assert peaks[1] < 1.15 * peaks[0]


@pytest.mark.slow
def test_half_an_hour_takes_the_memory_of_three_minutes():
    """The whole process, the network's memory included."""
    program = Path(__file__).parent.parent / "benchmarks" / "enhancement.py"
    done = subprocess.run(
        [sys.executable, program, "memory", "--minutes", "3", "30"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_benchmark_measures_the_command_and_not_itself(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.delitem(sys.modules, "enhancement", raising=False)
    from enhancement import peak_megabytes

    bare = peak_megabytes([sys.executable, "-S", "-c", "print('done')"])
    assert bare < 50
    assert peak_megabytes([sys.executable, "-S", "-c", "bytearray(80 << 20)"]) - bare == pytest.approx(80, abs=10)
    with pytest.raises(SystemExit, match="failed"):
        peak_megabytes([sys.executable, "-S", "-c", "raise SystemExit(3)"])
