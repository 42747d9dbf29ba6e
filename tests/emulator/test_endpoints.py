"""The service's normal behaviour: routes, and what each endpoint answers."""

import json

import pytest

from flux_klein_async.emulator.catalogue import MODELS
from flux_klein_async.emulator.endpoints import Placeholder, Route, find_route
from flux_klein_async.emulator.engine import Engine
from flux_klein_async.emulator.generations import KEPT_FOR
from flux_klein_async.emulator.scripts import Generation, Reply, Rewrite

from .helpers import KLEIN_4B, SUBMIT, ask, submit


@pytest.mark.parametrize(
    ("method", "target", "route"),
    [
        ("POST", SUBMIT, Route("submit", SUBMIT, model_id=KLEIN_4B)),
        ("GET", SUBMIT, Route("model", SUBMIT, model_id=KLEIN_4B)),
        ("GET", "/v1/models", Route("models", "/v1/models")),
        ("GET", "/v1/models/categories", Route("categories", "/v1/models/categories")),
        ("GET", "/v1/models?search=a%20b&kind=", Route("models", "/v1/models", {"search": "a b", "kind": ""})),
        ("GET", "/v1/requests/r-1/status", Route("status", "/v1/requests/r-1/status", request_id="r-1")),
        ("GET", "/v1/requests/r/result?x=1", Route("result", "/v1/requests/r/result", {"x": "1"}, "r")),
        ("POST", "/v1/requests/r/cancel", Route("cancel", "/v1/requests/r/cancel", request_id="r")),
        ("GET", "http://h:1/v1/requests/r/status", Route("status", "/v1/requests/r/status", request_id="r")),
        ("GET", "/files/r.png", Route("file", "/files/r.png", request_id="r", file=".png")),
        ("GET", "/files/r.2.png", Route("file", "/files/r.2.png", request_id="r", file=".2.png")),
        (
            "GET",
            "/signed/r/%28a%29.png?x",
            Route("file", "/signed/r/%28a%29.png", {"x": ""}, "r", file=".png", folder="signed"),
        ),
        ("GET", "/files/r.mp4", Route("file", "/files/r.mp4", request_id="r", file=".mp4")),
    ],
)
def test_a_request_line_means_an_endpoint(method, target, route):
    assert find_route(method, target) == route


