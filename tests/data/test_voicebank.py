"""`saf-jax prepare voicebank-demand` against a local server, and against damaged archives."""

import csv
import errno
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speechlike import speechlike

from saf_jax import cli
from saf_jax.audio import list_pairs, read, read_mono, resample
from saf_jax.data import download, voicebank
from saf_jax.data.active_level import snr_db

TRAIN, TEST = ("p226_001", "p228_001", "p228_002", "p287_004"), ("p232_001", "p257_002")


def wav_bytes(samples, rate=48000, **options):
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format="WAV", **{"subtype": "PCM_16", **options})
    return data.getvalue()


def zip_bytes(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2017, 8, 21, 0, 0, 0)), content)
    return data.getvalue()


@pytest.fixture(scope="session")
def official():
    """Small archives of the official layout, by name: 48 kHz wav, logs."""
    rng = np.random.default_rng(0)
    sets = {name: {} for name in voicebank.SPEECH.values()}
    logs = {"train": "", "test": ""}
    for split, names in (("train", TRAIN), ("test", TEST)):
        for number, name in enumerate(names):
            clean = speechlike(rng, 30000 + 5000 * number, 48000)
            noise, ratio = 0.3 * rng.standard_normal(len(clean)).astype(np.float32), (2.5, 7.5, 12.5, 17.5)[number % 4]
            noise *= 10 ** ((snr_db(clean, noise, 48000) - ratio) / 20)
            for kind, samples in (("clean", clean), ("noisy", clean + noise)):
                folder = voicebank.SPEECH[split, kind]
                sets[folder][f"{folder}/{name}.wav"] = wav_bytes(samples)
            logs[split] += f"{name} {('bus', 'cafe')[number % 2]} {ratio:g}\n"
    archives = {f"{name}.zip": zip_bytes(files) for name, files in sets.items()}
    archives["logfiles.zip"] = zip_bytes({voicebank.LOGS[split]: text.encode() for split, text in logs.items()})
    return archives


@pytest.fixture
def zips(official, tmp_path):
    """A folder with the archives, to be damaged at will."""
    folder = tmp_path / "zips"
    folder.mkdir()
    for name, content in official.items():
        (folder / name).write_bytes(content)
    return folder


class Server:
    """Serves files from memory; misbehaves as told."""

    def __init__(self, files):
        self.files = dict(files)
        self.ranges = True
        self.drop_after = {}  # name -> bytes after which the connection ends, once each entry of the list
        self.claim = {}  # name -> Content-Length to state instead of the true one
        self.status = {}  # name -> list of statuses to answer first
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                name = self.path.rpartition("/")[2]
                if body:
                    outer.requests.append((name, self.headers.get("Range")))
                content = outer.files.get(name)
                if body and outer.status.get(name):
                    self.send_error(outer.status[name].pop(0))
                    return
                if content is None:
                    self.send_error(404)
                    return
                tag = f'"{hashlib.md5(content).hexdigest()}"'
                start = 0
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                if wanted and outer.ranges and self.headers.get("If-Range") in (None, tag):
                    start = int(wanted[1])
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(outer.claim.get(name, len(content)) - start))
                self.send_header("ETag", tag)
                self.end_headers()
                if not body:
                    return
                piece = content[start:]
                if outer.drop_after.get(name):
                    piece = piece[: outer.drop_after[name].pop(0)]
                self.wfile.write(piece)
                self.close_connection = True

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/bitstream"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(official, monkeypatch):
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 5.0)
    server = Server(official)
    yield server
    server.close()


def prepare(root, *options):
    return cli.main(["prepare", "voicebank-demand", "--root", str(root), *map(str, options)])


def rows_of(root):
    with (root / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_right(root, suffix=".flac"):
    """The corpus is complete and every row of its manifest is true."""
    rows = rows_of(root)
    assert [Path(row["file"]).stem for row in rows] == [*TRAIN, *TEST]
    for row in rows:
        name = Path(row["file"]).stem
        split = "test" if name in TEST else "valid" if name[:4] in ("p226", "p287") else "train"
        assert row["file"] == f"{split}/noisy/{name}{suffix}" and row["clean_file"] == f"{split}/clean/{name}{suffix}"
        assert row["speaker"] == name[:4] and row["split"] == split and row["noise"] in ("bus", "cafe")
        clean, noisy = read(root / row["clean_file"]), read(root / row["file"])
        assert clean.sample_rate_hz == noisy.sample_rate_hz == 16000 and clean.subtype == "PCM_16"
        assert clean.samples.shape == noisy.samples.shape
        assert float(row["seconds"]) == pytest.approx(len(clean.samples) / 16000, abs=1e-3)
        # White noise above 8 kHz went away with the rate: two thirds of its power, 4.8 dB.
        measured = snr_db(clean.samples[:, 0], (noisy.samples - clean.samples)[:, 0], 16000)
        assert measured == pytest.approx(float(row["snr_db"]) + 4.77, abs=0.4)


def one_error(capsys, *parts):
    captured = capsys.readouterr().err
    lines = [line for line in captured.splitlines() if not line.startswith("fetching ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured
    for part in parts:
        assert part in lines[0]


def test_from_a_folder_of_archives(zips, tmp_path, capsys):
    assert prepare(tmp_path / "root", "--from", zips) == 0
    out = capsys.readouterr()
    assert "2 training, 2 validation, 2 test pairs" in out.out
    assert "the official corpus has 11572" in out.err
    assert_right(tmp_path / "root")
    assert list(tmp_path.rglob("*.partial*")) == []


def test_resampling_is_right(zips, tmp_path):
    assert prepare(tmp_path / "root", "--from", zips, "--format", "wav") == 0
    assert_right(tmp_path / "root", ".wav")
    with zipfile.ZipFile(zips / "clean_testset_wav.zip") as archive:
        samples, rate = soundfile.read(io.BytesIO(archive.read("clean_testset_wav/p232_001.wav")), dtype="float32")
    assert rate == 48000
    expected = resample(samples, 48000, 16000)
    np.testing.assert_allclose(read_mono(tmp_path / "root/test/clean/p232_001.wav", 16000), expected, atol=1 / 32768)


def test_one_corpus_has_one_format(zips, tmp_path, capsys):
    assert prepare(tmp_path / "root", "--from", zips) == 0
    capsys.readouterr()
    assert prepare(tmp_path / "root", "--from", zips, "--format", "wav") == 2
    one_error(capsys, "as flac already", "--format flac")
    assert prepare(tmp_path / "other", "--from", zips, "--jobs", -1) == 2
    one_error(capsys, "--jobs -1")


def test_from_unpacked_folders(zips, tmp_path):
    for path in list(zips.iterdir()):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(zips / path.stem if path.stem == "logfiles" else zips)
        path.unlink()
    assert prepare(tmp_path / "root", "--from", zips) == 0
    assert_right(tmp_path / "root")


def test_fetched_from_a_server(server, tmp_path):
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert_right(tmp_path / "root")
    record = json.loads((tmp_path / "root/archives/archives.json").read_text())
    assert record.keys() == set(server.files)
    for name, content in server.files.items():
        assert record[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    # Called again, nothing is fetched.
    count = len(server.requests)
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert len(server.requests) == count


def test_archives_can_be_discarded_and_fetched_again(server, tmp_path, capsys):
    assert prepare(tmp_path / "root", "--url", server.url, "--discard-archives") == 0
    assert sorted(path.name for path in (tmp_path / "root/archives").iterdir()) == ["archives.json"]
    (tmp_path / "root/manifest.csv").unlink()
    # The server has other archives now than at first.
    server.files["clean_testset_wav.zip"] += b"more"
    capsys.readouterr()
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, "clean_testset_wav.zip: what the server gives differs from what it gave at first")


def test_drops_are_resumed(server, tmp_path):
    name = "noisy_trainset_28spk_wav.zip"
    server.drop_after[name] = [40000, 70000, 3]
    server.status["logfiles.zip"] = [503, 502]
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert_right(tmp_path / "root")
    assert [asked for which, asked in server.requests if which == name] == [
        None,
        "bytes=32768-",
        "bytes=98304-",
        "bytes=98304-",
    ]


def test_drops_without_ranges_start_again(server, tmp_path):
    server.ranges = False
    server.drop_after["clean_testset_wav.zip"] = [5000, 5000]
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert_right(tmp_path / "root")


def test_changed_archive_is_not_joined_with_the_old_part(server, official, tmp_path, capsys):
    name = "clean_trainset_28spk_wav.zip"
    old = dict(server.files)
    server.files[name] = os.urandom(len(old[name]))
    server.drop_after[name] = [20000] + [0] * 10
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    assert (tmp_path / "root/archives" / f"{name}.part").stat().st_size == 16384
    server.files[name] = old[name]
    server.drop_after.clear()
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert_right(tmp_path / "root")


def test_server_that_always_drops(server, tmp_path, capsys):
    server.drop_after["clean_trainset_28spk_wav.zip"] = [100] + [0] * 50
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, "clean_trainset_28spk_wav.zip: ", "5 times: check the network and call again")
    assert not (tmp_path / "root/manifest.csv").exists()


def test_wrong_size_stated(server, tmp_path, capsys):
    name = "clean_trainset_28spk_wav.zip"
    server.claim[name] = len(server.files[name]) + 500
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, name, "5 times")
    # A size that is too small cuts the archive off.
    server.claim[name] = len(server.files[name]) - 500
    (tmp_path / "root/archives" / f"{name}.part").unlink()
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, name, "is no complete zip archive", "delete it and call again")


