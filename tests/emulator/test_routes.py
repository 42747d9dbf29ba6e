import pytest

from flux_klein_async.emulator.routes import Route, find_route

from .helpers import KLEIN_4B

SUBMIT = f"/v1/models/{KLEIN_4B}"


@pytest.mark.parametrize(
    ("method", "target", "route"),
    [
        ("POST", SUBMIT, Route("submit", SUBMIT, model_id=KLEIN_4B)),
        ("GET", SUBMIT, Route("model", SUBMIT, model_id=KLEIN_4B)),
        ("GET", "/v1/models", Route("models", "/v1/models")),
        ("GET", "/v1/models?search=a%20b&kind=", Route("models", "/v1/models", {"search": "a b", "kind": ""})),
        ("GET", "/v1/requests/r-1/status", Route("status", "/v1/requests/r-1/status", request_id="r-1")),
        ("GET", "/v1/requests/r/result?x=1", Route("result", "/v1/requests/r/result", {"x": "1"}, "r")),
        ("POST", "/v1/requests/r/cancel", Route("cancel", "/v1/requests/r/cancel", request_id="r")),
        ("GET", "http://h:1/v1/requests/r/status", Route("status", "/v1/requests/r/status", request_id="r")),
        ("GET", "/files/r.png", Route("file", "/files/r.png", request_id="r", file=(0, "png"))),
        ("GET", "/files/r.2.png", Route("file", "/files/r.2.png", request_id="r", file=(2, "png"))),
        ("GET", "/files/r.mp4", Route("file", "/files/r.mp4", request_id="r", file=(0, "mp4"))),
    ],
)
def test_a_request_line_means_an_endpoint(method, target, route):
    assert find_route(method, target) == route


@pytest.mark.parametrize(
    "target",
    ["/", "/v1", "/v1/requests", "/v1/requests/", "/v1/requests//status", "/v1/requests/r", "/v1/requests/r/x", "*"],
)
def test_anything_else_is_no_endpoint(target):
    route = find_route("GET", target)
    assert (route.endpoint, route.allow) == ("other", None)


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/v1/requests/r/status", "GET"),
        ("DELETE", "/v1/requests/r/result", "GET"),
        ("GET", "/v1/requests/r/cancel", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", SUBMIT, "GET"),
        ("POST", "/files/r.png", "GET"),
        ("POST", "/files/nothing", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(method, target, allow):
    route = find_route(method, target)
    assert (route.endpoint, route.allow) == ("other", allow)


@pytest.mark.parametrize(
    ("target", "malformed"),
    [
        ("/v1/requests/a%2Db_9/status", False),
        ("/v1/requests/" + "a" * 128 + "/status", False),
        ("/v1/requests/" + "a" * 129 + "/status", True),
        ("/v1/requests/a%20b/status", True),
        ("/v1/requests/a/b/status", True),
        ("/v1/requests/%D9%A3/status", True),
        ("/v1/models/a/b.c-d_e", False),
        ("/v1/models/a%2Fb", False),
        ("/v1/models/", True),
        ("/v1/models/a//b", True),
        ("/v1/models/a/../b", True),
        ("/files/../r.png", True),
        ("/files/r.exe", True),
    ],
)
def test_an_id_that_cannot_be_one_is_malformed(target, malformed):
    assert find_route("GET", target).malformed is malformed