def test_anything_else_is_no_endpoint():
    for path in ("/", "/v1", "*", *(f"/v1/requests{rest}" for rest in ("", "/", "//status", "/r", "/r/x"))):
        assert find_route("GET", path) == Route("other", path)


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/v1/requests/r/status", "GET"),
        ("DELETE", "/v1/requests/r/result", "GET"),
        ("GET", "/v1/requests/r/cancel", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", SUBMIT, "GET, POST"),
        ("POST", "/files/r.png", "GET"),
        ("POST", "/files/nothing", "GET"),
        ("POST", "/v1/models/categories", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(method, target, allow):
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


BASE = "https://api.test"


def make_engine(**options):
    return Engine(**{"profile": "fixed:2", "base_url": BASE, **options})


def test_a_submit_answers_at_once_with_an_id_and_its_urls():
    body = ask(make_engine(), SUBMIT, method="POST", body={"prompt": "x"}).body
    url = f"{BASE}/v1/requests/{body['request_id']}"
    assert body == {
        "request_id": body["request_id"],
        "status_url": f"{url}/status",
        "result_url": f"{url}/result",
        "cancel_url": f"{url}/cancel",
    }


def test_request_ids_are_fresh_and_follow_from_the_seed():
    one, other, third = make_engine(seed=1), make_engine(seed=1, profile="klein"), make_engine(seed=2)
    ids = [submit(one) for _ in range(50)]
    assert len(set(ids)) == 50
    assert [submit(other) for _ in range(50)] == ids
    assert submit(third) not in ids


def test_a_generation_passes_through_its_states():
    engine = make_engine(workers=1)
    first, second = submit(engine), submit(engine)
    seen = [ask(engine, f"/v1/requests/{second}/status", now).body for now in (0, 1.99, 2, 3.99, 4)]
    words = ["in_queue", "in_queue", "in_progress", "in_progress", "completed"]
    assert [body["status"] for body in seen] == words
    assert [body.get("queue_position") for body in seen] == [0, 0, None, None, None]
    assert [body.get("instance_id") for body in seen] == [None, None, *["emulated-2"] * 3]
    assert seen[0]["request_id"] == second
    assert seen[0]["result_url"] == f"{BASE}/v1/requests/{second}/result"
    assert ask(engine, f"/v1/requests/{first}/status", 4).body["status"] == "completed"


@pytest.mark.parametrize(("files_url", "origin"), [(None, BASE), ("https://files.runcomfy.net",) * 2])
def test_a_result_has_output_times_and_on_request_its_cost(files_url, origin):
    engine = make_engine(epoch=1_767_225_600.0, files_url=files_url)
    request_id = submit(engine, 1.5)
    url = f"/v1/requests/{request_id}/result"
    plain = ask(engine, url, 10).body
    assert plain == {
        "request_id": request_id,
        "status": "completed",
        "created_at": "2026-01-01T00:00:01.500Z",
        "finished_at": "2026-01-01T00:00:03.500Z",
        "output": {"image": f"{origin}/files/{request_id}.png"},
    }
    assert ask(engine, url + "?include_cost=true", 10).body == {**plain, "cost": MODELS[KLEIN_4B].price}


def test_an_early_result_has_the_state_and_no_output():
    engine = make_engine()
    request_id = submit(engine)
    body = ask(engine, f"/v1/requests/{request_id}/result?include_cost=true", 1).body
    assert body == {"request_id": request_id, "status": "in_progress", "created_at": "1970-01-01T00:00:00.000Z"}


def test_cancelling_ends_what_waits_and_gives_the_money_back():
    engine = make_engine(workers=1)
    running, waiting = submit(engine), submit(engine)
    replies = [
        ask(engine, f"/v1/requests/{request_id}/cancel", 1, method="POST").body
        for request_id in (running, waiting, waiting)
    ]
    assert [(body["outcome"], body["status"]) for body in replies] == [
        ("not_cancellable", "in_progress"),
        ("cancelled", "cancelled"),
        ("not_cancellable", "cancelled"),
    ]
    assert (engine.service.accepted, engine.service.spent_usd) == (2, MODELS[KLEIN_4B].price)
    result = ask(engine, f"/v1/requests/{waiting}/result?include_cost=true", 1).body
    assert (result["status"], result["cost"], "output" in result) == ("cancelled", 0.0, False)


@pytest.mark.parametrize(
    ("fate", "status", "more"),
    [
        (Generation(ends="failed"), "failed", {"error": "The model failed"}),
        (Generation(ends="failed", error={"a": 1}), "failed", {"error": {"a": 1}}),
        (Generation(ends="cancelled"), "cancelled", {}),
        (Generation(output="https://x/y.png"), "completed", {"output": "https://x/y.png"}),
        (Generation(words={"completed": "SUCCEEDED"}, output=[]), "SUCCEEDED", {"output": []}),
        (Generation(ends="failed", error="late", words={"failed": "expired"}), "expired", {"error": "late"}),
    ],
)
def test_a_scripted_fate_shows_in_status_and_result(fate, status, more):
    engine = make_engine(script={"submit": [fate]})
    request_id = submit(engine)
    assert ask(engine, f"/v1/requests/{request_id}/status", 2).body["status"] == status
    result = ask(engine, f"/v1/requests/{request_id}/result", 2).body
    assert result["status"] == status
    assert {key: result[key] for key in ("output", "error") if key in result} == more


def test_the_error_of_a_failed_generation_is_in_its_status_too():
    engine = make_engine(script={"submit": [Generation(ends="failed", error="late")]})
    path = f"/v1/requests/{submit(engine)}/status"
    assert [ask(engine, path, now).body.get("error") for now in (1, 2)] == [None, "late"]


def test_an_output_can_have_the_address_of_its_file_in_it():
    output = ["{file}?1", {"href": "{place}", "text": "{FILE}", "pages": 2}]
    engine = make_engine(script={"submit": [Generation(output=output), None]}, base_url="https://b")
    for request_id in (submit(engine), submit(engine)):
        engine.script("result", Rewrite({"output": output}))
        address = f"//b/files/{request_id}.png"
        result = ask(engine, f"/v1/requests/{request_id}/result", 2).body["output"]
        assert result == [f"https:{address}?1", {"href": address, "text": f"HTTPS:{address}", "pages": 2}]
    engine.script("result", Rewrite({"output": output}))
    assert ask(engine, "/v1/requests/nobody/result").body["output"] == output


def test_a_generation_can_cost_something_else():
    given = [Generation(cost=0.04), Generation(cost=0.5), Generation(cost=9.0, ends="cancelled")]
    engine = make_engine(workers=1, script={"submit": given})
    first, waiting, free = submit(engine), submit(engine), submit(engine)
    assert engine.spent_usd == 0.54
    ask(engine, f"/v1/requests/{free}/cancel", method="POST")
    assert engine.spent_usd == 0.54
    ask(engine, f"/v1/requests/{waiting}/cancel", method="POST")
    assert engine.spent_usd == 0.04
    assert ask(engine, f"/v1/requests/{first}/result?include_cost=true", 2).body["cost"] == 0.04


def test_several_submits_can_be_given_one_id():
    same = Generation(same_id=True)
    engine = make_engine(script={"submit": [same, same, None, same]})
    first, second, third, fourth = (submit(engine) for _ in range(4))
    assert first == second != third == fourth
    assert (engine.accepted, len(engine.completions)) == (4, 4)
    assert len({record.request_id for record in engine.records}) == 4


@pytest.mark.parametrize("kind", ["direct", "redirect"])
def test_a_signed_address_answers_to_its_own_bytes_alone(kind):
    engine = make_engine(script={"submit": [Generation(signed=kind)]}, base_url="https://b", files_url="https://f")
    request_id = submit(engine)
    url = ask(engine, f"/v1/requests/{request_id}/result", 2).body["output"]["image"]

    def status(url):
        return engine.handle("GET", url.removeprefix("https://f"), {}, b"", 2.0)

    for ours, theirs in (
        ("%28", "("),
        ("%7E", "~"),
        ("%2F", "/"),
        ("%27", "'"),
        ("%2b", "%2B"),
        ("~", "%7E"),
        ("?", "?x&"),
    ):
        assert ours in url
        assert status(url.replace(ours, theirs)).status == 403
    reply = status(url)
    if kind == "redirect":
        assert reply.status == 302
        assert status(reply.headers["Location"].replace("%28", "(")).status == 403
        reply = status(reply.headers["Location"])
    assert reply.body == Placeholder("a snow leopard", 1024, 1024, 0, request_id, "png")


def test_a_scripted_length_replaces_the_profiles():
    engine = make_engine(script={"submit": [Generation(after=0.25)]})
    assert [engine.completions[submit(engine, 1.0)] for _ in range(2)] == [1.25, 3.0]


def test_a_result_can_lag_behind_its_status_and_be_an_error_meanwhile():
    early = Reply(409, {"error_message": "not yet"})
    engine = make_engine(script={"submit": [Generation(result_lag=0.5), Generation(early_result=early)]})
    lagging, strict = (f"/v1/requests/{submit(engine)}" for _ in range(2))
    assert ask(engine, f"{lagging}/status", 2).body["status"] == "completed"
    results = [ask(engine, f"{lagging}/result", now).body["status"] for now in (2, 2.49, 2.5)]
    assert results == ["in_progress", "in_progress", "completed"]
    assert [ask(engine, f"{strict}/result", now).status for now in (1, 2)] == [409, 200]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("mine", 401),
        ("Bearer", 401),
        ("Bearer emulator-token", 401),
        ("Basic mine", 401),
        ("Bearer mine", 200),
        ("bearer  mine", 200),
    ],
)
def test_calls_need_the_token(authorization, status):
    headers = {} if authorization is None else {"authorization": authorization}
    for target in ("/v1/models", "/v1/models/categories", SUBMIT):
        reply = make_engine(api_key="mine").handle("GET", target, headers, b"", 0.0)
        assert (reply.status, reply.body.get("error_code")) == (status, 400004 if status == 401 else None)


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/v1/requests/nobody/status", 404, 404001),
        ("GET", "/v1/requests/nobody/result", 404, 404001),
        ("POST", "/v1/requests/nobody/cancel", 404, 404001),
        ("GET", "/v1/requests/no%20id/status", 400, 400001),
        ("GET", "/v1/models/nobody/s", 404, 404001),
        ("POST", "/v1/models/nobody/s", 404, 404001),
        ("POST", "/v1/models/a//b", 400, 400001),
        ("GET", "/v1/models/a//b", 400, 400001),
        ("GET", "/v2", 404, None),
        ("PUT", "/v1/models", 405, None),
    ],
)
def test_what_is_unknown_or_malformed_is_refused(method, target, status, code):
    reply = ask(make_engine(), target, method=method, body={"prompt": "x"})
    assert (reply.status, reply.body.get("error_code")) == (status, code)


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"{", b'{"prompt": NaN}', b'{"prompt": "x", "width": -Infinity}', b"[" * 100_000],
        *[b'{"prompt": %s}' % (b"9" * 5000), b"\xff", b'"x"', b"{}"],
    ],
)
def test_an_input_that_cannot_be_read_is_refused_and_costs_nothing(body):
    engine = make_engine()
    reply = ask(engine, SUBMIT, method="POST", body=body)
    assert (reply.status, reply.body["error_code"]) == (422, 422001)
    assert isinstance(reply.body["detail"], list)
    assert json.dumps(reply.body)
    assert (engine.service.accepted, engine.service.spent_usd) == (0, 0.0)


def test_the_catalogue_is_paged():
    engine = make_engine()
    everything = ask(engine, "/v1/models").body
    assert [entry["model_id"] for entry in everything["models"]] == list(MODELS)
    page = ask(engine, "/v1/models?limit=1&offset=1&include_schema=true").body
    assert page["total"] == everything["total"] == len(MODELS)
    assert [entry["model_id"] for entry in page["models"]] == [list(MODELS)[1]]
    assert "input_schema" in page["models"][0]
    assert "input_schema" not in everything["models"][0]
    assert ask(engine, SUBMIT).body["model_id"] == KLEIN_4B


def test_the_categories_are_listed_once_each():
    assert ask(make_engine(), "/v1/models/categories").body == {
        "categories": [
            *("text-to-image", "image-to-image", "text-to-video", "image-to-video", "video-to-video"),
            *("text-to-speech", "audio-to-audio"),
        ]
    }


def test_pages_leave_out_and_repeat_nothing():
    engine = make_engine()
    pages = [ask(engine, f"/v1/models?limit=5&offset={start}").body["models"] for start in (0, 5, 10, 15)]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    assert [entry["model_id"] for page in pages for entry in page] == list(MODELS)
    found = ask(engine, "/v1/models?search=edit&category=image-to-image&limit=3").body
    assert (len(found["models"]), found["total"]) == (3, 4)


