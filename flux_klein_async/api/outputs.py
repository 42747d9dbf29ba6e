"""The files in the output of any model, whatever its shape (source: docs/wire.md, "Output").

A file is an https:// URL, or a data URI that holds the file itself. The name of its field tells it; under any other
name, its suffix does. If neither tells one, an output of unknown names gives every URL in it. Links to the API and to
pages are no files, and neither is what repeats the input.
"""

import binascii
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from flux_klein_async.api.urls import host_of, is_loopback, parsed
from flux_klein_async.errors import DownloadError
from flux_klein_async.models import GenerationOutput, read_fields

__all__ = ["inline_file", "is_inline", "read_output", "too_large", "url_suffix"]

_DEEPEST = 32  # levels
_MOST_VALUES = 100_000
_MOST_FILES = 1_000
_MOST_SHOWN, _LONGEST_SHOWN = 3, 200  # addresses that are not taken, and their characters

# "image_url" and "image_urls" say the same as "image".
_ENDINGS = ("url", "urls", "uri", "uris", "path", "paths")
_ENDING = re.compile(rf"(?<=[a-z0-9])_?({'|'.join(_ENDINGS)})$")
_KINDS = {
    **dict.fromkeys(("image", "images", "picture", "pictures"), "image"),
    **dict.fromkeys(("video", "videos"), "video"),
    **dict.fromkeys(("audio", "audios"), "other"),
}
_FILES = {*_KINDS, "url", "urls", "uri", "uris", "path", "paths", "file", "files", "output", "outputs"}
_API_LINKS = {"status", "result", "response", "cancel", "callback", "queue"}  # "result" may be a file, "result_url" not
_NO_FILES = {"page", "docs", "help", "webhook", "input", "inputs", "request", "parameters", "params", "arguments"}

_SUFFIXES = {
    **dict.fromkeys(
        ("png", "jpg", "jpeg", "webp", "gif", "avif", "heic", "heif", "bmp", "tif", "tiff", "svg"), "image"
    ),
    **dict.fromkeys(("mp4", "webm", "mov", "mkv", "m4v", "avi"), "video"),
    **dict.fromkeys(("wav", "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac"), "other"),
    **dict.fromkeys(("glb", "gltf", "obj", "fbx", "ply", "usdz", "stl", "zip", "safetensors"), "other"),
}
_URL = re.compile(r"(https?)://\S", re.IGNORECASE)
_DATA = re.compile(  # possessive: megabytes that are none are read once
    r'data:(?:([\w.+-]++)/[\w.+-]++)?(?:;[\w.+-]++=(?:"[^"]*+"|[^;,"]*+))*+(;base64)?,', re.IGNORECASE | re.ASCII
)
_PLAIN = re.compile(r"https://\S+")
_SPACE = re.compile(r"\s")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//[^\s/]\S*")  # of whatever scheme, or of none
_COUNTS = ("filtered", "num_filtered", "filtered_count")  # files that are left out, in words of the service


class _File(NamedTuple):
    url: str
    kind: str | None  # None: nothing tells it
    tells: bool  # the name of its field, or its suffix, tells that it is a file
    inside: bool  # it is somewhere below such a name
    top: str  # the name of the output's own field that it is in, or ""


def is_inline(url: str) -> bool:
    """Whether a URL is a data URI, which holds the file itself (RFC 2397)."""
    return _DATA.match(url) is not None


def inline_file(url: str, most: int) -> tuple[str, bytes]:
    """The content type and the bytes of a data URI.

    Raises:
        DownloadError: It is larger than `most` bytes, or not valid base64.
    """
    head = _DATA.match(url)
    start = head.end() if head else 0
    content_type = url[len("data:") : start - 1].partition(";")[0].lower()
    content = unquote_to_bytes(url[start:])
    if head and head[2]:
        content = b"".join(content.split())
        try:  # padding may be left out, as in browsers
            content = binascii.a2b_base64(content + b"=" * (-len(content) % 4), strict_mode=True)
        except binascii.Error as error:
            raise DownloadError("The file inside the answer is not valid base64", cause=str(error)) from error
    if len(content) > most:
        raise too_large(most)
    return content_type, content


def too_large(most: int) -> DownloadError:
    """The error of a file of more than `most` bytes."""
    return DownloadError(f"The file is larger than {most} bytes (in Python, Limits.max_file_bytes)")


