from __future__ import annotations

import pytest

from personae.serving.keys import Keys


def test_several_keys_each_with_its_name(tmp_path):
    file = tmp_path / "keys.json"
    ann, bob = Keys.new(file, "ann"), Keys.new(file, "bob")
    keys = Keys.read(file)
    assert (len(keys), keys.owner(ann), keys.owner(bob)) == (2, "ann", "bob")
    for wrong in ("", "ann", ann[:-1], ann + " ", ann.upper(), "\udcff"):
        assert keys.owner(wrong) is None


def test_the_file_holds_no_key_and_nobody_else_reads_it(tmp_path):
    file = tmp_path / "keys.json"
    key = Keys.new(file, "ann")
    assert len(key) > 40
    assert key not in file.read_text()
    assert key.removeprefix("pk-") not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"kind": "personae keys", "keys": {"ann": {"sha256": "00"}}}', '{"kind": "other", "keys": {}}'],
)
def test_a_file_that_is_none_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "keys.json"
    file.write_text(content)
    for use in (Keys.read, lambda f: Keys.new(f, "bob")):
        with pytest.raises(ValueError, match="is not a file of keys"):
            use(file)
    assert file.read_text() == content


def test_sentences(tmp_path):
    file = tmp_path / "keys.json"
    with pytest.raises(ValueError, match="--new-key NAME"):
        Keys.read(file)
    file.write_text('{"kind": "personae keys", "keys": {}}')
    with pytest.raises(ValueError, match="has no keys"):
        Keys.read(file)
    Keys.new(file, "ann")
    with pytest.raises(ValueError, match="has a key named ann already"):
        Keys.new(file, "ann")
    for name in ("", " ", "a\nb", "a" * 65):
        with pytest.raises(ValueError, match="1 to 64 printable"):
            Keys.new(file, name)
