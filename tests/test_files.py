import errno
import json
import os
import stat

import pytest

from saf_jax.errors import UserError
from saf_jax.files import atomic_path, explain_os_error, make_folder, user_errors, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_whole_files_and_makes_their_folder(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "één\n")
    assert path.read_bytes() == "één\n".encode()
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["c.txt"]


def test_the_old_content_stays_until_the_new_is_complete(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".wav"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error("no more")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError) as error, atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(error.value).startswith(f"cannot write {path}: no space left on the device: free some space")
    assert names(tmp_path) == []


def test_outputs_have_the_permissions_of_ordinary_files(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "語" * 83 + ".txt", "😀" * 60], ids=["latin", "kanji", "emoji"])
def test_long_names_of_any_script(tmp_path, name):
    assert len(name.encode()) <= 255
    write_text(tmp_path / name, "a")
    assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(UserError, match="the name is too long: choose a shorter one"):
        write_text(tmp_path / ("x" * 300), "a")


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="it is a folder: give a file name"):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="a file of that name exists"):
        make_folder(tmp_path / "a")
    with pytest.raises(UserError, match="a part of the path is a file, not a folder"):
        write_text(tmp_path / "a" / "b" / "c.txt", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied: choose a folder that you may write to"):
        write_text(tmp_path / "a", "x")
    tmp_path.chmod(0o700)


def test_other_operating_system_errors_keep_their_own_words(tmp_path):
    assert explain_os_error(OSError(errno.ENXIO, "No such device")) == "no such device"
    assert explain_os_error(OSError("odd")) == "odd"
    with pytest.raises(UserError, match="cannot read x: odd"), user_errors("x", "read"):
        raise OSError("odd")


def test_names_that_are_not_utf_8_are_written_as_json_escapes_them(tmp_path):
    name = b"r\xe8sum\xe9".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "a.json", json.dumps({"file": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": name}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_get_the_permissions_that_an_ordinary_open_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask
