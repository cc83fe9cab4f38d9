import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.engine.protocol import BadRequestError, parse_completion, require_context


def parse(chat: bool = False, **body: object):
    whole = {"model": "m", **({"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hi"}), **body}
    return parse_completion(json.dumps(whole).encode(), chat=chat)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": None}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "ten"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"n": 2}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
    ],
)
def test_a_bad_field_is_refused_by_name(body, field):
    with pytest.raises(BadRequestError) as refused:
        parse(**body)
    assert refused.value.param == field
    assert field in str(refused.value).lower().replace("stream options", "stream_options")
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        (None, "messages"),
        ([], "messages"),
        ([{"content": "hi"}], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
    ],
)
def test_a_bad_message_is_refused_by_place(messages, place):
    with pytest.raises(BadRequestError) as refused:
        parse(chat=True, messages=messages)
    assert refused.value.param == place


def test_a_body_that_is_not_json_is_refused():
    with pytest.raises(BadRequestError, match="not JSON"):
        parse_completion(b"{", chat=False)
    with pytest.raises(BadRequestError, match="must be a JSON object"):
        parse_completion(b"[]", chat=False)


def test_a_prompt_of_token_ids_has_exactly_as_many_tokens():
    assert parse(prompt=[7] * 321).prompt_tokens == 321
    assert parse(prompt=[[7] * 321]).prompt_tokens == 321


def test_a_prompt_of_text_is_counted_roughly():
    assert parse(prompt="x" * 400).prompt_tokens == 100
    assert parse(prompt=["abcde"]).prompt_tokens == 2


def test_chat_parts_of_text_are_read():
    content = [{"type": "text", "text": "x" * 40}, {"type": "text", "text": "y" * 40}]
    assert parse(chat=True, messages=[{"role": "user", "content": content}]).prompt_tokens == 24


def test_completions_have_openais_default_length_and_chat_all_the_context():
    assert parse().max_tokens == 16
    assert require_context(parse(chat=True), 1000) == 995
    assert parse(chat=True, max_completion_tokens=7, max_tokens=9).max_tokens == 7


def test_what_exceeds_the_context_is_refused_in_vllms_words():
    with pytest.raises(
        BadRequestError, match=r"maximum context length is 100 tokens. However, you requested 120 tokens \(90 in the"
    ):
        require_context(parse(prompt=[1] * 90, max_tokens=30), 100)
    with pytest.raises(BadRequestError, match="Please reduce"):
        require_context(parse(chat=True, messages=[{"role": "user", "content": "x" * 4000}]), 100)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_no_prompt_at_all_breaks_the_parser(prompt):
    fault = None
    try:
        tokens = parse(prompt=prompt).prompt_tokens
    except BadRequestError as refused:
        tokens, fault = 0, refused.param
    assert (tokens >= 1) != (fault == "prompt")
