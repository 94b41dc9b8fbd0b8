import errno
import os
from pathlib import Path

import pytest

from saf_jax import enhance_jobs
from saf_jax.enhance_jobs import back_up, plan_in_place, plan_jobs
from saf_jax.errors import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """in/a.wav, in/b[1].flac, in/sub/a.wav, in/sub/deep/c.MP3, in/notes.txt; the current folder is theirs."""
    for name in ("a.wav", "b[1].flac", "sub/a.wav", "sub/deep/c.MP3", "notes.txt", ".hidden.wav"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*inputs, out="out"):
    return {job.source.as_posix(): job.target.as_posix() for job in plan_jobs(inputs, Path(out))}


ALL = {
    "in/a.wav": "out/a.wav",
    "in/b[1].flac": "out/b[1].flac",
    "in/sub/a.wav": "out/sub/a.wav",
    "in/sub/deep/c.MP3": "out/sub/deep/c.MP3",
}


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        (["in"], ALL),
        (["in/"], ALL),
        (["in/**"], ALL),
        (["in", "in/a.wav"], ALL),
        (["in/**/*.wav"], {key: ALL[key] for key in ("in/a.wav", "in/sub/a.wav")}),
        (["in/*.wav"], {"in/a.wav": "out/a.wav"}),
        (["in/*"], ALL),
        (["i?/sub"], {"in/sub/a.wav": "out/in/sub/a.wav", "in/sub/deep/c.MP3": "out/in/sub/deep/c.MP3"}),
        (["in/[ab]*"], {key: ALL[key] for key in ("in/a.wav", "in/b[1].flac")}),
        (["in/b[1].flac"], {"in/b[1].flac": "out/b[1].flac"}),
        (["in/sub/deep/c.MP3", "in/a.wav"], {"in/sub/deep/c.MP3": "out/c.MP3", "in/a.wav": "out/a.wav"}),
    ],
    ids=str,
)
def test_inputs_and_their_places(inputs, wanted):
    assert plan(*inputs) == wanted


@pytest.mark.usefixtures("tree")
def test_a_single_file_goes_to_a_file_or_into_a_folder():
    assert plan("in/a.wav", out="x/new.flac") == {"in/a.wav": "x/new.flac"}
    assert plan("in/b[1].flac", out="x.wav") == {"in/b[1].flac": "x.wav"}
    assert plan("in/a.wav", out="x.y") == {"in/a.wav": "x.y/a.wav"}
    Path("folder.wav").mkdir()
    assert plan("in/a.wav", out="folder.wav") == {"in/a.wav": "folder.wav/a.wav"}


@pytest.mark.parametrize("name", ["in", "in/**", "*"])
def test_an_output_folder_inside_the_input_folder_is_not_read(tree, name):
    out = tree / "in" / "out"
    first = plan_jobs([name], out)
    assert len(first) == 4
    for job in first:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        job.target.touch()
    assert plan_jobs([name], out) == first
    for file in [*(tree / "in").glob("*.*"), *(tree / "in/sub").rglob("*.*")]:
        file.unlink()
    with pytest.raises(UserError, match="no audio file there besides those in the output folder"):
        plan_jobs([name], out)


@pytest.mark.usefixtures("tree")
def test_an_output_folder_above_the_input_folder_hides_nothing():
    assert plan("in/sub/deep", out="in") == {"in/sub/deep/c.MP3": "in/c.MP3"}


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (["none.wav"], "out", r"none\.wav: no such file or folder"),
        (["none/*.wav"], "out", r"none/\*\.wav: matches no audio file"),
        (["in/*.txt"], "out", r"in/\*\.txt: matches no audio file"),
        (["in/a.wav"], "in", r"in/a\.wav: the output would replace the input"),
        (["in/a.wav"], "in/../in/a.wav", r"in/a\.wav: the output would replace the input"),
        (["in"], "in", "the output would replace the input"),
        (["in"], "out.wav", r"out\.wav: is named like a file, and more than one may come: name a folder"),
        (["in/a.wav", "in/b[1].flac"], "both.sph", r"both\.sph: is named like a file"),
        (["in/*.wav"], "out.m4a", r"out\.m4a: is named like a file"),
        (["in/a.wav"], "out.m4a", r"out\.m4a: '\.m4a' is no audio format that can be written"),
        (["in/a.wav", "in/sub/a.wav"], "out", r"in/sub/a\.wav and in/a\.wav: both would be written to out/a\.wav"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_one_line(inputs, out, message):
    with pytest.raises(UserError, match=message):
        plan(*inputs, out=out)


def test_in_place_every_file_is_its_own_target_once(tree):
    (tree / "link.wav").symlink_to("in/a.wav")
    jobs = plan_in_place(["in", "link.wav", "in/sub/*.wav"])
    assert {job.source.as_posix(): job.target for job in jobs} == {name: tree / name for name in ALL}
    assert all(job.backup for job in jobs)
    (job,) = plan_in_place(["link.wav"])
    assert job.target == tree / "in" / "a.wav"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "copies"])
def test_a_backup_never_takes_the_place_of_another(tree, monkeypatch, links):
    if not links:

        def refuse(*args):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tree / "in" / "a.wav"
    (tree / "in" / "a.wav.bak2").write_text("a stranger's")
    for content, name in (("1", "a.wav.bak"), ("2", "a.wav.bak3"), ("3", "a.wav.bak4")):
        path.unlink()
        path.write_text(content)
        assert back_up(path) == tree / "in" / name
    assert [(tree / "in" / f"a.wav.bak{i}").read_text() for i in ("", 2, 3, 4)] == ["1", "a stranger's", "2", "3"]


def test_a_backup_that_cannot_be_made_is_one_line_and_leaves_nothing(tree, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    monkeypatch.setattr(enhance_jobs.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"cannot back up .*a\.wav: no space left"):
        back_up(tree / "in" / "a.wav")
    assert not list((tree / "in").glob("*.bak*"))
