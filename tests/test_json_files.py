"""Every file that is not a JSON object gives one sentence with its name."""

import json
import os
import resource

import pytest

from unveil.errors import UnveilError
from unveil.json_files import json_text, parse_json, read_json

ODD = {
    "another type": (b"[1, 2]", "holds a JSON list, expected an object"),
    "a number": (b"3", "holds a JSON number"),
    "null": (b"null", "holds a JSON null"),
    "a string": (b'"text"', "holds a JSON string"),
    "nothing": (b"", "not valid JSON"),
    "cut": (b'{"a": [1, 2', "not valid JSON"),
    "two objects": (b"{} {}", "not valid JSON"),
    "binary": (bytes(range(256)), "byte 128 is not UTF-8"),
    "UTF-16": ("{}".encode("utf-16"), "byte 0 is not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "deep lists": (b'{"a":' + b"[" * 200_000, "more than 64 deep"),
    "deep and whole": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 deep"),
    "deep objects": (b'{"a":' * 500 + b"1" + b"}" * 500, "more than 64 deep"),
    "equal keys": (b'{"depth": 2, "depth": 4}', "the key 'depth' stands twice"),
    "a key of control characters": (b'{"\\u001b[31m": 1, "\\u001b[31m": 2}', r"'\\x1b\[31m' stands twice"),
    "NaN": (b'{"std": NaN}', "NaN is not a number of JSON"),
    "infinity": (b'{"std": -Infinity}', "-Infinity is not a number"),
    "a float out of range": (b'{"std": 1e999}', "the number 1e999 is too large"),
    "an integer of 10,000 digits": (b'{"depth": ' + b"9" * 10_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize(("content", "match"), ODD.values(), ids=ODD)
def test_odd_content_is_refused_in_one_line(content, match, tmp_path):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(UnveilError, match=match) as caught:
        read_json(tmp_path / "odd.json")
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path / 'odd.json'} is damaged: ")
    assert "\n" not in sentence
    assert "\x1b" not in sentence
    assert len(sentence) < 400 + len(str(tmp_path))


def test_a_path_that_is_no_file_is_refused(tmp_path):
    def refused(match):
        with pytest.raises(UnveilError, match=match):
            read_json(tmp_path / "x.json")

    refused("x.json cannot be read: No such file or directory")
    (tmp_path / "x.json").mkdir()
    refused("x.json cannot be read: Is a directory")
    (tmp_path / "x.json").rmdir()
    os.mkfifo(tmp_path / "x.json")
    refused("x.json cannot be read: it is not a regular file")  # and does not wait for a writer
    (tmp_path / "x.json").unlink()
    (tmp_path / "x.json").symlink_to("/dev/zero")
    refused("not a regular file")
    (tmp_path / "x.json").unlink()
    (tmp_path / "x.json").symlink_to("x.json")
    refused("Too many levels of symbolic links")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    (tmp_path / "x.json").touch(mode=0)
    with pytest.raises(UnveilError, match=r"x\.json cannot be read: Permission denied"):
        read_json(tmp_path / "x.json")


def test_a_sparse_file_of_a_terabyte_is_refused_at_once(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnveilError, match=r"has 1,099,511,627,776 bytes, expected at most 67,108,864"):
        read_json(tmp_path / "x.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_an_ordinary_object_is_read_as_by_the_json_module(tmp_path):
    content = {"name": "Zürich \U0001f600 \udcff", "sizes": [1, 2.5, -3e-9], "none": None, "on": True, "inner": {"a": [[[]]]}}
    (tmp_path / "x.json").write_text(json.dumps(content, indent=1))
    assert read_json(tmp_path / "x.json") == content
    assert parse_json(json.dumps(content), "a header") == content
    with pytest.raises(UnveilError, match=r"^a header is damaged"):
        parse_json("[", "a header")


CONTENT = {"lr": 1.5e-4, "classes": ["cat", "d\u00f6g"], "size": (16, 16), "none": None, "nested": {"b": 1, "a": -0.0}}


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json_text(CONTENT))
    assert read_json(path) == CONTENT | {"size": [16, 16]}
    assert list(read_json(path)) == list(CONTENT)
    first, second, *rest = json_text(CONTENT | {"lr": 2.0}).splitlines()
    assert '"checksum": "crc32:' in second
    path.write_text("\n".join([first, *rest]))  # the line is deleted, so a change is allowed
    assert read_json(path)["lr"] == 2.0
    path.write_text(json.dumps(CONTENT))  # as earlier versions wrote it
    assert read_json(path) == CONTENT | {"size": [16, 16]}
    path.write_text(json.dumps(json.loads(json_text(CONTENT)), sort_keys=True))  # other white space and order
    assert read_json(path) == CONTENT | {"size": [16, 16]}


def test_no_flipped_bit_changes_what_is_read_without_a_sentence(tmp_path):
    path = tmp_path / "a.json"
    raw = json_text(CONTENT).encode()
    path.write_bytes(raw)
    whole, refused = read_json(path), 0
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_json(path)
        except UnveilError:
            refused += 1
        else:
            assert {key: found[key] for key in whole} == whole  # white space, or the name of the checksum
    assert refused > 0.9 * 8 * len(raw)


def test_a_changed_file_names_its_checksum(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json_text({"top1": 0.71}).replace("0.71", "0.91"))
    with pytest.raises(UnveilError, match=r"results\.json is damaged: its checksum does not match \(if you edited it"):
        read_json(path)
