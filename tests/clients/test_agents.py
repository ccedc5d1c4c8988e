"""What the models of real coding agents are sent, when these use the server headless."""

from __future__ import annotations

from .conftest import Played
from .scripted_model import FINAL_TEXT


def plain(text: str) -> str:
    """Return a result without the marks of JSON, since some agents pass on JSON, some text."""
    return text.replace("\\n", "\n").replace('\\"', '"').replace('"', "'").replace(" ", "")


def test_every_agent_reaches_the_end_of_the_script(played: Played) -> None:
    assert FINAL_TEXT in played.printed


def test_the_model_is_offered_the_tools(played: Played) -> None:
    for tool in ("run_code", "list_skills", "save_skill", "replay"):
        assert any(name.endswith(tool) for name in played.first.tools)


def test_value_and_output_are_sent(played: Played) -> None:
    sent = plain(played.results["value"].text)
    assert "'total':45" in sent
    assert "hello" in sent


def test_code_that_is_json_runs(played: Played) -> None:
    assert "[1,2,3]" in plain(played.results["text that is JSON"].text)


def test_an_error_is_sent_once_with_its_line_and_the_session_goes_on(played: Played) -> None:
    sent = played.results["error"].text
    assert sent.count("KeyError") == 1
    assert "line 2" in sent
    assert "{}" in played.results["next step"].text


def test_code_calls_a_tool_of_an_upstream(played: Played) -> None:
    assert "ok" in played.results["a tool"].text


def test_a_picture_is_sent_as_a_picture(played: Played) -> None:
    [picture] = played.results["picture"].pictures
    assert picture.mime_type == "image/png"
    assert picture.chars > 1_000


def test_changed_files_are_named(played: Played) -> None:
    assert (
        "'a','b'" in plain(played.results["files"].text) or "a, b" in played.results["files"].text
    )


def test_the_items_of_context_have_a_type(played: Played) -> None:
    [schema] = [each for name, each in played.first.tools.items() if name.endswith("run_code")]
    assert schema["properties"]["context"]["items"]["anyOf"]


def test_a_list_of_inputs_arrives_as_a_list(played: Played) -> None:
    assert "['textofa','textofb']" in plain(played.results["inputs"].text)


def test_a_picture_reaches_the_model(played: Played) -> None:
    [picture] = played.results["a picture"].pictures
    assert picture.mime_type == "image/png"
