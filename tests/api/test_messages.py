"""A request can be shown: neither its headers, which hold the token, nor its body are in it."""

import dataclasses

import pytest

from flux_klein_async.api.messages import Kind, Request, Response

REQUEST = Request(
    Kind.SUBMIT,
    "POST",
    "https://h.example/v1/models/a",
    {"Authorization": "Bearer s3cr3t-token"},
    body=b'{"prompt": "a private wish"}',
    replayable=False,
    silence=60.0,
)


@pytest.mark.parametrize("show", [repr, str, "{}".format])
def test_a_request_never_shows_its_headers_or_its_body(show: type[str]) -> None:
    assert show(REQUEST) == (
        "Request(kind=<Kind.SUBMIT: 'submit'>, method='POST', url='https://h.example/v1/models/a', "
        "replayable=False, silence=60.0)"
    )


@pytest.mark.parametrize("message", [REQUEST, Response(status=200, headers={}, body=b"")])
def test_a_message_cannot_be_changed(message: Request | Response) -> None:
    for name in message._fields if isinstance(message, Response) else [f.name for f in dataclasses.fields(message)]:
        with pytest.raises(AttributeError):
            setattr(message, name, None)


def test_there_are_four_kinds_of_calls() -> None:
    assert [kind.value for kind in Kind] == ["submit", "read", "cancel", "file"]