@pytest.mark.parametrize(
    ("status", "message"), [(404, "answers 404"), (403, "answers 403"), (500, "HTTPError, 5 times")]
)
def test_refusing_server_names_the_way_by_hand(server, tmp_path, capsys, status, message):
    server.status["clean_trainset_28spk_wav.zip"] = [status] * 20
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, message, voicebank.PAGE_URL, "--from")


def test_no_server(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    assert prepare(tmp_path / "root", "--url", "http://127.0.0.1:9") == 2
    one_error(capsys, "ConnectionError, 5 times")


def test_damaged_archive_from_server_is_fetched_again_after_deletion(server, official, tmp_path, capsys):
    name = "noisy_testset_wav.zip"
    damaged = bytearray(official[name])
    damaged[2000:2100] = bytes(100)
    server.files[name] = bytes(damaged)
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, f"{name}: noisy_testset_wav/p232_001.wav is damaged", "delete the archive and call again")
    assert not (tmp_path / "root/manifest.csv").exists()
    server.files[name] = official[name]
    (tmp_path / "root/archives" / name).unlink()
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert_right(tmp_path / "root")


def test_interrupted_conversion_goes_on(zips, tmp_path, monkeypatch):
    converted = []
    convert = voicebank._convert

    def stop_at_third(target, wave):
        if len(converted) == 3:
            raise KeyboardInterrupt
        converted.append(target)
        return convert(target, wave)

    monkeypatch.setattr(voicebank, "_convert", stop_at_third)
    assert prepare(tmp_path / "root", "--from", zips, "--jobs", 1) == 130
    assert not (tmp_path / "root/manifest.csv").exists()
    stamps = {path: path.stat().st_mtime_ns for path in converted}
    monkeypatch.setattr(voicebank, "_convert", convert)
    assert prepare(tmp_path / "root", "--from", zips, "--jobs", 1) == 0
    assert_right(tmp_path / "root")
    assert stamps == {path: path.stat().st_mtime_ns for path in converted}


def test_finished_corpus_that_lost_a_file_is_mended(zips, tmp_path):
    assert prepare(tmp_path / "root", "--from", zips) == 0
    (tmp_path / "root/test/noisy/p257_002.flac").unlink()
    assert prepare(tmp_path / "root", "--from", zips) == 0
    assert_right(tmp_path / "root")


def rewrite(path, change):
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    change(files)
    path.write_bytes(zip_bytes(files))


_CLEAN = "clean_testset_wav/p232_001.wav"


