"""Which files an output holds, whatever its shape."""

import pytest

from flux_klein_async.api.outputs import inline_file, is_inline, read_output
from flux_klein_async.errors import DownloadError
from flux_klein_async.models import GenerationOutput, GenerationResult, RequestState

CDN = "https://files.runcomfy.net/"
A, B, FILM, SONG, BARE = (CDN + name for name in ("a.png", "b.jpg?x=1.mp4", "f.MP4#t", "s.wav", "signed/abc?sig=1"))
INLINE = "data:image/png;base64,iVBORw0KGgo="
API = "https://model-api.runcomfy.net/v1/requests/r-1/result"


def found(value, **options):
    output, missing = read_output(value, **options)
    result = GenerationResult(request_id="r-1", state=RequestState.COMPLETED, output=output, missing=missing)
    return result.urls


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        # every documented and observed shape
        (A, [A]),
        ([B, A, B], [B, A]),
        ({"image": A}, [A]),
        ({"video": FILM, "images": [B, A]}, [B, A, FILM]),
        ({"videos": [FILM], "image": {"url": A, "width": 64}}, [A, FILM]),
        *(({name: BARE}, [BARE]) for name in ("audio", "url", "path", "image_url", "Images", "video_urls", "output")),
        ([{"url": SONG}, {"path": A}], [A, SONG]),
        # unknown shapes, walked whole
        ({"data": {"files": [{"kind": "picture", "href": A}]}}, [A]),
        ({"a": [[{"b": {"c": BARE}}]], "n": 1, "t": True, "none": None}, [BARE]),
        ({"image": A, "mask": {"deep": B}}, [A, B]),
        ({"video": FILM, "thumbnail": A}, [A, FILM]),
        ({"images": [{"href": BARE}]}, [BARE]),
        ({"mesh": CDN + "m.glb", "preview": A}, [A, CDN + "m.glb"]),
        # inside the answer
        ({"image": INLINE}, [INLINE]),
        ({"parts": [{"x": "DATA:audio/wav;base64,UklG"}, {"x": A}]}, [A, "DATA:audio/wav;base64,UklG"]),
        ({"image": "data:;base64,iVBO"}, ["data:;base64,iVBO"]),
        ({"file": " data:,hello\n", "text": "data:, a poem"}, ["data:,hello"]),
        # how a URL is written
        ("HTTPS://files.runcomfy.net/X", ["HTTPS://files.runcomfy.net/X"]),
        ({"image": CDN + "my file.png"}, [CDN + "my file.png"]),
        ({"image": f" {BARE}\r\n"}, [BARE]),
        # no files: links to the API and to pages, the input repeated, words
        ({"image": A, "status_url": API, "result_url": API, "cancel_url": API, "page": CDN + "p"}, [A]),
        ({"image": A, "input": {"image": B}, "input_image": B, "parameters": {"mask_url": B}}, [A]),
        ({"result": A}, [A]),
        ({"images": [{"url": A, "license": "https://creativecommons.org/licenses/by/4.0/"}]}, [A]),
        ({"images": [], "more": "https://www.runcomfy.com/why"}, []),
        ({"status_url": API}, []),
        ("https://files.runcomfy.net/ is where it is", []),
        (["https", "data: none", "data:image/png", "a poem", "", None, 7], []),
        ({"image": "//files.runcomfy.net/x.png"}, []),
        ({"image": "http://files.runcomfy.net/x.png"}, []),
        ({}, []),
        (42, []),
    ],
)
def test_finds_every_file_images_first_in_a_stable_order_and_none_twice(value, urls):
    assert found(value) == urls


@pytest.mark.parametrize(
    "text", [A, BARE, CDN + "\u00e9?a=b#c", f" {A}", f"{A}\x1c", f"{A} ", A.upper(), "https://", CDN + "a b"]
)
@pytest.mark.parametrize("asked", [None, 1, 4])
def test_one_image_alone_is_read_as_beside_another_field(text, asked):
    assert read_output({"image": text}, "", asked) == read_output({"image": text, "note": None}, "", asked)


