"""What the environment turns off, and what a test or a benchmark turns off for a while."""

import pytest

from unveil.errors import UnveilError
from unveil.switches import Switches, names_in


@pytest.mark.parametrize(("value", "names"), [("", "b"), ("0", ""), ("1", "abc"), ("a,c", "ac"), ("b", "b")])
def test_names(value: str, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_PLAIN", value)
    assert names_in("UNVEIL_PLAIN", "abc", unset="b") == set(names)


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNVEIL_PLAIN", raising=False)
    assert not names_in("UNVEIL_PLAIN", "abc")
    for value in ("yes", "a,d", "a,"):
        monkeypatch.setenv("UNVEIL_PLAIN", value)
        with pytest.raises(UnveilError, match=f"UNVEIL_PLAIN is '{value}': use 0, 1, or names from a, b, c, separated by commas"):
            names_in("UNVEIL_PLAIN", "abc")


def test_a_context_turns_off_exactly_what_it_names() -> None:
    switches = Switches(frozenset("a"))
    with switches.turned_off("b"):
        assert [switches.enabled(name) for name in "abc"] == [True, False, True]
    assert [switches.enabled(name) for name in "abc"] == [False, True, True]
