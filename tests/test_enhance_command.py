import os
from pathlib import Path

import jax
import networks
import numpy as np
import pytest
import soundfile
from networks import tone_in_noise

from saf_jax import audio, enhance_command, jit_cache
from saf_jax.cli import main
from saf_jax.config import STFTConfig
from saf_jax.enhancement import Enhancer
from saf_jax.errors import UserError
from saf_jax.pretrained import save_weights

CONFIG = networks.least(stft=STFTConfig(), outputs="both")
CACHE_SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_kept(tmp_path_factory):
    """The command switches jax's cache on disk on: here it gets a folder of its own, and is switched off again."""
    before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("programs")))
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "least.safetensors"
    save_weights(path, CONFIG, networks.net_variables(CONFIG))
    return path


@pytest.fixture(scope="module")
def enhancer():
    return Enhancer(CONFIG, networks.net_variables(CONFIG))


@pytest.fixture
def enhance(weights, capsys):
    """Calls the command; gives its status and what it printed."""

    def call(*args):
        status = main(["enhance", *map(str, args), "--weights", str(weights)])
        return status, *capsys.readouterr()

    return call


def write(path, samples, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)
    return path


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_file_to_one_file(tmp_path, enhance, enhancer):
    samples = tone_in_noise(16000)
    noisy = write(tmp_path / "in.wav", samples, subtype="FLOAT")
    status, out, err = enhance(noisy, "-o", tmp_path / "new" / "out.wav")
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'new' / 'out.wav'}: 1.0 s, ")
    assert "times real time" in out
    enhanced = audio.read(tmp_path / "new" / "out.wav")
    assert (enhanced.sample_rate_hz, enhanced.subtype) == (16000, "FLOAT")
    np.testing.assert_allclose(enhanced.samples[:, 0], enhancer(samples, 16000), atol=1e-6)
    assert np.abs(enhanced.samples[:, 0] - samples).max() > 0.01


def test_a_folder_keeps_its_tree_and_its_formats(tmp_path, enhance):
    write(tmp_path / "in" / "a.wav", tone_in_noise(4000))
    write(tmp_path / "in" / "sub" / "b.flac", tone_in_noise(4000), subtype="PCM_24")
    (tmp_path / "in" / "notes.txt").touch()
    status, out, _ = enhance(tmp_path / "in", "-o", tmp_path / "out")
    assert status == 0
    assert len(out.splitlines()) == 2
    assert files_in(tmp_path / "out") == ["a.wav", "sub/b.flac"]
    assert soundfile.info(tmp_path / "out" / "sub" / "b.flac").subtype == "PCM_24"


@pytest.mark.parametrize(
    ("samples", "rate", "notice"),
    [
        (np.zeros(5000), 16000, "(silent, copied)"),
        (np.zeros((5000, 2)), 44100, "silent, copied"),
        (tone_in_noise(9000), 44100, "(44100 Hz resampled to 16000 Hz and back, above 8000 Hz is lost)"),
        (tone_in_noise(3000), 8000, "(8000 Hz resampled to 16000 Hz and back)"),
        (np.stack([tone_in_noise(3000, i) for i in range(2)], axis=1), 16000, "(2 channels)"),
        (np.array([0.1]), 16000, ""),
        (np.array([0.1]), 48000, "48000 Hz resampled"),
    ],
    ids=["silent", "silent stereo", "44100", "8000", "stereo", "1 sample", "1 sample at 48000"],
)
def test_odd_input_succeeds_with_one_notice(tmp_path, enhance, samples, rate, notice):
    write(tmp_path / "in.wav", samples, rate)
    status, out, err = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert notice in out
    read = audio.read(tmp_path / "out.wav")
    assert read.sample_rate_hz == rate
    assert read.samples.shape == (len(samples), np.ndim(samples) if np.ndim(samples) == 1 else samples.shape[1])
    # A single sample at three times the network's rate is less than one at its own: nothing is left of it.
    assert read.samples.any() == (samples.any() and len(samples) * 16000 >= rate)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "DOUBLE"])
def test_the_sample_format_stays(tmp_path, enhance, subtype):
    write(tmp_path / "in.wav", tone_in_noise(3000), subtype=subtype)
    assert enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav")[0] == 0
    assert soundfile.info(tmp_path / "out.wav").subtype == subtype


def test_channels_keep_their_balance_and_silent_ones_their_silence(tmp_path, enhance, enhancer):
    loud, quiet = tone_in_noise(5000, 1), 0.01 * tone_in_noise(5000, 2)
    write(tmp_path / "in.wav", np.stack([loud, quiet, np.zeros(5000), loud], axis=1), subtype="FLOAT")
    assert enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav")[0] == 0
    out = audio.read(tmp_path / "out.wav").samples.T
    level = enhancer.level(np.sqrt((loud**2 + quiet**2 + loud**2) / 4), 16000)
    np.testing.assert_allclose(out[0], enhancer(loud, 16000, level), atol=1e-5)
    np.testing.assert_allclose(out[1], enhancer(quiet, 16000, level), atol=1e-5)
    assert not out[2].any()
    np.testing.assert_array_equal(out[3], out[0])


