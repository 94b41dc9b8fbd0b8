import io
import os
import sys
import time

import jax
import networks
import numpy as np
import pytest
import soundfile
from networks import tone_in_noise

from saf_jax import audio, jit_cache
from saf_jax.cli import main
from saf_jax.config import STFTConfig
from saf_jax.enhancement import Enhancer
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
    assert len(out.splitlines()) == 3
    assert out.splitlines()[2].startswith("2 files, 0.5 s, ")
    assert files_in(tmp_path / "out") == ["a.wav", "sub/b.flac"]
    assert soundfile.info(tmp_path / "out" / "sub" / "b.flac").subtype == "PCM_24"


@pytest.mark.parametrize(
    ("samples", "rate", "options", "notice"),
    [
        (np.zeros(5000), 16000, [], "(silent, copied)"),
        (tone_in_noise(9000), 44100, [], "Hz resampled to 16000 Hz and back, above 8000 Hz kept with the gain below)"),
        (tone_in_noise(9000), 44100, ["--high-band", "drop"], "and back, above 8000 Hz dropped)"),
        (tone_in_noise(3000), 8000, [], "(8000 Hz resampled to 16000 Hz and back)"),
        (np.stack([tone_in_noise(3000, i) for i in range(2)], axis=1), 16000, [], "(2 channels)"),
    ],
    ids=["silent", "44100", "44100 dropped", "8000", "stereo"],
)
def test_what_is_out_of_the_ordinary_is_told(tmp_path, enhance, samples, rate, options, notice):
    write(tmp_path / "in.wav", samples, rate)
    status, out, err = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav", *options)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert notice in out


