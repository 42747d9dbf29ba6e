import base64
import struct

import pytest

from flux_klein_async.emulator.catalogue import MODELS, describe, find, output_of, refusals

from .helpers import KLEIN_4B, KLEIN_9B


def test_a_good_input_is_accepted():
    for more in ({}, {"width": 64, "height": 2048}, {"unknown": [1]}, {"steps": 1}):
        assert refusals(MODELS[KLEIN_4B], {"prompt": "x", **more}) == []
    for model in ("emulator/any/image-to-images", "emulator/any/text-to-video"):
        assert refusals(MODELS[model], {"width": "wide"}) == []


@pytest.mark.parametrize(
    ("model", "given", "field", "kind"),
    [
        (KLEIN_4B, {}, "prompt", "missing"),
        (KLEIN_4B, {"prompt": None}, "prompt", "string_type"),
        (KLEIN_4B, {"prompt": 7}, "prompt", "string_type"),
        (KLEIN_4B, {"prompt": " \n"}, "prompt", "string_too_short"),
        (KLEIN_4B, {"prompt": "x", "width": 63}, "width", "greater_than_equal"),
        (KLEIN_4B, {"prompt": "x", "width": 2049}, "width", "less_than_equal"),
        (KLEIN_4B, {"prompt": "x", "width": True}, "width", "integer_type"),
        (KLEIN_4B, {"prompt": "x", "height": 512.0}, "height", "integer_type"),
        (KLEIN_4B, {"prompt": "x", "height": "512"}, "height", "integer_type"),
        (KLEIN_9B, {"prompt": "x", "steps": 0}, "steps", "greater_than_equal"),
        (KLEIN_9B, {"prompt": "x", "steps": 101}, "steps", "less_than_equal"),
    ],
)
def test_a_bad_field_is_pointed_at(model, given, field, kind):
    (wrong,) = refusals(MODELS[model], given)
    assert (wrong["loc"], wrong["type"]) == (["body", field], kind)
    assert wrong["msg"]


def test_every_bad_field_is_named_at_once():
    wrong = refusals(MODELS[KLEIN_4B], {"width": 1, "height": 1})
    assert [entry["loc"][-1] for entry in wrong] == ["prompt", "width", "height"]


EDIT, CLIP, STYLE, VOICE, ECHO = (
    "blackforestlabs/flux-2/dev/edit",
    "emulator/clip/image-to-video",
    "emulator/clip/video-to-video",
    "emulator/voice/text-to-speech",
    "emulator/voice/audio-to-audio",
)
URL = "https://example.com/a.png"


def inline(data):
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def png(width, height, more=0):
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + bytes(more)


MP4, WAV = b"\x00\x00\x00\x18ftypisom", b"RIFF\x00\x00\x00\x00WAVE"
MIB = 2**20


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (EDIT, {"image_urls": [URL]}),
        (
            EDIT,
            {"image_urls": [inline(png(8_000, 4_000)), inline(b"\xff\xd8\xff"), inline(b"RIFF\x00\x00\x00\x00WEBP")]},
        ),
        (EDIT, {"image_urls": [inline(png(1, 1, 6 * MIB - 24))]}),
        (EDIT, {"image_urls": [inline(b"II*\0"), inline(b"BM\0"), inline(b"\0\0\0\x1cftypheic")]}),
        (STYLE, {"video_url": inline(b"RIFF\0\0\0\0AVI ")}),
        (ECHO, {"audio_url": inline(b"\0\0\0\x20ftypM4A ")}),
        (CLIP, {"image_url": URL, "duration": 2.5, "aspect_ratio": "1:1"}),
        (CLIP, {"image_url": inline(png(1, 1)), "duration": 3}),
        (STYLE, {"video_url": inline(MP4 + bytes(32 * MIB - 12)), "keep_audio": False}),
        (ECHO, {"audio_url": inline(WAV)}),
        (VOICE, {"speed": 0.5}),
    ],
)
def test_files_go_inline_or_as_addresses(model, given):
    assert refusals(MODELS[model], {"prompt": "x", **given}) == []


def test_the_emulators_own_files_are_taken_at_any_address():
    def kinds(url):
        return [wrong["type"] for wrong in refusals(MODELS[EDIT], {"prompt": "x", "image_urls": [url]}, "http://a:80/")]

    assert [kinds(url) for url in ("http://a:80/b.png", "http://a:8080/b.png", URL)] == [[], ["url_type"], []]


