import contextlib
import io
import signal
import subprocess
import sys
import types

import networks
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from networks import tone_in_noise

from saf_jax import pretrained
from saf_jax.cli import main
from saf_jax.config import load_config
from saf_jax.enhancement import Enhancer
from saf_jax.pretrained import save_weights
from saf_jax.recomposition import Recomposer, Treatment
from saf_jax.stream_command import decode, encode, latency_ms, read_wav_start, wav_start

CONFIG = networks.least(causal=True, outputs="both")
RATE = CONFIG.stft.sample_rate_hz
SUBTYPES = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
FORMATS = {"u8": "PCM_U8", "s16": "PCM_16", "s24": "PCM_24", "f32": "FLOAT"}


@pytest.fixture(scope="module")
def variables():
    return networks.net_variables(CONFIG)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, variables):
    path = tmp_path_factory.mktemp("weights") / "live.safetensors"
    save_weights(path, CONFIG, variables)
    return path


class Pipe(io.BytesIO):
    """Gives a few bytes at a time, as a pipe does."""

    def read1(self, size):
        return self.read(min(size, 333))


def streamed(monkeypatch, data, *arguments):
    """Exit status and what came out."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Pipe(data)))
    stdout = types.SimpleNamespace(buffer=out, isatty=lambda: False, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", stdout)
    return main(["enhance", "-", "--stream", *map(str, arguments)]), out.getvalue()


def wav(samples, rate, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_raw_samples_come_out_as_enhanced_as_from_a_file(monkeypatch, capfd, weights, variables, name):
    data, _ = encode(tone_in_noise(1001), FORMATS[name])
    status, out = streamed(
        monkeypatch, data, "--weights", weights, "--raw-rate", RATE, "--raw-format", name, "--raw-channels", 1
    )
    assert status == 0
    assert len(out) == len(data)
    wanted = Enhancer(CONFIG, variables)(decode(data, FORMATS[name]), RATE)
    step = {"u8": 1 / 128, "s16": 1 / 32768}.get(name, 1e-6)
    np.testing.assert_allclose(decode(out, FORMATS[name]), wanted, atol=0.51 * step + 1e-5)
    assert "20 ms behind" in capfd.readouterr().err


@pytest.mark.parametrize(("rate", "channels", "length"), [(1600, 2, 1000), (4410, 1, 3001), (800, 2, 7)])
def test_wav_in_and_wav_out_at_any_rate(monkeypatch, weights, variables, rate, channels, length):
    samples = np.stack([tone_in_noise(length, seed) for seed in range(channels)], axis=1)
    status, out = streamed(monkeypatch, wav(samples, rate, "FLOAT"), "--weights", weights)
    assert status == 0
    enhanced, out_rate = soundfile.read(io.BytesIO(out), dtype="float32", always_2d=True)
    assert enhanced.shape == samples.shape and out_rate == rate
    if rate == RATE:
        wanted = np.concatenate(list(Enhancer(CONFIG, variables).blocks([samples.T])), axis=1).T
        np.testing.assert_allclose(enhanced, wanted, atol=1e-5)


def test_a_header_without_length(monkeypatch, weights):
    data = bytearray(wav(tone_in_noise(500), RATE))
    assert data[36:40] == b"data"
    data[40:44] = b"\xff\xff\xff\xff"
    status, out = streamed(monkeypatch, bytes(data), "--weights", weights)
    assert status == 0
    assert len(out) == len(data) and out[40:44] == b"\xff\xff\xff\xff"


def test_what_follows_the_samples_is_no_audio(monkeypatch, weights):
    data = wav(tone_in_noise(500), RATE)
    status, out = streamed(monkeypatch, data + b"LIST\x04\0\0\0abcd", "--weights", weights)
    assert status == 0
    assert len(out) == len(data)


def test_mix_0_gives_back_what_came(monkeypatch, weights):
    data = wav(tone_in_noise(500), RATE)
    assert streamed(monkeypatch, data, "--weights", weights, "--mix", 0)[1][-1000:] == data[-1000:]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=str)
def test_samples_that_are_no_numbers_are_0_and_told(monkeypatch, capfd, weights, value):
    """What follows them is as if they had been 0: in the running level they would stay for good."""
    samples, mended = tone_in_noise(2000), tone_in_noise(2000)
    samples[[300, 301, 900]], mended[[300, 301, 900]] = value, 0
    options = ["--weights", weights, "--raw-rate", RATE, "--raw-format", "f32"]
    status, out = streamed(monkeypatch, samples.tobytes(), *options)
    told = capfd.readouterr().err
    assert (status, out) == streamed(monkeypatch, mended.tobytes(), *options)
    assert status == 0 and np.abs(np.frombuffer(out, "<f4")[1000:]).max() > 0.01
    assert told.splitlines()[-1] == "stdin: 3 samples NaN, infinite or beyond all scales, replaced by 0"
    assert "NaN" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "nothing came"),
        (b"these are words, not audio", "is no wav stream: for samples without a header use --raw-rate"),
        (b"RIFF\0\0\0\0WAVE", "holds no samples"),
        (b"RIFF\0\0\0\0WAVEdata\x08\0\0\0", "does not say what its samples are"),
        (wav(np.zeros(9), RATE, "ULAW"), "format 7 with 8 bits: send PCM"),
    ],
    ids=["empty", "words", "no samples", "no format", "ulaw"],
)
def test_what_is_no_audio_is_one_line(monkeypatch, capfd, weights, data, message):
    status, out = streamed(monkeypatch, data, "--weights", weights)
    assert (status, out) == (2, b"")
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_network_that_looks_ahead_is_one_line_with_what_to_take(monkeypatch, capfd, tmp_path, weights):
    config = networks.least()
    save_weights(tmp_path / "file.safetensors", config, networks.net_variables(config))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "saf-live.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "pretrained.py"))
    assert streamed(monkeypatch, b"", "--weights", tmp_path / "file.safetensors") == (2, b"")
    assert capfd.readouterr().err == "error: --stream: this network looks ahead: take a causal one (saf-live)\n"


def test_without_weights_the_shipped_causal_ones_are_taken(monkeypatch, tmp_path, weights):
    data = wav(tone_in_noise(500), RATE)
    wanted = streamed(monkeypatch, data, "--weights", weights)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"{pretrained.DEFAULT_CAUSAL}.safetensors").write_bytes(weights.read_bytes())
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "pretrained.py"))
    assert wanted[0] == 0 and streamed(monkeypatch, data) == wanted


def test_a_closed_stdin_is_one_line(monkeypatch, capfd, weights):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["enhance", "-", "--stream", "--weights", str(weights)]) == 2
    assert capfd.readouterr().err == "error: stdin is closed: send a recording to it, or name a file\n"


def test_a_stream_replaces_nothing(capfd, weights):
    assert main(["enhance", "-", "--stream", "--weights", str(weights), "--overwrite"]) == 2
    assert "--stream: writes no file: leave --overwrite out" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["a.wav"], ["-", "-o", "out.wav"]])
def test_streams_go_from_stdin_to_stdout(capfd, weights, arguments):
    assert main(["enhance", "--stream", "--weights", str(weights), *arguments]) == 2
    assert "works from stdin to stdout" in capfd.readouterr().err


def test_samples_come_while_others_are_awaited_and_a_closed_pipe_ends_it(weights):
    """As in `arecord | saf-jax enhance - --stream | head`: the recorder goes on, the listener goes away."""
    command = [sys.executable, "-m", "saf_jax", "enhance", "-", "--stream", "--weights", weights]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([*command, "--raw-rate", str(RATE)], **pipes) as process:
        hops = encode(tone_in_noise(50 * CONFIG.stft.hop_samples), "PCM_16")[0]
        process.stdin.write(hops)
        early = b""
        # All but the window that it is behind; the pipe stays open.
        while len(early) < len(hops) - 2 * CONFIG.stft.window_samples:
            early += process.stdout.read(4096)
        assert any(early)
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            for _ in range(200):
                process.stdin.write(hops)
        process.stdin.close()
        error = process.stderr.read().decode()
        assert process.wait(60) in (0, 141), error
        assert "Traceback" not in error and "Exception" not in error


@given(data=st.binary(max_size=96), subtype=st.sampled_from([name for name in SUBTYPES if name.startswith("PCM")]))
def test_integers_survive_the_way_there_and_back(data, subtype):
    width = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4}[subtype]
    data = data[: len(data) // width * width]
    samples = decode(data, subtype)
    assert samples.dtype == np.float32 and (np.abs(samples) <= 1).all()
    again, clipped = encode(samples, subtype)
    assert clipped == 0
    if subtype != "PCM_32":  # which float32 does not hold
        assert again == data


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_samples_are_those_that_soundfile_sees(tmp_path, subtype):
    samples = tone_in_noise(100)
    data, _ = encode(samples, subtype)
    (tmp_path / "a.raw").write_bytes(data)
    seen, _ = soundfile.read(
        tmp_path / "a.raw", dtype="float32", samplerate=RATE, channels=1, format="RAW", subtype=subtype, endian="LITTLE"
    )
    np.testing.assert_allclose(decode(data, subtype), seen, atol=1e-7)
    np.testing.assert_allclose(seen, samples, atol={"PCM_U8": 0.004, "PCM_S8": 0.004}.get(subtype, 2e-5))


def test_what_is_too_loud_is_clipped_and_counted():
    data, clipped = encode(np.array([1.5, -1.5, 0.5], np.float32), "PCM_16")
    assert clipped == 2
    np.testing.assert_allclose(decode(data, "PCM_16"), [32767 / 32768, -1, 0.5])


def test_an_extensible_header_is_read():
    data = wav(np.zeros((4, 6)), 48000, "PCM_24")
    start = read_wav_start(io.BytesIO(data))
    assert (start.format.channels, start.format.subtype, start.size) == (6, "PCM_24", 72)
    assert read_wav_start(io.BytesIO(wav_start(start))) == start


@pytest.mark.parametrize("rate", [800, 1600, 4410, 4800])
def test_the_delay_that_is_told_is_the_delay(variables, rate):
    """Samples come hop by hop through the network: none is later than told, and some are as late."""
    told = latency_ms(rate, CONFIG, Treatment())
    assert told == 20 if rate == RATE else told > 100
    enhancer, hop = Enhancer(CONFIG, variables), CONFIG.stft.hop_samples
    recomposer = Recomposer(rate, RATE, 1, Treatment(), quality="HQ")
    rng, piece = np.random.default_rng(0), -(-rate * hop // RATE)
    taken, given, latest = 0, 0, 0

    def network_input():
        nonlocal taken, latest
        for _ in range(500):
            taken += piece
            # The piece is asked for when nothing more can go out without it.
            latest = max(latest, taken - given)
            yield recomposer.take(rng.standard_normal((piece, 1)).astype(np.float32))

    for enhanced in enhancer.blocks(network_input(), block_samples=hop):
        given += len(recomposer.give(enhanced))
    assert 1000 * latest / rate == pytest.approx(told, abs=1000 * piece / rate)


@pytest.mark.parametrize("rate, most_ms", [(8000, 230), (16000, 20), (44100, 130), (48000, 90)])
def test_delays_at_usual_rates(rate, most_ms):
    assert latency_ms(rate, load_config("saf_tiny_causal"), Treatment()) <= most_ms


@pytest.mark.parametrize("cut, said", [(300, "ended 300 bytes before the end"), (301, "in the middle of a sample")])
def test_a_stream_that_breaks_off_is_told(monkeypatch, capfd, weights, cut, said):
    data = wav(tone_in_noise(500), RATE)
    status, out = streamed(monkeypatch, data[:-cut], "--weights", weights)
    assert status == 1 and said in capfd.readouterr().err
    assert len(out) == len(data) - cut - cut % 2


def test_ctrl_c_ends_the_input_and_what_came_goes_out(weights):
    """As where a microphone is switched off, though the pipe stays open."""
    command = [sys.executable, "-m", "saf_jax", "enhance", "-", "--stream", "--weights", weights]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([*command, "--raw-rate", "4800"], **pipes) as process:
        sent = encode(tone_in_noise(20000), "PCM_16")[0]
        process.stdin.write(sent)
        # Under way: the first samples are there.
        got = process.stdout.read(4096)
        process.send_signal(signal.SIGINT)
        while part := process.stdout.read(65536):
            got += part
        error = process.stderr.read().decode()
        assert process.wait(60) == 0, error
        assert len(got) == len(sent) and "Traceback" not in error
