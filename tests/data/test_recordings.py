"""Recordings: one content, however they are kept."""

import pickle

import numpy as np
import pytest
import soundfile

from saf_jax.audio import read_mono
from saf_jax.data import recordings as module
from saf_jax.data.recordings import Storage
from saf_jax.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Odd lengths, rates, channels and formats."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    kinds = [
        ("a.wav", 16000, 5001, 1, "PCM_16"),
        ("b.flac", 16000, 4003, 1, "PCM_16"),
        ("c.wav", 48000, 9007, 1, "PCM_16"),
        ("d.wav", 16000, 3001, 2, "PCM_16"),
        ("e.wav", 16000, 2999, 1, "FLOAT"),
        ("f.wav", 11025, 2001, 1, "PCM_24"),
        ("g.wav", 16000, 1, 1, "PCM_U8"),
        ("h.ogg", 16000, 7001, 1, "VORBIS"),
    ]
    for name, rate, length, channels, subtype in kinds:
        samples = 0.3 * rng.standard_normal((length, channels)).clip(-3, 3)
        soundfile.write(folder / name, samples, rate, subtype=subtype)
    return [folder / kind[0] for kind in kinds]


KEEPING = {
    "memory": {},
    "shared": {"shared": True},
    "decoded anew": {"cache_bytes": 0},
    "mapped file": {"cache_folder": "FOLDER"},
}


@pytest.mark.parametrize("keeping", KEEPING)
def test_content_is_that_of_the_files(files, tmp_path, keeping):
    options = dict(KEEPING[keeping])
    if "cache_folder" in options:
        options["cache_folder"] = tmp_path / "cache"
    held = Storage(16000, **options).open(files)
    assert held.cached == (keeping != "decoded anew")
    sent = pickle.loads(pickle.dumps(held))
    for number, path in enumerate(files):
        whole = read_mono(path, 16000)
        length = int(held.lengths[number])
        assert abs(length - len(whole)) <= 1
        for reader in (held, sent):
            got = reader.read(number)
            assert got.dtype == np.float32 and got.shape == (length,)
            np.testing.assert_array_equal(got[: len(whole)], whole[:length])
            np.testing.assert_array_equal(reader.read(number, 700, 900), got[700:1600])
            assert reader.read(number, length, 10).shape == (0,)
    # What is read may be changed without harm to what is kept.
    held.read(4)[:] = 7
    assert held.read(4).max() < 2
    held.close()


def test_budget_is_shared(files):
    storage = Storage(16000, cache_bytes=40_000)
    first, second = storage.open(files[:2]), storage.open(files[:3])
    assert first.cached and first.memory_bytes == 2 * (5001 + 4003)
    assert not second.cached


def test_cache_folder_is_used_again_and_renewed(files, tmp_path, monkeypatch):
    decoded = []
    decode = module.Recordings._decode
    monkeypatch.setattr(module.Recordings, "_decode", lambda self: decoded.append(1) or decode(self))

    def content():
        held = Storage(16000, cache_folder=tmp_path / "cache").open(files)
        return [held.read(number) for number in range(len(files))]

    first = content()
    assert len(decoded) == 1
    for mine, other in zip(first, content()):
        np.testing.assert_array_equal(mine, other)
    assert len(decoded) == 1
    # Cut off, as by a full disk: noticed and made anew.
    pack = next((tmp_path / "cache").glob("*.samples"))
    pack.write_bytes(pack.read_bytes()[:100])
    for mine, other in zip(first, content()):
        np.testing.assert_array_equal(mine, other)
    assert len(decoded) == 2
    # Another file under the same name is other content.
    files[0].touch()
    content()
    assert len(decoded) == 3


def test_shared_memory_vanishes_with_its_holder(files):
    held = Storage(16000, shared=True).open(files)
    sent = pickle.loads(pickle.dumps(held))
    held.close()
    with pytest.raises(UserError, match=r"cannot be read"):
        sent.read(0)


def test_bad_file_is_named(files, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    for options in KEEPING.values():
        if "cache_folder" in options:
            options = {"cache_folder": tmp_path / "cache"}
        with pytest.raises(UserError, match=r"bad\.wav: cannot be read as audio"):
            Storage(16000, **options).open([*files, bad])


def test_file_that_vanishes_or_shrinks_is_named(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.random.default_rng(0).standard_normal(30000) * 0.1, 16000)
    held = Storage(16000, cache_bytes=0).open([path])
    soundfile.write(path, np.random.default_rng(0).standard_normal(9000) * 0.1, 16000)
    with pytest.raises(UserError, match=r"x\.wav: truncated: 30000 samples expected, 9000 are there"):
        held.read(0)
    path.unlink()
    with pytest.raises(UserError, match=r"x\.wav: no such file"):
        held.read(0)


def test_a_header_without_a_length_is_named(tmp_path):
    """A FLAC that was written into a pipe says 0 samples, which libsndfile tells as 2**63 - 1."""
    path = tmp_path / "piped.flac"
    soundfile.write(path, np.random.default_rng(0).standard_normal(30000) * 0.1, 16000)
    content = bytearray(path.read_bytes())
    # STREAMINFO: the 36 low bits of the 8 bytes that begin 18 bytes into the file hold the number of samples.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"piped\.flac: .*how long"):
        Storage(16000).open([path])


def test_a_recording_of_nothing_at_the_rate_is_named(tmp_path):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.full(1, 0.1), 48000)
    with pytest.raises(UserError, match=r"one\.wav: is shorter than a sample at 16000 Hz"):
        Storage(16000).open([path])
