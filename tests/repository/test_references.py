"""Names and references: what is taken comes back as it was written, and what is hostile is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.repository.references import CHANNEL, NAME, BadName, Reference, check_name, check_path, parse

names = st.from_regex(NAME, fullmatch=True)
references = st.one_of(
    st.builds(Reference, names, version=st.integers(1, 999_999_999)),
    st.builds(Reference, names, channel=st.from_regex(CHANNEL, fullmatch=True)),
)
HOSTILE = (
    "",
    ".",
    "..",
    "/",
    "a/b",
    "../a",
    "a\0",
    "\0",
    "a\n",
    " a",
    "a ",
    ".hidden",
    "-a",
    "_a",
    "é",
    "а",
    "a\u202e",
    "a" * 65,
    "~",
    "%2e",
    "a\\b",
)


@given(references)
def test_a_reference_survives_its_text(reference: Reference) -> None:
    assert parse(str(reference)) == reference


@given(names)
def test_a_bare_name_means_stable(name: str) -> None:
    assert parse(name) == Reference(name, channel="stable")


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except BadName:
        return
    assert str(reference) in (text, f"{text}:stable")
    assert "/" not in text
    assert not text.startswith(".")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: str) -> None:
    for text in (name, f"{name}@1", f"{name}:stable"):
        with pytest.raises(BadName, match="model name"):
            parse(text)
    with pytest.raises(BadName):
        check_name(name)


@pytest.mark.parametrize(
    "text", ["a@", "a@0", "a@01", "a@-1", "a@+1", "a@1.0", "a@1e3", "a@1\n", "a@٣", "a@1000000000", "a@@1", "a@@", "a@1@2", "a@1:b"]
)
def test_hostile_versions_are_refused(text: str) -> None:
    with pytest.raises(BadName, match="version"):
        parse(text)


@pytest.mark.parametrize("text", ["a:", "a:b:c", "a::", "a:Stable", "a:1", "a:../b", "a:b/c", "a:b\0", "a:b@1", f"a:{'b' * 33}"])
def test_hostile_channels_are_refused(text: str) -> None:
    with pytest.raises(BadName, match="channel"):
        parse(text)


@pytest.mark.parametrize("path", ["model.onnx", "1_Pooling/config.json", "a/b/c/d", "_a", "a..b", f"{'a' * 128}"])
def test_plain_paths_are_taken(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "a/b/c/d/e",
        "a" * 129,
        "a b",
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a/.",
        ".a",
        "a/.b",
        "-a",
        "a\\b",
        "C:a",
        "a\0",
        "a\n",
        "é",
    ],
)
def test_hostile_paths_are_refused(path: str) -> None:
    with pytest.raises(BadName, match="path"):
        check_path(path)
