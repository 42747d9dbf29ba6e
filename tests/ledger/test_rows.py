"""What may be in a row."""

import pytest

from flux_klein_async.ledger.rows import BadRow, Row, checked, named, not_utf8, unknown_fields

LONG = "x" * 201
KNOWN = "; known are prompt, width, height, id"


@pytest.mark.parametrize(
    ("given", "row_id", "fields"),
    [
        ({"prompt": "a"}, None, {"prompt": "a"}),
        ({"prompt": " a\tb\r\nc\u2028 "}, None, {"prompt": " a\tb\r\nc\u2028 "}),
        ({"prompt": "a", "width": 64, "height": 2048, "id": "x"}, "x", {"prompt": "a", "width": 64, "height": 2048}),
        ({"prompt": "a", "width": None, "height": None, "id": None}, None, {"prompt": "a"}),
        ({"prompt": "a", "id": 7}, "7", {"prompt": "a"}),
        ({"prompt": "a", "id": "é" * 200}, "é" * 200, {"prompt": "a"}),
    ],
)
def test_a_good_row_holds_what_was_given(given, row_id, fields) -> None:
    assert checked(3, given) == Row(3, row_id, fields)


def test_the_order_of_the_fields_makes_no_other_row() -> None:
    """By its bytes a row without an id is known again: columns that were moved must not be paid for anew."""
    there, back = ({"prompt": "a", "width": 64, "height": 96}, {"height": 96, "width": 64, "prompt": "a"})
    first, second = checked(1, there), checked(1, back)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert list(first.fields.items()) == list(second.fields.items()) == list(there.items())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": None}, "prompt: Field required"),
        ({"prompt": " \n"}, "prompt: Value error, the prompt is blank"),
        ({"prompt": 1}, "prompt: Input should be a valid string"),
        ({"prompt": "a", "width": 63}, "width: Input should be greater than or equal to 64"),
        ({"prompt": "a", "height": 2049}, "height: Input should be less than or equal to 2048"),
        ({"prompt": "a", "width": "512"}, "width: Input should be a valid integer"),
        ({"prompt": "a", "width": True}, "width: Input should be a valid integer"),
        (
            {"prompt": "a", "width": 1, "height": 1},
            "width: Input should be greater than or equal to 64; height: Input should be greater than or equal to 64",
        ),
        ({"prompt": "a", "steps": 4}, "unknown field 'steps'; known are prompt, width, height, id"),
        ({"prompt": "a", "steps": None}, "unknown field 'steps'; known are prompt, width, height, id"),
        ({"prompt": "a", "id": ""}, "id: blank; leave it out where a row has none"),
        ({"prompt": "a", "id": " \u3000"}, "id: blank; leave it out where a row has none"),
        ({"prompt": "a", "id": LONG}, "id: longer than 200 characters"),
        ({"prompt": "a", "id": 10**200}, "id: longer than 200 characters"),
        ({"prompt": "a", "id": True}, "id: neither text nor a number"),
        ({"prompt": "a", "id": ["b"]}, "id: neither text nor a number"),
        ({"prompt": "a", "id": "b\tc"}, "id: the control character U+0009 (TAB) may not be in it"),
        ({"prompt": "a", "id": "b\u2028"}, "id: U+2028 (a line break) may not be in it"),
        ({"prompt": "a\ud800"}, "prompt: U+D800 (half of a surrogate pair) may not be in it"),
        ({"prompt": "a", "id": "\udfff"}, "id: U+DFFF (half of a surrogate pair) may not be in it"),
    ],
)
def test_a_bad_row_says_what_is_wrong(given, problem) -> None:
    assert checked(3, given) == BadRow(3, problem)


NAMES = {0: "NUL", 7: "BEL", 8: "BS", 11: "VT", 12: "FF", 14: "SO", 27: "ESC", 31: "US", 127: "DEL"}
CONTROLS = [*range(9), 11, 12, *range(14, 32), *range(127, 160)]


@pytest.mark.parametrize("number", CONTROLS)
def test_a_control_character_is_no_prompt_and_is_named(number: int) -> None:
    name = f" ({NAMES[number]})" if number in NAMES else ""
    found = checked(1, {"prompt": f"a{chr(number)}b"})
    assert isinstance(found, BadRow)
    assert found.problem.startswith(f"prompt: the control character U+{number:04X}{name}")
    assert chr(number) not in found.problem


@pytest.mark.parametrize("number", [*range(32), *range(127, 160)])
def test_no_control_character_is_in_an_id(number: int) -> None:
    assert isinstance(checked(1, {"prompt": "a", "id": f"a{chr(number)}b"}), BadRow)


def test_unknown_fields_are_named_but_not_all_of_a_thousand() -> None:
    assert unknown_fields("column", ["prompt", "width", "height", "id"]) is None
    assert unknown_fields("column", ["a", "\x1b"]) == r"unknown columns 'a', '\x1b'" + KNOWN
    many = unknown_fields("field", map(str, range(1000)))
    assert many == "unknown fields '0', '1', '2', '3', '4', ..." + KNOWN


def test_a_foreign_text_in_a_message_is_short_and_harmless() -> None:
    assert named("é\x1b[2J\u202e\ud800") == r"'é\x1b[2J\u202e\ud800'"
    assert named("x" * 60) == repr("x" * 60)
    assert named("x" * 61) == repr("x" * 57 + "...")


def test_what_is_no_utf8_is_told_how_to_become_it() -> None:
    assert not_utf8(0xE9) == (
        "not UTF-8 (byte 0xE9); if the file is Latin-1 or Windows-1252, "
        "convert it first: iconv -f WINDOWS-1252 -t UTF-8"
    )
