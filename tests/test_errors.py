"""Every error names what it was raised with, and survives the trip from a worker process."""

from __future__ import annotations

import pickle
import string

import pytest

from tvmops import errors
from tvmops.errors import TvmopsError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TvmopsError)]


def fields_of(error_class: type[TvmopsError]) -> dict[str, str]:
    names = {name for _, name, _, _ in string.Formatter().parse(error_class.message) if name}
    return {name: f"<{name}>" for name in names}


def test_the_module_holds_errors() -> None:
    assert len(CLASSES) > 10


@pytest.mark.parametrize("error_class", CLASSES)
def test_message_states_every_field(error_class: type[TvmopsError]) -> None:
    fields = fields_of(error_class)
    assert fields, "an error without fields can't name what is wrong"
    text = str(error_class(**fields))
    for value in fields.values():
        assert value in text


@pytest.mark.parametrize("error_class", CLASSES)
def test_pickle_keeps_class_and_fields(error_class: type[TvmopsError]) -> None:
    error = error_class(**fields_of(error_class))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert copy.fields == error.fields
    assert str(copy) == str(error)


@pytest.mark.parametrize("error_class", CLASSES)
def test_a_missing_field_is_noticed(error_class: type[TvmopsError]) -> None:
    with pytest.raises(KeyError):
        error_class()


@pytest.mark.parametrize(
    "error_class, builtin",
    [
        (errors.WorkloadError, ValueError),
        (errors.UnknownTargetError, ValueError),
        (errors.CallError, ValueError),
        (errors.CallTypeError, TypeError),
        (errors.NoRecordError, LookupError),
        (errors.LibraryMissingError, FileNotFoundError),
    ],
)
def test_errors_are_caught_as_the_builtin_they_refine(
    error_class: type[TvmopsError], builtin: type[Exception]
) -> None:
    with pytest.raises(builtin):
        raise error_class(**fields_of(error_class))
