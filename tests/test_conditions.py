"""Conditions of test files and breakdowns by them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saf_jax import conditions
from saf_jax.errors import UserError
from saf_jax.metrics import METRICS
from saf_jax.results import NOISY_METRICS, FileResult


def result(file: str, pesq: float, snr_db: float | None = 3.0, kind: str | None = "stationary", **more) -> FileResult:
    values = dict.fromkeys((*METRICS, *NOISY_METRICS), 1.0) | {"wb_pesq": pesq}
    return FileResult(file, values, input_snr_db=snr_db, noise_kind=kind, **more)


def groups(tables: dict, kind: str) -> dict[str, tuple[int, float]]:
    return {group["group"]: (group["files"], group["wb_pesq"]) for group in tables[kind]}


def test_log_of_the_data_set(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("\ufeffp232_001 bus 17.5\n\np257_002 cafe 2.50\n", encoding="utf-8")
    assert conditions.read_log(log) == {
        "p232_001": {"noise": "bus", "snr_db": "17.5"},
        "p257_002": {"noise": "cafe", "snr_db": "2.5"},
    }


def test_manifest_with_rooms_and_any_known_column(tmp_path):
    table = tmp_path / "manifest.csv"
    table.write_text(
        "file,speaker,noise,rir_file,snr_db\nnoisy/a.x.flac,s1,Rain,,5.0\nnoisy/b.flac,s2,Rain,room.wav,-5\n"
    )
    read = conditions.read_manifest(table)
    assert read["noisy/a.x"] == {"speaker": "s1", "noise": "Rain", "snr_db": "5"}
    assert read["noisy/b"]["kind"] == "reverberant" and read["noisy/b"]["snr_db"] == "-5"
    tabs = tmp_path / "manifest.tsv"
    tabs.write_text("file\tkind\nc.wav\timpulsive\n")
    assert conditions.read_manifest(tabs) == {"c": {"kind": "impulsive"}}


@pytest.mark.parametrize(
    "text", ["", "p232_001 bus\n", "p232_001 bus loud\n", "p232_001 bus 1 2\n", "p232_001 bus nan\n"]
)
def test_bad_logs_are_named(text, tmp_path):
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(UserError, match=r"log\.txt"):
        conditions.read_log(tmp_path / "log.txt")


@pytest.mark.parametrize("content", [b"", b"file,length\na,1\n", b"noise,snr_db\nbus,1\n", b"\xff\xfe\x00binary"])
def test_bad_manifests_are_named(content, tmp_path):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.csv"):
        conditions.read_manifest(tmp_path / "m.csv")


def test_the_longest_agreeing_name_wins():
    known = {"a": {"noise": "bare"}, "test/noisy/a": {"noise": "test"}, "train/noisy/a": {"noise": "train"}}
    files = {
        "a": [Path("/data/test/noisy/a.wav")],
        "b": [Path("/data/test/noisy/b.wav")],
        "sub/a": [Path("/d/sub/a.flac")],
    }
    assert conditions.match(known, files) == {"a": {"noise": "test"}, "sub/a": {"noise": "bare"}}


def test_groups_hold_their_files_in_order():
    files = [result("a", 1.0), result("b", 2.0), result("c", 4.0), result("d", 9.0, failures={"file": "broken"})]
    known = {"a": {"noise": "bus", "snr_db": "17.5"}, "b": {"noise": "bus", "snr_db": "2.5"}, "d": {"noise": "bus"}}
    tables = conditions.breakdown(files, known)
    assert groups(tables, "noise") == {"bus": (2, 1.5), "unknown": (1, 4.0)}
    assert list(groups(tables, "snr_db")) == ["2.5", "17.5", "unknown"]
    assert "measured_snr_db" not in tables


def test_measured_snr_and_kind_stand_in_for_stated_ones():
    snrs_db = [-7.0, -5.0, 4.9, 5.0, 30.0, None]
    files = [result(str(i), float(i), snr_db, kind="impulsive") for i, snr_db in enumerate(snrs_db)]
    tables = conditions.breakdown(files, {"2": {"kind": "reverberant"}})
    assert groups(tables, "measured_snr_db") == {
        "below -5": (1, 0.0), "-5 to 0": (1, 1.0), "0 to 5": (1, 2.0), "5 to 10": (1, 3.0), "15 and more": (1, 4.0),
        "no noise": (1, 5.0),
    }  # fmt: skip
    assert list(groups(tables, "measured_snr_db")) == [
        "below -5", "-5 to 0", "0 to 5", "5 to 10", "15 and more", "no noise",
    ]  # fmt: skip
    assert groups(tables, "kind") == {"impulsive": (5, pytest.approx(2.6)), "reverberant": (1, 2.0)}


@given(st.lists(st.floats(-40, 60), min_size=1, max_size=30))
def test_every_file_is_in_one_bin(snrs_db):
    table = conditions.breakdown([result(str(i), 2.0, snr) for i, snr in enumerate(snrs_db)], {})["measured_snr_db"]
    assert sum(group["files"] for group in table) == len(snrs_db)


def test_a_stated_kind_wins_over_a_room_and_a_room_alone_is_enough(tmp_path):
    table = tmp_path / "manifest.csv"
    table.write_text("file,kind,rir_file\na.wav,impulsive,room.wav\nb.wav,,room.wav\n")
    read = conditions.read_manifest(table)
    assert read == {"a": {"kind": "impulsive"}, "b": {"kind": "reverberant"}}
    table.write_text("file,rir_file\na.wav,room.wav\nb.wav,\n")
    assert conditions.read_manifest(table) == {"a": {"kind": "reverberant"}}


def test_names_may_be_whole_paths():
    known = {"/data/noisy/a": {"noise": "bus"}}
    files = {"a": [Path("/data/noisy/a.wav")], "b": [Path("/more/data/noisy/a.wav")]}
    assert conditions.match(known, files) == {"a": {"noise": "bus"}}