def test_a_request_of_more_than_64_mib_is_refused():
    engine = make_engine()
    body = b'{"prompt": "x", "noise": "%s"}'
    room = 64 * 2**20 - len(body) + 2
    sizes = [ask(engine, SUBMIT, method="POST", body=body % (b"x" * size)).status for size in (room, room + 1)]
    assert (sizes, engine.accepted) == ([200, 422], 1)


@pytest.mark.parametrize("query", ["limit=x", "offset=-1", "limit=%C2%B2", f"limit={'9' * 5000}"])
def test_a_page_is_counted_in_whole_numbers(query):
    reply = ask(make_engine(), f"/v1/models?{query}")
    assert (reply.status, reply.body["error_code"]) == (422, 422001)


@pytest.mark.parametrize(
    ("model", "given", "suffix", "drawn"),
    [
        (KLEIN_4B, {"width": 64, "height": 128}, "png", (64, 128, 5)),
        (KLEIN_4B, {"seed": 9}, "png", (1024, 1024, 9)),
        ("emulator/any/image-to-images", {"width": "wide"}, "1.png", (1024, 1024, 5)),
        ("emulator/any/image-to-images", {"height": 9999}, "2.png", (1024, 1024, 6)),
        ("emulator/any/text-to-video", {}, "mp4", (1024, 1024, 5)),
    ],
)
def test_a_hosted_file_needs_no_token(model, given, suffix, drawn):
    engine = make_engine(seed=5)
    request_id = submit(engine, model=model, **given)
    file = engine.handle("GET", f"/files/{request_id}.{suffix}", {}, b"", 2.0)
    assert file.body == Placeholder("a snow leopard", *drawn, request_id, suffix.rpartition(".")[2])


@pytest.mark.parametrize(("suffix", "now"), [("png", 1.9), ("png", 2 + KEPT_FOR), ("1.png", 2), ("mp4", 2), ("exe", 2)])
def test_a_file_that_is_not_there_is_not_found(suffix, now):
    engine = make_engine()
    reply = ask(engine, f"/files/{submit(engine)}.{suffix}", now)
    assert (reply.status, reply.headers["Content-Type"]) == (404, "text/html")