def read_output(value: Any, origin: str = "", asked: int | None = None) -> tuple[GenerationOutput, int | None]:
    """The files in an output, and how many it lacks (None: nothing says it).

    Plain http is taken from this machine and from `origin`, the base URL's own. `asked`: the pictures asked for.
    """
    url = value.get("image") if isinstance(value, dict) and len(value) == 1 else None
    if isinstance(url, str) and _PLAIN.fullmatch(url):  # as of [klein]: what follows would say the same
        return read_fields(GenerationOutput, {"image": url}), None if asked is None else max(asked - 1, 0)
    walk = _Walk(origin)
    walk.visit(value)
    files = [file for file in walk.files if file.tells] or [file for file in walk.files if file.inside]
    if not files and not walk.named:
        files = walk.files
    of_top: dict[str, int] = {}
    for file in files:
        of_top[file.top] = of_top.get(file.top, 0) + 1
    single: dict[str, str] = {}
    several: dict[str, list[str]] = {"images": [], "videos": [], "others": []}
    for file in files[:_MOST_FILES]:
        kind = file.kind or "image"
        if kind != "other" and of_top[file.top] == 1 and file.top == ("" if isinstance(value, str) else kind):
            single[kind] = file.url
        else:
            several[f"{kind}s"].append(file.url)
    output = read_fields(GenerationOutput, {**single, **several, "not_taken": walk.not_taken})
    return output, _missing(value, walk.gaps, output, asked)


def _missing(value: Any, gaps: int, output: GenerationOutput, asked: int | None) -> int | None:
    """How many files are left out: as gaps in lists, as a count, or compared with what was asked for."""
    said = [gaps] if gaps else []
    if isinstance(value, Mapping):
        for name in _COUNTS:
            count = value.get(name)
            if type(count) is int and count >= 0:
                said.append(count)
    if asked is not None:
        pictures = {output.image, *output.images} - {None}
        said.append(max(asked - len(pictures), 0))
    return max(said, default=None)


class _Walk:
    """Goes once through an output, in its order.

    Attributes:
        files: Every URL that may be a file's.
        named: Whether there is a field that is meant for files.
        gaps: Places in lists of files that hold none.
        not_taken: The first addresses that look like a file's and are not taken.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._left = _MOST_VALUES
        self.files: list[_File] = []
        self.named = False
        self.gaps = 0
        self.not_taken: list[str] = []

    def visit(
        self,
        value: Any,
        *,
        kind: str | None = None,
        told: bool = True,
        inside: bool = True,
        top: str = "",
        depth: int = 0,
    ) -> None:
        """Go through a value: `told` by the name of its field to be a file, or `inside` of such a field."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return
        if isinstance(value, str):
            self._text(value, kind, told, inside, top)
        elif isinstance(value, list):
            for item in value:
                before = len(self.files)
                self.visit(item, kind=kind, told=told, inside=inside, top=top, depth=depth + 1)
                self.gaps += told and len(self.files) == before and _is_gap(item)
        elif isinstance(value, Mapping):
            inside = inside and depth > 0
            for key, part in value.items():
                name = key.lower()
                stem = _ENDING.sub("", name) if name.endswith(_ENDINGS) else name
                if stem in _NO_FILES or name.startswith("input_") or (stem in _API_LINKS and stem != name):
                    continue
                tells = name in _FILES or stem in _FILES
                self.named |= tells
                self.visit(
                    part,
                    kind=_KINDS.get(stem, kind),
                    told=tells,
                    inside=inside or tells,
                    top=top or name,
                    depth=depth + 1,
                )

    def _text(self, text: str, kind: str | None, told: bool, inside: bool, top: str) -> None:
        text = text.strip()
        # Words may begin with "data:,".
        if (data := _DATA.match(text)) is not None and (told or data[1] or data[2]):
            major = (data[1] or "").lower()
            told, kind = True, major if major in ("image", "video") else kind or "other"
        elif self._is_taken(text):
            suffix = url_suffix(text)
            told, kind = told or suffix in _SUFFIXES, kind or _SUFFIXES.get(suffix, "other" if suffix else None)
        else:
            if len(self.not_taken) < _MOST_SHOWN and _ADDRESS.fullmatch(text):
                self.not_taken.append(text[:_LONGEST_SHOWN])
            return
        self.files.append(_File(text, kind, told, inside, top))

    def _is_taken(self, text: str) -> bool:
        found = _URL.match(text)
        if found is None or (_SPACE.search(text) and url_suffix(text) not in _SUFFIXES):
            return False  # a sentence may begin with a URL
        if found[1].lower() == "https" or (self._origin and text.startswith(f"{self._origin}/")):
            return True
        try:
            url = parsed(text)
            return str(url.origin()) == self._origin or is_loopback(host_of(url) or "")
        except ValueError:
            return False


def _is_gap(item: Any) -> bool:
    """Whether an element of a list of files, which holds none, stands for one that is left out."""
    if isinstance(item, Mapping):
        named = (part for key, part in item.items() if key.lower() in _FILES)
        return any(part in (None, "") for part in named) or bool(item.get("error") or item.get("error_message"))
    return item is None or item == ""


def url_suffix(url: str) -> str:
    """The suffix of a URL's file, in lower case and without its dot; "" if it has none."""
    name = url.partition("#")[0].partition("?")[0].rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""