@pytest.mark.parametrize(
    ("model", "given", "kind"),
    [
        (EDIT, {}, "missing"),
        (EDIT, {"image_urls": URL}, "list_type"),
        (EDIT, {"image_urls": []}, "list_type"),
        (EDIT, {"image_urls": [URL, 7]}, "url_type"),
        (EDIT, {"image_urls": ["http://example.com/a.png"]}, "url_type"),
        (EDIT, {"image_urls": ["ref.png"]}, "url_type"),
        (EDIT, {"image_urls": ["data:image/png,abc"]}, "url_type"),
        (EDIT, {"image_urls": ["data:image/png;base64,a"]}, "base64_decode"),
        (EDIT, {"image_urls": ["data:image/png;base64,\u00e4"]}, "base64_decode"),
        (EDIT, {"image_urls": ["data:image/png;base64,"]}, "file_type"),
        (EDIT, {"image_urls": [URL, inline(MP4)]}, "file_type"),
        (EDIT, {"image_urls": [inline(png(1, 1, 6 * MIB - 23))]}, "file_too_large"),
        (EDIT, {"image_urls": [inline(png(8_000, 4_001))]}, "image_too_large"),
        (CLIP, {"image_url": [URL]}, "url_type"),
        (CLIP, {"image_url": URL, "duration": "3"}, "float_type"),
        (CLIP, {"image_url": URL, "duration": True}, "float_type"),
        (CLIP, {"image_url": URL, "duration": 11}, "less_than_equal"),
        (CLIP, {"image_url": URL, "aspect_ratio": "2:1"}, "enum"),
        (STYLE, {"video_url": inline(png(1, 1))}, "file_type"),
        (STYLE, {"video_url": inline(MP4 + bytes(32 * MIB - 11))}, "file_too_large"),
        (STYLE, {"video_url": URL, "keep_audio": 1}, "boolean_type"),
        (ECHO, {"audio_url": inline(MP4)}, "file_type"),
    ],
)
def test_a_bad_file_is_refused(model, given, kind):
    (wrong,) = refusals(MODELS[model], {"prompt": "x", **given})
    assert wrong["type"] == kind


def test_a_schema_says_which_fields_take_files():
    schemas = {name: describe(MODELS[name], schema=True)["input_schema"]["properties"] for name in (EDIT, CLIP, STYLE)}
    assert schemas[EDIT]["image_urls"] == {
        "type": "array",
        "format": "image_uris",
        "items": {"type": "string"},
        "validations": {"max_file_size": 6 * MIB},
    }
    assert (schemas[CLIP]["image_url"]["type"], schemas[CLIP]["image_url"]["format"]) == ("string", "image_uri")
    assert schemas[CLIP]["duration"] == {"type": "float", "minimum": 1, "maximum": 10.5, "default": 5}
    assert schemas[CLIP]["aspect_ratio"] == {"type": "string", "default": "16:9", "enum": ["16:9", "9:16", "1:1"]}
    assert schemas[STYLE]["video_url"]["format"] == "video_uri"


def test_the_catalogue_has_a_dozen_models_of_all_kinds():
    assert len(MODELS) == 12
    assert {model.kind for model in MODELS.values()} == {"image", "video", "audio"}


def test_an_input_is_an_object():
    for model in MODELS.values():
        for given in ([], "x", None, 3):
            assert refusals(model, given)[0]["loc"] == ["body"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ({}, len(MODELS)),
        ({"search": "KLEIN"}, 2),
        ({"search": "[klein] 9b"}, 1),
        ({"category": "text-to-image"}, 2),
        ({"kind": "video"}, 3),
        ({"kind": "audio"}, 2),
        ({"category": "image-to-image", "search": "FLUX.2"}, 4),
        ({"kind": "video", "search": "klein"}, 0),
    ],
)
def test_models_are_found_by_words_category_and_kind(words, count):
    assert len(find(**words)) == count


def test_a_description_has_a_price_and_on_request_a_schema():
    plain, full = (describe(MODELS[KLEIN_9B], schema=schema) for schema in (False, True))
    assert full.pop("input_schema") == {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string"},
            "width": {"type": "integer", "minimum": 64, "maximum": 2048, "default": 1024},
            "height": {"type": "integer", "minimum": 64, "maximum": 2048, "default": 1024},
            "steps": {"type": "integer", "minimum": 1, "maximum": 100, "default": 25},
        },
    }
    assert full == plain
    assert (plain["base_price_usd"], plain["price_unit"], plain["categories"]) == (0.02, "output", ["text-to-image"])


@pytest.mark.parametrize(
    ("model", "output"),
    [
        (KLEIN_4B, {"image": "https://f/files/r.png"}),
        ("emulator/any/image-to-images", {"images": ["https://f/files/r.1.png", "https://f/files/r.2.png"]}),
        ("emulator/any/text-to-video", {"video": "https://f/files/r.mp4"}),
        ("emulator/voice/text-to-speech", {"audio": "https://f/files/r.wav"}),
    ],
)
def test_the_output_has_the_models_own_shape(model, output):
    assert output_of(MODELS[model], "https://f/files/{}{}", "r") == output
