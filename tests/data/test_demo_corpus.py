"""The demo corpus: honest, deterministic, atomic."""

import csv
import importlib.util
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from saf_jax.audio import list_pairs, read
from saf_jax.data import demo_corpus, espeak
from saf_jax.data.active_level import snr_db
from saf_jax.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed (saf-jax[demo])"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return demo_corpus.make_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", seed=3)


@pytest.fixture(scope="module")
def rows(corpus):
    with corpus.manifest.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small(monkeypatch):
    """A corpus of a few files, for what does not depend on its size."""
    monkeypatch.setattr(demo_corpus, "_SIZES", {"train": 8, "valid": 4, "test": 4})


def test_every_pair_is_whole_and_holds_its_stated_snr(corpus, rows):
    stated = {row["file"]: float(row["snr_db"]) for row in rows}
    kinds = {row["file"]: row["noise"] for row in rows}
    total, errors = 0, []
    for split in ("train", "valid", "test"):
        for pair in list_pairs(getattr(corpus, f"{split}_clean"), getattr(corpus, f"{split}_noisy")):
            clean, noisy = read(pair.clean), read(pair.noisy)
            assert clean.sample_rate_hz == noisy.sample_rate_hz == 16000
            assert clean.subtype == noisy.subtype == "PCM_16"
            assert clean.samples.shape == noisy.samples.shape
            assert 1.0 < len(clean.samples) / 16000 < 7.0
            assert np.abs(noisy.samples).max() < 0.99
            name = f"{split}/noisy/{pair.name}.wav"
            assert kinds[name] in pair.name
            errors.append(snr_db(clean.samples[:, 0], (noisy.samples - clean.samples)[:, 0], 16000) - stated[name])
            total += 1
    assert total == len(rows) == 612
    assert np.abs(errors).max() < 0.1


def test_test_part_has_voices_and_noises_of_its_own(rows):
    speakers, kinds = defaultdict(set), defaultdict(set)
    for row in rows:
        speakers[row["split"]].add(row["speaker"])
        kinds[row["split"]].add(row["noise"])
    assert len(speakers["train"]) >= 20 and len(kinds["train"]) >= 6
    assert not speakers["test"] & (speakers["train"] | speakers["valid"])
    assert not speakers["valid"] & speakers["train"]
    assert not kinds["test"] & (kinds["train"] | kinds["valid"])
    # The breakdown of the test part is balanced: each kind at each SNR equally often.
    cells = Counter((row["noise"], row["snr_db"]) for row in rows if row["split"] == "test")
    assert len(cells) == 16 and set(cells.values()) == {2}
    # Variants of one name are the same voice: none may occur in two parts.
    variants = [{voice.rpartition("-")[2] for voice in speakers[split]} for split in ("train", "valid", "test")]
    assert sum(map(len, variants)) == len(set().union(*variants))


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path, small):
    def content(name, seed):
        folder = demo_corpus.make_demo_corpus(tmp_path / name, seed).folder
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first = content("a", 0)
    assert first == content("b", 0)
    assert len(first) == 2 * 16 + 2
    assert content("c", 1)["manifest.csv"] != first["manifest.csv"]


def test_finished_corpus_is_reused_and_damaged_one_redone(tmp_path, small, monkeypatch):
    corpus = demo_corpus.make_demo_corpus(tmp_path / "corpus")
    calls = []
    monkeypatch.setattr(demo_corpus, "synthesize", lambda said: calls.append(said) or espeak.synthesize(said))
    demo_corpus.make_demo_corpus(tmp_path / "corpus")
    assert not calls
    next(corpus.train_noisy.iterdir()).unlink()
    demo_corpus.make_demo_corpus(tmp_path / "corpus")
    assert len(calls) == 1
    assert len(list(corpus.train_noisy.iterdir())) == 8
    # Another seed makes another corpus, also in the same place.
    demo_corpus.make_demo_corpus(tmp_path / "corpus", seed=1)
    assert len(calls) == 2


def test_interrupted_corpus_leaves_nothing_behind(tmp_path, small, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_corpus, "write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        demo_corpus.make_demo_corpus(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_left_alone(tmp_path, small):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"exists and holds something else"):
        demo_corpus.make_demo_corpus(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    corpus = demo_corpus.make_demo_corpus(tmp_path / "corpus")
    mine = corpus.train_clean / "mine.wav"
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"exists and holds something else"):
        demo_corpus.make_demo_corpus(tmp_path / "corpus", seed=1)
    assert mine.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"exists and holds something else"):
        demo_corpus.make_demo_corpus(tmp_path / "file")


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'saf-jax\[demo\]'"):
        demo_corpus.make_demo_corpus(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_failing_library_is_one_line():
    with pytest.raises(UserError, match=r"eSpeak NG failed .*no voice nowhere") as caught:
        espeak.synthesize([espeak.Utterance("nowhere", 160, 50, 50, "Hello.")])
    assert "\n" not in str(caught.value)


def test_long_path_to_the_data_works(tmp_path, monkeypatch):
    """A virtual environment deep in the file system exceeds eSpeak's buffer for its path."""
    import espeakng_loader

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: deep / "espeak-ng-data")
    with espeak._data_folder() as folder:
        assert len(folder) < 120
        assert (Path(folder) / "phontab").is_file()
