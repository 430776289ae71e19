# SPDX-License-Identifier: Apache-2.0
"""The state machine as dialogues: what happens, and what is commanded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from syshax import exchange as x
from syshax import prompts, sse
from syshax.dialects import DIALECTS
from syshax.errors import Problem
from syshax.prompts import CHAT, Prompt

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"
NIXL = DIALECTS["nixl"]
SINGLE = x.Start(x.Route("gpu"))
PAIR = x.Start(x.Route("cpu", "gpu", NIXL))
PARAMS = {"remote_engine_id": "e"}


def prompt(stream: bool = True, **more: Any) -> Prompt:
    body = {"messages": [], "max_tokens": 9, "stream": stream, **more}
    parsed = prompts.parse(CHAT, json.dumps(body).encode(), "id")
    assert isinstance(parsed, Prompt)
    return parsed


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return sse.event(json.dumps({"choices": [choice]}, ensure_ascii=False).encode())


ANSWER = json.dumps(
    {
        "object": "chat.completion",
        "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}],
    }
).encode()
PREFILLED = json.dumps(
    {"id": "1", "choices": [{"finish_reason": "length"}], "kv_transfer_params": PARAMS}
).encode()
EVENTS = chunk("开") + chunk("b[DONE]") + chunk("", "stop")
STREAM = EVENTS + sse.DONE


def kinds(commands: list[x.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def written(commands: list[x.Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, x.Write))


def play(exchange: x.Exchange, *events: x.Event) -> list[x.Command]:
    return [command for event in events for command in exchange.on(event)]


def whole(leg: int, body: bytes, status: int = 200) -> list[x.Event]:
    return [x.Head(leg, status, JSON), x.Data(leg, body), x.End(leg)]


def test_one_engine_streams_through() -> None:
    talk = x.Exchange(prompt())
    assert talk.on(SINGLE) == [x.Open(1, "gpu", talk.prompt.raw, True)]
    assert talk.on(x.Head(1, 200, SSE)) == []
    assert talk.on(x.Data(1, chunk("a"))) == [x.Respond(200, SSE), x.Write(chunk("a"))]
    assert talk.on(x.Data(1, chunk("", "stop"))) == [x.Write(chunk("", "stop"))]
    assert talk.on(x.Data(1, sse.DONE)) == []
    assert talk.on(x.End(1)) == [x.Verdict("gpu", ""), x.Write(sse.DONE), x.Finish("answered")]


def test_a_hand_off_prefills_then_decodes() -> None:
    talk = x.Exchange(prompt())
    assert talk.on(PAIR) == [x.Open(1, "gpu", NIXL.prefill(talk.prompt), False)]
    commands = play(talk, *whole(1, PREFILLED))
    assert kinds(commands) == ["Verdict", "PrefillDone", "Open"]
    opened = commands[-1]
    assert isinstance(opened, x.Open) and (opened.leg, opened.engine) == (2, "cpu")
    assert json.loads(opened.body)["kv_transfer_params"] == PARAMS
    commands = play(talk, x.Head(2, 200, SSE), x.Data(2, STREAM), x.End(2))
    assert written(commands) == STREAM
    assert talk.way == "gpu>cpu"


@pytest.mark.parametrize("cut", range(1, len(STREAM)))
def test_a_stream_cut_at_every_byte_is_the_same_stream(cut: int) -> None:
    talk = x.Exchange(prompt())
    commands = play(
        talk,
        SINGLE,
        x.Head(1, 200, SSE),
        x.Data(1, STREAM[:cut]),
        x.Data(1, STREAM[cut:]),
        x.End(1),
    )
    assert written(commands) == STREAM
    assert kinds(commands)[-1] == "Finish"


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_an_engine_lost_at_every_byte_leaves_whole_events_and_one_end(cut: int) -> None:
    talk = x.Exchange(prompt())
    commands = play(
        talk, SINGLE, x.Head(1, 200, SSE), x.Data(1, STREAM[:cut]), x.Fault(1, x.BROKEN, "reset")
    )
    if "Reroute" in kinds(commands):
        assert not written(commands)
        commands = talk.on(x.NoRoute(Problem(503, "none", "none left")))
        assert commands[0] == x.Respond(502, JSON, len(written(commands)))
        assert json.loads(written(commands))["error"]["message"] == "gpu: reset"
        return
    events = list(sse.events(written(commands)))
    assert b"".join(events) == written(commands)
    assert [sse.data_of(event) for event in events].count(b"[DONE]") == 1
    assert events[-1] == sse.DONE
    complete = cut >= len(EVENTS) + len(sse.DONE)
    assert (b'"error"' in events[-2]) is not complete


NOTED = [
    sse.event(b'{"choices":[],"usage":{"completion_tokens":3}}'),
    sse.event(b'{"error":{"message":"out of blocks"}}'),
    chunk("", "stop"),
    sse.event(b'{"choices":[{"index":0,"finish_reason":"stop"}]}'),
    chunk("a") + chunk("b"),
    chunk("a")[:-5],
    b": ping\n\n",
    b"data: nonsense\n\n",
    sse.DONE,
]


def test_a_token_is_relayed_and_whatever_has_to_be_noted_is_not() -> None:
    talk = x.Exchange(prompt())
    play(talk, SINGLE, x.Head(1, 200, SSE))
    assert not talk.relay(chunk("a"))  # the head goes before it
    play(talk, x.Data(1, chunk("a")))
    assert talk.relay(chunk('开 [DONE] "error"'))
    assert [data for data in NOTED if talk.relay(data)] == []
    play(talk, x.Data(1, chunk("a")[:9]))
    assert not talk.relay(chunk("a"))  # the rest of another event is awaited


@settings(max_examples=200)
@given(st.lists(st.sampled_from([chunk("a"), chunk("开"), *NOTED]), max_size=8))
def test_relaying_changes_nothing_that_the_client_or_the_conductor_sees(reads: list[bytes]) -> None:
    def told(relays: bool) -> tuple[Any, ...]:
        talk, commands = x.Exchange(prompt()), []
        commands += play(talk, SINGLE, x.Head(1, 200, SSE))
        for data in reads:
            if relays and talk.relay(data):
                commands.append(x.Write(data))
            else:
                commands += talk.on(x.Data(1, data))
        commands += talk.on(x.End(1))
        return commands, talk.chunks, talk.usage, talk.state, talk.problem

    assert told(relays=True) == told(relays=False)


def test_without_done_a_finished_answer_gets_one() -> None:
    talk = x.Exchange(prompt())
    commands = play(talk, SINGLE, x.Head(1, 200, SSE), x.Data(1, EVENTS), x.End(1))
    assert written(commands) == STREAM


def test_two_dones_become_one_and_what_follows_is_dropped() -> None:
    talk = x.Exchange(prompt())
    data = STREAM + sse.DONE + chunk("late")
    commands = play(talk, SINGLE, x.Head(1, 200, SSE), x.Data(1, data), x.End(1))
    assert written(commands) == STREAM


def test_a_second_choice_must_finish_too() -> None:
    talk = x.Exchange(prompt(n=2))
    commands = play(talk, SINGLE, x.Head(1, 200, SSE), x.Data(1, EVENTS), x.End(1))
    assert b"ended before the answer did" in written(commands)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"data: nonsense\n\n", "not valid JSON"),
        (b"data: 7\n\n", "not a JSON object"),
        (b'data: {"error": {"message": "out of blocks"}}\n\n', "out of blocks"),
    ],
)
def test_a_bad_event_after_the_first_ends_with_one_error_event(bad: bytes, words: str) -> None:
    talk = x.Exchange(prompt())
    commands = play(talk, SINGLE, x.Head(1, 200, SSE), x.Data(1, chunk("a") + bad + chunk("b")))
    events = list(sse.events(written(commands)))
    assert (events[0], events[-1], len(events)) == (chunk("a"), sse.DONE, 3)
    assert words in json.loads(sse.data_of(events[1]))["error"]["message"]
    assert x.Close(1) in commands


def test_comments_and_usage_only_chunks_pass() -> None:
    usage = sse.event(b'{"choices":[],"usage":{"completion_tokens":3}}')
    data = b": ping\n\n" + EVENTS + usage + sse.DONE
    talk = x.Exchange(prompt())
    commands = play(talk, SINGLE, x.Head(1, 200, SSE), x.Data(1, data), x.End(1))
    assert written(commands) == data
    assert talk.usage == {"completion_tokens": 3}


def test_trouble_before_the_first_byte_takes_another_engine() -> None:
    talk = x.Exchange(prompt(stream=False))
    commands = play(talk, SINGLE, x.Fault(1, x.CONNECT, "refused"))
    assert commands[1:] == [
        x.Close(1), x.Verdict("gpu", "refused"), x.Reroute(frozenset({"gpu"})),
    ]  # fmt: skip
    assert talk.on(x.Start(x.Route("cpu"))) == [x.Open(2, "cpu", talk.prompt.raw, False)]
    assert talk.on(x.Data(1, b"late")) == []
    assert written(play(talk, *whole(2, ANSWER))) == ANSWER


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_engine_in_trouble_is_left_for_another(status: int) -> None:
    talk = x.Exchange(prompt())
    commands = play(talk, SINGLE, *whole(1, b"oops", status))
    assert kinds(commands) == ["Open", "Close", "Verdict", "Reroute"]


@pytest.mark.parametrize("start", [SINGLE, PAIR])
def test_a_clients_mistake_is_passed_on_unchanged(start: x.Start) -> None:
    body = b'{"error":{"message":"too long","type":"x","param":null,"code":400}}'
    commands = play(x.Exchange(prompt()), start, *whole(1, body, 400))
    assert commands[1:] == [
        x.Verdict("gpu", ""), x.Respond(400, JSON, len(body)), x.Write(body), x.Finish("refused"),
    ]  # fmt: skip


def test_a_refusal_in_plain_words_becomes_an_error_object() -> None:
    commands = play(x.Exchange(prompt()), SINGLE, *whole(1, b"<html>no</html>", 404))
    assert json.loads(written(commands))["error"]["message"] == "gpu answered 404: <html>no</html>"


def test_a_refused_decode_connection_is_tried_once_more_then_the_gpu_answers_alone() -> None:
    talk = x.Exchange(prompt())
    play(talk, PAIR, *whole(1, PREFILLED))
    assert kinds(talk.on(x.Fault(2, x.CONNECT, "gone"))) == ["Open"]
    commands = talk.on(x.Fault(3, x.CONNECT, "gone"))
    assert commands[-1] == x.Reroute(frozenset({"cpu"}))
    (opened,) = talk.on(x.Start(x.Route("gpu")))
    assert opened == x.Open(4, "gpu", talk.prompt.raw, True)


def test_a_prefill_that_hands_nothing_over_is_answered_by_one_engine() -> None:
    talk = x.Exchange(prompt())
    commands = play(talk, PAIR, *whole(1, b'{"choices":[{"finish_reason":"length"}]}'))
    assert commands[-1] == x.Reroute(frozenset())


def test_an_answer_complete_after_its_first_token_needs_no_decode() -> None:
    commands = play(x.Exchange(prompt()), PAIR, *whole(1, ANSWER))
    events = [sse.data_of(event) for event in sse.events(written(commands))]
    assert json.loads(events[0])["choices"][0]["delta"] == {"content": "a"}
    assert events[-1] == b"[DONE]" and len(events) == 2


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b'{"choices":7}', b'{"choices":[7]}'])
def test_an_answer_that_is_none_is_trouble(answer: bytes) -> None:
    commands = play(x.Exchange(prompt()), SINGLE, *whole(1, answer))
    assert kinds(commands)[-1] == "Reroute"


def test_a_client_that_leaves_before_the_decode_is_admitted_abandons_its_blocks() -> None:
    talk = x.Exchange(prompt())
    play(talk, PAIR, *whole(1, PREFILLED))
    assert kinds(talk.on(x.ClientGone())) == ["Close", "Abandon", "Finish"]


def test_time_over_is_said_in_the_shape_the_client_reads() -> None:
    before, within = x.Exchange(prompt()), x.Exchange(prompt())
    commands = play(before, SINGLE, x.Expired(600))
    assert json.loads(written(commands))["error"]["message"] == "no complete answer within 600 s"
    commands = play(within, SINGLE, x.Head(1, 200, SSE), x.Data(1, chunk("a")), x.Expired(600))
    assert written(commands).startswith(chunk("a")) and written(commands).endswith(sse.DONE)


def test_bounds_hold() -> None:
    limits = x.Limits(event=100, answer=100)
    long = x.Exchange(prompt(), limits)
    commands = play(long, SINGLE, x.Head(1, 200, SSE), x.Data(1, b"data: " + b"x" * 200))
    assert kinds(commands)[-1] == "Reroute"
    big = x.Exchange(prompt(stream=False), limits)
    commands = play(big, SINGLE, x.Head(1, 200, JSON), x.Data(1, b"x" * 200))
    assert kinds(commands)[-1] == "Reroute"


def some_events() -> Iterator[st.SearchStrategy[Any]]:
    legs = st.integers(1, 4)
    yield st.builds(x.Head, legs, st.sampled_from([200, 400, 500]), st.sampled_from([JSON, SSE]))
    data = st.sampled_from([chunk("a"), STREAM, ANSWER, PREFILLED, b"data: x\n\n", STREAM[:30]])
    yield st.builds(x.Data, legs, data)
    yield st.builds(x.End, legs)
    yield st.builds(x.Fault, legs, st.sampled_from([x.CONNECT, x.TIMEOUT, x.BROKEN]), st.just("f"))
    yield st.just(x.ClientGone())
    yield st.just(x.Expired(1))


@settings(max_examples=120)
@given(st.booleans(), st.booleans(), st.lists(st.one_of(*some_events()), max_size=14))
def test_in_any_order_of_events_the_client_gets_one_answer(
    stream: bool, pair: bool, happenings: list[x.Event]
) -> None:
    talk = x.Exchange(prompt(stream=stream))
    commands = talk.on(PAIR if pair else SINGLE)
    for event in happenings:
        fresh = talk.on(event)
        if fresh and isinstance(fresh[-1], x.Reroute):
            engines = {"gpu", "cpu"} - fresh[-1].avoid
            answer: x.Event = x.NoRoute(Problem(503, "none", "none"))
            fresh += talk.on(x.Start(x.Route(engines.pop())) if engines else answer)
        commands += fresh
    commands += talk.on(x.Expired(1))
    assert kinds(commands).count("Finish") == 1 and kinds(commands)[-1] == "Finish"
    left = x.ClientGone() in happenings
    heads = [command for command in commands if isinstance(command, x.Respond)]
    assert len(heads) == 1 or (left and not heads)
    if heads and heads[0].media == SSE and commands[-1] != x.Finish("client_gone"):
        data = [sse.data_of(event) for event in sse.events(written(commands))]
        assert data.count(b"[DONE]") == 1 and data[-1] == b"[DONE]"
    elif heads and heads[0].media == JSON:
        json.loads(written(commands))