@pytest.mark.parametrize(
    ("archive", "change", "message"),
    [
        ("clean_testset_wav", lambda f: f.update({_CLEAN: b""}), "p232_001.wav cannot be read as audio"),
        (
            "clean_testset_wav",
            lambda f: f.update({_CLEAN: b"RIFF" + bytes(500)}),
            "p232_001.wav cannot be read as audio",
        ),
        ("clean_testset_wav", lambda f: f.update({_CLEAN: wav_bytes(np.zeros(0))}), "p232_001.wav is empty"),
        (
            "clean_testset_wav",
            lambda f: f.update({_CLEAN: wav_bytes(np.full(90000, np.nan), subtype="FLOAT")}),
            "p232_001.wav holds NaN",
        ),
        (
            "clean_testset_wav",
            lambda f: f.update({_CLEAN: wav_bytes(np.zeros(999))}),
            "p232_001: clean has 333 samples",
        ),
        ("clean_testset_wav", lambda f: f.pop(_CLEAN), "p232_001 has no partner in"),
        ("clean_testset_wav", lambda f: f.clear(), "clean_testset_wav.zip: holds no audio file"),
        ("clean_testset_wav", lambda f: f.update({"x/p232_001.wav": f[_CLEAN]}), "holds p232_001 twice"),
        ("logfiles", lambda f: f.pop("log_testset.txt"), "holds no log_testset.txt"),
        (
            "logfiles",
            lambda f: f.update({"log_testset.txt": b"p232_001 bus 17.5"}),
            "log_testset.txt does not name p257_002",
        ),
        ("logfiles", lambda f: f.update({"log_testset.txt": b"p232_001 bus"}), "line 1 is not 'file noise snr'"),
        ("logfiles", lambda f: f.update({"log_testset.txt": b"a b 1\n\na b 2"}), "line 3 names a a second time"),
    ],
)
def test_parts_that_do_not_fit_are_named(zips, tmp_path, capsys, archive, change, message):
    rewrite(zips / f"{archive}.zip", change)
    assert prepare(tmp_path / "root", "--from", zips) == 2
    one_error(capsys, message)
    assert not (tmp_path / "root/manifest.csv").exists()


def test_names_in_archives_cannot_escape(zips, tmp_path):
    """Names such as ../../x are files like any other: only the last part of a name is used."""

    def climb(files):
        for name in list(files):
            files["../../../" + name if "p232" in name else "/tmp/" + name] = files.pop(name)

    for archive in voicebank.SPEECH.values():
        rewrite(zips / f"{archive}.zip", climb)
    before = set(tmp_path.rglob("*"))
    assert prepare(tmp_path / "root", "--from", zips) == 0
    assert_right(tmp_path / "root")
    assert all(
        (tmp_path / "root") in path.parents or path == tmp_path / "root" for path in set(tmp_path.rglob("*")) - before
    )


def test_shadow_files_of_macs_are_passed_over(zips, tmp_path):
    rewrite(zips / "clean_testset_wav.zip", lambda f: f.update({"__MACOSX/._p232_001.wav": b"x", "a/.DS_Store": b"y"}))
    assert prepare(tmp_path / "root", "--from", zips) == 0
    assert_right(tmp_path / "root")


def test_missing_archive_and_folder(zips, tmp_path, capsys):
    (zips / "noisy_testset_wav.zip").unlink()
    assert prepare(tmp_path / "root", "--from", zips) == 2
    one_error(capsys, "noisy_testset_wav.zip: no such file: fetch it from https://datashare.ed.ac.uk")
    assert prepare(tmp_path / "root", "--from", tmp_path / "nowhere") == 2
    one_error(capsys, "nowhere: no such folder")


