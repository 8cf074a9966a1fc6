"""Errors say three things once: code, status, and whether to try again."""

from __future__ import annotations

import pytest

from logweir.core import errors


def tree(of: type[errors.LogweirError]) -> list[type[errors.LogweirError]]:
    own = [one for one in of.__subclasses__() if one.__module__ == errors.__name__]
    return [of, *(below for one in own for below in tree(one))]


def test_no_two_errors_share_a_code():
    codes = [one.code for one in tree(errors.LogweirError)]

    assert len(codes) == len(set(codes)) > 10


@pytest.mark.parametrize("error", tree(errors.LogweirError))
def test_what_may_be_sent_again_is_load_and_what_may_not_is_the_senders(error):
    assert error.retry == (error.status in (408, 429, 503))


@pytest.mark.parametrize("error", [errors.OverLimitError, errors.UnavailableError])
def test_who_is_told_to_come_back_is_told_when(error):
    assert error("Too much.", retry_after_s=2.5).retry_after_s == 2.5


def test_an_error_is_its_message_and_its_hint():
    error = errors.BadRequestError("It is wrong.", hint="Do it right.")

    assert str(error) == "It is wrong. Do it right."
    assert (error.message, error.hint) == ("It is wrong.", "Do it right.")
    assert str(errors.BadRequestError("It is wrong.")) == "It is wrong."


def test_all_bad_credentials_are_told_the_same():
    assert str(errors.UnauthorizedError()) == str(errors.UnauthorizedError())
    assert "Bearer" in errors.UnauthorizedError().hint


def test_an_unknown_version_is_a_kind_of_bad_format():
    assert issubclass(errors.UnknownVersionError, errors.FormatError)
