"""Protocols that are checked at run time, on every version of Python."""

import inspect

import pytest
from torch import nn
from typing_extensions import get_protocol_members, is_protocol

from unveil import learner, protocols
from unveil.data import targets

PROTOCOLS = [each for module in (learner, protocols, targets) for _, each in inspect.getmembers(module, inspect.isclass)]
CHECKED = [each for each in PROTOCOLS if is_protocol(each) and getattr(each, "_is_runtime_protocol", False)]


class WithEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()


def test_a_submodule_is_no_static_attribute() -> None:
    """The reason for the next test: `isinstance` looks members up like this from Python 3.12 on."""
    with pytest.raises(AttributeError):
        inspect.getattr_static(WithEncoder(), "encoder")


@pytest.mark.parametrize("protocol", CHECKED, ids=lambda each: each.__name__)
def test_no_member_is_a_submodule(protocol: type) -> None:
    assert get_protocol_members(protocol)
    assert "encoder" not in get_protocol_members(protocol)