def test_too_little_space_is_told_before(server, zips, tmp_path, capsys, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(voicebank.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert prepare(tmp_path / "root", "--from", zips) == 2
    one_error(capsys, "converting the corpus needs about", "GB are free")
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(capsys, "fetching and converting the corpus needs about")
    assert server.requests == []


def test_disk_that_fills_up_while_fetching(server, tmp_path, capsys):
    """/dev/full is a device whose every write fails for lack of space."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    archives = tmp_path / "root/archives"
    archives.mkdir(parents=True)
    (archives / "clean_testset_wav.zip.part").symlink_to("/dev/full")
    assert prepare(tmp_path / "root", "--url", server.url) == 2
    one_error(
        capsys, "clean_testset_wav.zip: no space left on the device: free some space, then run the same command again"
    )
    (archives / "clean_testset_wav.zip.part").unlink()
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert_right(tmp_path / "root")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 150 kB, where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_disk_that_fills_up_while_converting(zips, small_disk, capsys, monkeypatch):
    monkeypatch.setattr(voicebank, "output_bytes", lambda *args: 0)
    assert prepare(small_disk / "root", "--from", zips, "--format", "wav") == 2
    one_error(capsys, "no space left on the device: free some space")
    assert not (small_disk / "root/manifest.csv").exists()
    # What is there is whole.
    for path in (small_disk / "root").rglob("*.wav"):
        read(path)
    assert list((small_disk / "root").rglob(".*")) == []


def test_failing_write_is_one_line_without_a_small_disk(zips, tmp_path, capsys, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert prepare(tmp_path / "root", "--from", zips) == 2
    one_error(capsys, "no space left on the device")


def test_pooch_missing(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pooch", None)
    assert prepare(tmp_path / "root", "--url", "http://127.0.0.1:9") == 2
    one_error(capsys, "pip install 'saf-jax[prepare]'")


@pytest.mark.skipif("SAF_AUDIO" not in os.environ, reason="SAF_AUDIO does not name a folder of real recordings")
def test_real_pairs_in_official_layout(tmp_path):
    """The real pairs as 48 kHz wav in archives, with logs of their nearest official ratios."""
    source = Path(os.environ["SAF_AUDIO"]) / "voicebank_demand"
    folder = tmp_path / "zips"
    folder.mkdir()
    logs, seconds, ratios = {}, {}, {"train": (0, 5, 10, 15), "test": (2.5, 7.5, 12.5, 17.5)}
    for split in ("train", "test"):
        sets, lines = {"clean": {}, "noisy": {}}, []
        for pair in list_pairs(source / split / "clean", source / split / "noisy"):
            clean, noisy = read_mono(pair.clean, 16000), read_mono(pair.noisy, 16000)
            measured = snr_db(clean, noisy - clean, 16000)
            lines.append(f"{pair.name} bus {min(ratios[split], key=lambda ratio: abs(ratio - measured)):g}")
            seconds[pair.name] = len(clean) / 16000
            for kind, samples in (("clean", clean), ("noisy", noisy)):
                entry = f"{voicebank.SPEECH[split, kind]}/{pair.name}.wav"
                sets[kind][entry] = wav_bytes(resample(samples, 16000, 48000))
        logs[voicebank.LOGS[split]] = "\n".join(lines).encode()
        for kind, files in sets.items():
            (folder / f"{voicebank.SPEECH[split, kind]}.zip").write_bytes(zip_bytes(files))
    (folder / "logfiles.zip").write_bytes(zip_bytes(logs))
    assert prepare(tmp_path / "root", "--from", folder) == 0
    rows = rows_of(tmp_path / "root")
    assert len(rows) == 65
    assert {(row["speaker"], row["split"]) for row in rows} == {("p287", "valid"), ("p232", "test"), ("p257", "test")}
    errors = []
    for row in rows:
        name = Path(row["file"]).stem
        assert row["noise"] == "bus" and float(row["seconds"]) == pytest.approx(seconds[name], abs=2e-3)
        clean, noisy = (
            read_mono(tmp_path / "root" / row["clean_file"], 16000),
            read_mono(tmp_path / "root" / row["file"], 16000),
        )
        errors.append(abs(snr_db(clean, noisy - clean, 16000) - float(row["snr_db"])))
        original = read_mono(
            source / ("train" if row["split"] == "valid" else "test") / "clean" / f"{name}.flac", 16000
        )
        # Up and down again leaves what lies below the band edge.
        assert np.sqrt(np.mean((clean - original) ** 2)) < 0.02 * np.sqrt(np.mean(original**2))
    assert np.median(errors) <= 0.05
    assert np.quantile(errors, 0.9) <= 0.2


def test_archives_can_be_discarded_later(server, tmp_path):
    assert prepare(tmp_path / "root", "--url", server.url) == 0
    assert len(list((tmp_path / "root/archives").glob("*.zip"))) > 0
    assert prepare(tmp_path / "root", "--url", server.url, "--discard-archives") == 0
    assert not list((tmp_path / "root/archives").glob("*.zip"))


def test_another_table_is_not_replaced(zips, tmp_path, capsys):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "manifest.csv").write_text("file,mine\na,b\n")
    assert prepare(tmp_path / "root", "--from", zips) == 2
    one_error(capsys, "manifest.csv: is another table, which would be replaced: name another --root")
    assert (tmp_path / "root" / "manifest.csv").read_text() == "file,mine\na,b\n"