def test_what_an_integer_format_clips_is_told(tmp_path, enhance, monkeypatch):
    monkeypatch.setattr(Enhancer, "__call__", lambda self, samples, *_: 4 * np.sign(samples))
    write(tmp_path / "in.wav", np.where(np.arange(1000) < 10, 0.5, 0))
    status, out, _ = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav")
    assert status == 0
    assert "(10 samples clipped at full scale)" in out


def test_a_bad_file_alone_is_one_line_and_leaves_nothing(tmp_path, enhance):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    status, out, err = enhance(tmp_path / "bad.wav", "-o", tmp_path / "out" / "x.wav")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'bad.wav'}: cannot be read as audio")
    assert len(err.splitlines()) == 1
    assert files_in(tmp_path) == ["bad.wav"]


def test_a_bad_file_among_others_is_named_and_the_others_are_done(tmp_path, enhance):
    for name in ("a", "c"):
        write(tmp_path / "in" / f"{name}.wav", tone_in_noise(3000))
    (tmp_path / "in" / "b\nb.wav").touch()
    write(tmp_path / "in" / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    status, out, err = enhance(tmp_path / "in", "-o", tmp_path / "out")
    assert status == 1
    assert len(out.splitlines()) == 2
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"error: {tmp_path / 'in' / 'b b.wav'}: the file is empty")
    assert "nan.wav: 100 samples are NaN" in lines[1]
    assert lines[2] == "2 of 4 files failed"
    assert files_in(tmp_path / "out") == ["a.wav", "c.wav"]


def test_outputs_that_exist_are_kept_unless_told_otherwise(tmp_path, enhance):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.wav", tone_in_noise(3000))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.wav").write_text("mine")
    status, out, err = enhance(tmp_path / "in", "-o", tmp_path / "out")
    assert status == 0
    assert len(out.splitlines()) == 1
    assert "a.wav: exists already, kept (--overwrite replaces it)" in err
    assert (tmp_path / "out" / "a.wav").read_text() == "mine"
    status, out, err = enhance(tmp_path / "in", "-o", tmp_path / "out")
    assert (status, out) == (2, "")
    assert "exists already: use --overwrite or another output" in err
    assert enhance(tmp_path / "in", "-o", tmp_path / "out", "--overwrite")[0] == 0
    assert len(audio.read(tmp_path / "out" / "a.wav").samples) == 3000


def test_a_failed_write_keeps_the_old_output(tmp_path, enhance, monkeypatch):
    write(tmp_path / "in.wav", tone_in_noise(3000))
    (tmp_path / "out.wav").write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    status, out, err = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--overwrite")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: cannot write {tmp_path / 'out.wav'}: no space left")
    assert (tmp_path / "out.wav").read_text() == "old"
    assert files_in(tmp_path) == ["in.wav", "out.wav"]


def test_missing_inputs_and_weights_are_one_line(tmp_path, enhance, capsys):
    status, _, err = enhance(tmp_path / "none.wav", "-o", tmp_path / "out")
    assert status == 2
    assert err == f"error: {tmp_path / 'none.wav'}: no such file or folder: check the path\n"
    (tmp_path / "empty").mkdir()
    status, _, err = enhance(tmp_path / "empty", "-o", tmp_path / "out")
    assert status == 2
    assert "empty: holds no audio file" in err
    write(tmp_path / "in.wav", tone_in_noise(100))
    assert main(["enhance", str(tmp_path / "in.wav"), "-o", str(tmp_path / "o.wav"), "--weights", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: nothing: no such run folder or weights file")
    assert not (tmp_path / "out").exists()


def plan(*inputs, out):
    return enhance_command.plan_jobs([Path(name) for name in inputs], Path(out))


def test_inputs_that_would_be_overwritten_are_refused(tmp_path):
    name = write(tmp_path / "a.wav", tone_in_noise(100))
    for out in (tmp_path, name, tmp_path / "x" / ".." / "a.wav"):
        with pytest.raises(UserError, match="the output would replace the input"):
            plan(name, out=out)
    with pytest.raises(UserError, match="the output would replace the input"):
        plan(tmp_path, out=tmp_path)


def test_two_inputs_of_one_output_are_refused(tmp_path):
    names = [write(tmp_path / folder / "a.wav", tone_in_noise(100)) for folder in ("x", "y")]
    with pytest.raises(UserError, match=r"y/a\.wav and .*x/a\.wav: both would be written to"):
        plan(*names, out=tmp_path / "out")


def test_an_output_of_another_format_is_that_format(tmp_path, enhance):
    write(tmp_path / "in.wav", tone_in_noise(3000))
    assert enhance(tmp_path / "in.wav", "-o", tmp_path / "out.flac")[0] == 0
    assert soundfile.info(tmp_path / "out.flac").format == "FLAC"


def test_compiled_programs_go_where_the_environment_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    jit_cache.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    jit_cache.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "caches" / "saf_jax" / "jax")
    jax.config.update("jax_compilation_cache_dir", before)


def test_real_recordings(audio_root, tmp_path, enhance):
    noisy = sorted((audio_root / "voicebank_demand" / "test" / "noisy").glob("*.flac"))[:2]
    status, _, err = enhance(*noisy, "-o", tmp_path)
    assert (status, err) == (0, "")
    for path in noisy:
        assert soundfile.info(tmp_path / path.name).frames == soundfile.info(path).frames