def test_mix_and_limit_leave_a_share_of_the_recording(tmp_path, enhance, enhancer):
    samples = tone_in_noise(4000)
    write(tmp_path / "in.wav", samples, subtype="FLOAT")
    enhanced = enhancer(samples, 16000)
    for options, wet in (
        (["--mix", "0"], 0.0),
        (["--mix", "0.25"], 0.25),
        (["--max-attenuation-db", "12"], 1 - 10 ** (-12 / 20)),
        (["--mix", "0.5", "--max-attenuation-db", "6"], 0.5 * (1 - 10 ** (-6 / 20))),
    ):
        assert enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--overwrite", *options)[0] == 0
        got = audio.read(tmp_path / "out.wav").samples[:, 0]
        np.testing.assert_allclose(got, wet * enhanced + (1 - wet) * samples, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "x", "--mix", "1.5"], "--mix 1.5: must lie between 0"),
        (["-o", "x", "--mix", "nan"], "--mix nan: must lie between 0"),
        (["-o", "x", "--max-attenuation-db", "-3"], "--max-attenuation-db -3: must be 0 or more"),
        (["-o", "x", "--raw-rate", "16000"], "--raw-rate: goes with the input -"),
        (["-o", "x", "--raw-format", "s16"], "go with --raw-rate"),
        (["-o", "x", "--in-place"], "--in-place and -o: use one"),
        (["--in-place", "--overwrite"], "--in-place: keeps a backup"),
        ([], "no output named: use -o FOLDER, or --in-place"),
        (["-", "-o", "x.wav"], "stdin and stdout take one recording"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_one_line(tmp_path, enhance, options, message):
    status, out, err = enhance(write(tmp_path / "in.wav", tone_in_noise(100)), *options)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_an_integer_format_clips_is_told(tmp_path, enhance, monkeypatch):
    monkeypatch.setattr(Enhancer, "many", lambda self, signals, *_: [4 * np.sign(signal) for signal in signals])
    write(tmp_path / "in.wav", np.where(np.arange(1000) < 10, 0.5, 0))
    status, out, _ = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav")
    assert status == 0
    assert "(10 samples clipped at full scale, which the loudest exceeds by 12.0 dB)" in out


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
    assert len(out.splitlines()) == 3
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
    assert (status, out, len(err.splitlines())) == (0, "", 2)
    status, out, err = enhance(tmp_path / "in" / "a.wav", "-o", tmp_path / "out")
    assert (status, out) == (2, "")
    assert "exists already: use --overwrite or another output" in err
    assert enhance(tmp_path / "in", "-o", tmp_path / "out", "--overwrite")[0] == 0
    assert len(audio.read(tmp_path / "out" / "a.wav").samples) == 3000


def test_names_that_are_not_utf_8_are_names_like_others(tmp_path, enhance):
    name = os.fsdecode(b"caf\xe9.wav")
    for path in (tmp_path / "in" / name, tmp_path / "in" / "b.wav"):
        audio.write(path, audio.Audio(tone_in_noise(3000), 16000))
    status, out, err = enhance(tmp_path / "in", "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "caf\\udce9.wav: 0.2 s" in out
    assert files_in(tmp_path / "out") == ["b.wav", name]


def test_what_can_only_be_read_is_refused_before_the_work(tmp_path, enhance, monkeypatch):
    monkeypatch.setattr(Enhancer, "many", None)
    write(tmp_path / "a.mp2", tone_in_noise(16000), format="MP3")
    status, out, err = enhance(tmp_path / "a.mp2", "-o", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err.endswith("a.mp2: '.mp2' is no audio format that can be written: use .wav or .flac\n")


def test_what_is_not_kept_is_told_and_what_is_wanted_is_no_notice(tmp_path, enhance):
    with soundfile.SoundFile(tmp_path / "in.wav", "w", 16000, 1) as file:
        file.title = "T"
        file.write(tone_in_noise(3000))
    status, out, err = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.w64")
    assert (status, err) == (0, "")
    assert out.endswith("(title not kept: W64 files hold no text)\n")
    status, out, err = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.rf64")
    assert (status, err) == (0, "")
    assert "RF64, since" not in out
    assert soundfile.SoundFile(tmp_path / "out.rf64").title == "T"


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


def test_an_output_that_cannot_be_is_one_line(tmp_path, enhance):
    write(tmp_path / "in" / "a.wav", tone_in_noise(3000))
    write(tmp_path / "in" / "b.wav", tone_in_noise(3000))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out" / "a.wav").mkdir(parents=True)
    status, _, err = enhance(tmp_path / "in", "-o", tmp_path / "out", "--overwrite")
    assert status == 1
    assert f"error: cannot write {tmp_path / 'out' / 'a.wav'}: it is a folder: give a file name" in err
    assert files_in(tmp_path / "out") == ["b.wav"]
    status, _, err = enhance(tmp_path / "in" / "a.wav", "-o", tmp_path / "file" / "a.wav")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "a part of the path is a file" in err or "a file of that name exists" in err
    assert (tmp_path / "file").read_text() == "mine"


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


def test_in_place_keeps_every_original(tmp_path, enhance):
    first = write(tmp_path / "a.wav", tone_in_noise(3000))
    write(tmp_path / "sub" / "b.flac", tone_in_noise(3000, 2))
    (tmp_path / "sub" / "bad.wav").write_text("no audio")
    first.chmod(0o600)
    originals = {path: path.read_bytes() for path in (first, tmp_path / "sub" / "b.flac")}
    status, out, err = enhance(tmp_path, "--in-place")
    assert status == 1
    assert "the original is a.wav.bak" in out
    assert "bad.wav: cannot be read" in err
    assert files_in(tmp_path) == ["a.wav", "a.wav.bak", "sub/b.flac", "sub/b.flac.bak", "sub/bad.wav"]
    for path, content in originals.items():
        assert path.with_name(path.name + ".bak").read_bytes() == content
        assert path.read_bytes() != content
        assert len(audio.read(path).samples) == 3000
    assert first.stat().st_mode & 0o777 == 0o600
    once = first.read_bytes()
    assert enhance(first, "--in-place")[0] == 0
    assert (tmp_path / "a.wav.bak").read_bytes() == originals[first]
    assert (tmp_path / "a.wav.bak2").read_bytes() == once


@pytest.fixture
def pipe(weights, monkeypatch, capsysbinary):
    """Calls the command with bytes on stdin; gives its status, stdout and the lines on stderr."""

    def call(given, *args):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        status = main(["enhance", *map(str, args), "--weights", str(weights)])
        out, err = capsysbinary.readouterr()
        return status, out, err.decode().splitlines()

    return call


def test_wav_through_a_pipe(tmp_path, pipe):
    path = write(tmp_path / "in.wav", np.stack([tone_in_noise(9000)] * 2, axis=1), 22050, subtype="PCM_24")
    assert pipe(b"", path, "-o", tmp_path / "out.wav")[0] == 0
    status, out, err = pipe(path.read_bytes(), "-")
    assert status == 0
    assert len(err) == 1
    assert err[0].startswith("stdout: 0.4 s, ")
    (tmp_path / "piped.wav").write_bytes(out)
    assert soundfile.info(tmp_path / "piped.wav").subtype == "PCM_24"
    np.testing.assert_array_equal(audio.read(tmp_path / "piped.wav").samples, audio.read(tmp_path / "out.wav").samples)
    # From a file, or a folder that holds one, to a pipe, and from a pipe to a file.
    assert pipe(b"", path, "-o", "-")[1] == out
    audio.write(tmp_path / "in" / "a.wav", audio.read(path))
    assert pipe(b"", tmp_path / "in", "-o", "-")[1] == out
    status, out, _ = pipe(path.read_bytes(), "-", "-o", tmp_path / "new.flac")
    assert status == 0
    assert out.startswith(f"{tmp_path / 'new.flac'}: 0.4 s".encode())
    assert soundfile.info(tmp_path / "new.flac").frames == 9000
    status, out, err = pipe(path.read_bytes(), "-", "-o", tmp_path / "new.flac")
    assert (status, out) == (2, b"")
    assert "exists already" in err[0]


def test_samples_without_header_through_a_pipe(tmp_path, pipe, enhancer):
    samples = np.stack([tone_in_noise(4000, 1), tone_in_noise(4000, 2)], axis=1)
    options = ["--raw-rate", 16000, "--raw-format", "f32", "--raw-channels", 2]
    status, out, err = pipe(samples.astype("<f4").tobytes(), "-", *options)
    assert status == 0
    assert len(err) == 1
    got = np.frombuffer(out, "<f4").reshape(-1, 2)
    level = enhancer.level(np.sqrt(np.mean(samples**2, axis=1)), 16000)
    np.testing.assert_allclose(got[:, 0], enhancer(samples[:, 0], 16000, level), atol=1e-5)
    status, out, _ = pipe((samples[:, 0] * 32767).astype("<i2").tobytes(), "-", "--raw-rate", 16000)
    assert (status, len(out)) == (0, 8000)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (b"", [], "stdin: nothing came"),
        (b"no audio" * 100, [], "stdin: cannot be read as audio"),
        (b"RIFF", ["-o", "somewhere"], "needs a file to go to"),
        (b"RIFF", ["-o", "a.m4a"], "'.m4a' is no audio format that can be written"),
        (bytes(100), ["--raw-rate", "0"], "must be at least 1"),
    ],
    ids=["nothing", "no audio", "to a folder", "to m4a", "no rate"],
)
def test_what_cannot_go_through_a_pipe_is_one_line(pipe, given, options, message):
    status, out, err = pipe(given, "-", *options)
    assert (status, out, len(err)) == (2, b"", 1)
    assert message in err[0]


def test_several_recordings_do_not_go_through_one_pipe(tmp_path, enhance):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.wav", tone_in_noise(100))
    for given in (tmp_path / "in", tmp_path / "in" / "*.wav"):
        status, out, err = enhance(given, "-o", "-")
        assert (status, out) == (2, "")
        assert err == f"error: -: stdout takes one recording, {given} holds 2: use -o FOLDER\n"


def test_a_closed_stdin_is_one_line(tmp_path, enhance, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = enhance("-", "-o", tmp_path / "a.wav")
    assert (status, err) == (2, "error: stdin is closed: send a recording to it, or name a file\n")


def test_audio_is_not_sent_to_a_terminal(tmp_path, enhance, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, _, err = enhance(write(tmp_path / "in.wav", tone_in_noise(100)), "-o", "-")
    assert status == 2
    assert "stdout is a terminal" in err


def test_on_a_terminal_progress_is_shown(tmp_path, enhance, monkeypatch):
    """With speed and the time left; lines of the files stay whole."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    many = Enhancer.many

    def slowly(self, *args):
        time.sleep(0.3)
        return many(self, *args)

    monkeypatch.setattr(Enhancer, "many", slowly)
    write(tmp_path / "in.wav", tone_in_noise(16000))
    status, out, err = enhance(tmp_path / "in.wav", "-o", tmp_path / "out.wav")
    assert status == 0
    assert len(out.splitlines()) == 1
    assert "of 0:01" in err


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


def test_the_cache_of_programs_loses_its_oldest_when_it_is_full(tmp_path, monkeypatch):
    folder = tmp_path / "saf_jax" / "jax"
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"p{number}").write_bytes(bytes(100))
        os.utime(folder / f"p{number}", (1000 + number, 1000 + number))
    jit_cache._prune(folder)
    assert len(list(folder.iterdir())) == 10
    monkeypatch.setattr(jit_cache, "_MOST_BYTES", 900)
    jit_cache._prune(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["p6", "p7", "p8", "p9"]
    jit_cache._prune(tmp_path / "nowhere")