def test_sorts_files_by_the_name_of_their_field_or_by_their_suffix():
    value = {"image": BARE, "video": {"url": BARE + "v"}, "audio": SONG, "x": [A, FILM, CDN + "z.zip"]}
    assert read_output(value)[0] == GenerationOutput(
        image=BARE, video=BARE + "v", images=(A,), videos=(FILM,), others=(SONG, CDN + "z.zip")
    )
    for text, field in {A: "image", BARE: "image", FILM: "video"}.items():
        assert read_output(text)[0] == GenerationOutput(**{field: text})
    assert read_output({"image": [A, B]})[0] == GenerationOutput(images=(A, B))
    assert read_output(CDN + "report.pdf")[0] == GenerationOutput(others=(CDN + "report.pdf",))


@pytest.mark.parametrize(
    ("url", "origin", "taken"),
    [
        ("http://127.0.0.1:8080/x.png", "", True),
        ("http://localhost/x.png", "", True),
        ("http://gateway.corp:81/x.png", "http://gateway.corp:81", True),
        ("http://gateway.corp/x.png", "http://gateway.corp:81", False),
        ("http://[/x.png", "http://gateway.corp", False),
    ],
)
def test_takes_plain_http_from_this_machine_and_the_base_urls_origin_alone(url, origin, taken):
    assert found({"image": url}, origin=origin) == ([url] if taken else [])


def test_says_which_addresses_it_does_not_take():
    value = {"images": ["//cdn.x/a.png", "http://x.y/b.png", "s3://bucket/c.png", "ftp://x/d"], "n": "no//address"}
    assert read_output(value)[0].not_taken == ("//cdn.x/a.png", "http://x.y/b.png", "s3://bucket/c.png")
    assert read_output("http://x.y/" + "z" * 500)[0].not_taken == ("http://x.y/" + "z" * 189,)


def test_is_bounded_in_depth_and_number():
    deep = A
    for _ in range(32):
        deep = [deep]
    assert (found(deep), found([deep])) == ([A], [])
    many = [f"{CDN}{number}.png" for number in range(2_000)]
    assert found(many) == many[:1_000]
    assert found([*[0] * 99_998, A, B]) == [A]


@pytest.mark.parametrize(
    ("value", "asked", "missing"),
    [
        ({"images": [A, None, "", B]}, None, 2),
        ({"images": [{"url": A}, {"url": None}, {"url": A, "path": None}]}, None, 1),
        ({"images": [{"url": A}, {"error": "nsfw"}, {"seed": 3}]}, None, 1),
        ([A, None], None, 1),
        ({"images": [A], "filtered": 2}, None, 2),
        ({"images": [], "num_filtered": 0}, None, 0),
        ({"images": [A, B]}, 4, 2),
        ({"images": [A, A, None], "mask": SONG}, 4, 3),
        ({"images": [A, B]}, 2, 0),
        ({"images": [A, B], "tags": ["", None], "other": None}, None, None),
        ({"image": None, "images": [A], "filtered": True}, None, None),
        (A, None, None),
    ],
)
def test_counts_what_is_missing_only_where_something_says_it(value, asked, missing):
    assert read_output(value, asked=asked)[1] == missing


@pytest.mark.parametrize(
    ("url", "kind", "content"),
    [
        ("data:image/png;base64,QUI=", "image/png", b"AB"),
        ("data:image/png;base64,QUI", "image/png", b"AB"),
        ("DATA:Image/PNG;x=1;BASE64,QU%49%3D", "image/png", b"AB"),
        ("data:image/png;base64,Q U\nI=", "image/png", b"AB"),
        ("data:;base64,QUI=", "", b"AB"),
        ("data:image/svg+xml,%3Csvg/%3E", "image/svg+xml", b"<svg/>"),
        ("data:text/plain,", "text/plain", b""),
        ("data:,a%20b,c", "", b"a b,c"),
        ('data:;charset="a,b;base64",QUI=', "", b"QUI="),
    ],
)
def test_decodes_a_data_uri(url, kind, content):
    assert is_inline(url)
    assert inline_file(url, 6) == (kind, content)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("data:image/png;base64,QU!=", "not valid base64"),
        ("data:image/png;base64,Q", "not valid base64"),
        ("data:image/png;base64,QUI=QUI=", "not valid base64"),
        ("data:image/png;base64,QUJDREVGRw==", "larger than 6 bytes"),
        ("data:text/plain,1234567", "larger than 6 bytes"),
    ],
)
def test_refuses_a_data_uri_that_is_broken_or_too_large(url, sentence):
    with pytest.raises(DownloadError, match=sentence):
        inline_file(url, 6)
