"""Decisions whose answers are known, by a server: how many are right, and how well calibrated."""

import json

import httpx
import pytest
import typer

from app.decision.request import canvases, prepare
from app.prompting.prompt import PromptBuilder
from bench.calibration import BINS, Result, demo_lines, read_file, rows, summary
from demo.decision_tasks import DECISION_TASKS
from demo.network import new_config
from demo.tasks import held_out_bare
from demo.tokenizer import build_tokenizer, encode_example, save_tokenizer
from engine.messages import Ready

LINES = [
    {
        "state": "The words are tea sun.",
        "questions": {
            "tea": {"type": "noul", "instructions": "Is tea one of the words?"},
            "city": {
                "type": "choice",
                "instructions": "What is the capital of France?",
                "criteria": {"Rome": None, "Paris": None},
            },
        },
        "answers": {"tea": True, "city": "Paris"},
    },
    {
        "task": "own",
        "state": "The number is 97.",
        "questions": {
            "3": {"type": "score", "instructions": "How many hold?", "criteria": ["0", "1", "2"]}
        },
        "answers": {"3": 1},
    },
]


def written(folder, *lines):
    file = folder / "decisions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def results(*pairs):
    return [Result(probability, right, 1.0) for probability, right in pairs]


def test_probabilities_that_equal_the_share_of_right_answers_have_no_calibration_error():
    calibrated = summary(results(*4 * [(0.75, True)], *2 * [(0.5, True)], *2 * [(0.5, False)]))
    assert calibrated["ece"] == pytest.approx(4 / 8 * 0.25)
    assert calibrated["right"] == pytest.approx(6 / 8)
    assert summary(results((0.75, True), (0.75, True), (0.75, True), (0.75, False)))["ece"] == 0
    assert summary(results((1.0, False)))["ece"] == 1


def test_a_bin_has_a_tenth_of_the_probabilities_and_the_last_one_has_certainty():
    bins = summary(results((0.95, True), (1.0, False), (0.55, True)))["bins"]
    assert [(each["from"], each["questions"], each["right"]) for each in bins] == [
        (0.5, 1, 1.0),
        ((BINS - 1) / BINS, 2, 0.5),
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(0, examples=4000)


@pytest.fixture(scope="module")
def prompts(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder)
    new_config().save_pretrained(folder)
    return PromptBuilder(str(folder))


@pytest.mark.parametrize("task", DECISION_TASKS)
def test_the_demo_model_is_asked_in_the_words_that_it_was_trained_on(task, tokenizer, prompts):
    limits = Ready("cpu", "float32", 2048, 64, tokenizer.vocab_size, "", read_tokens=961)
    number = list(DECISION_TASKS).index(task)
    lines = list(demo_lines(5))[5 * number : 5 * number + 5]
    for example, line in zip(held_out_bare(task, 5), lines, strict=True):
        request = line.request(line.conversation, line.asked, "state", {})
        asked = canvases(request, prompts, limits)
        (made,) = prepare(request, asked, {-1: []}, prompts, limits)
        (read,) = made.request.decision.reads
        prompt, answer = encode_example(tokenizer, example)
        assert [*made.request.prompt, *read.prompt] == prompt
        pinned = set(range(len(answer))) - {slot.position for slot in read.slots}
        assert {i: read.canvas[i] for i in pinned} == {i: answer[i] for i in pinned}


def test_a_server_is_asked_jointly_and_separately_in_one_step_and_two(demo_server, tmp_path):
    lines = read_file(written(tmp_path, *LINES))
    measured = list(rows(demo_server.http, lines))
    groups = ["predicate", "choice", "own", "all"]
    ways = ["joint, 1 step", "joint, 2 steps", "alone, 1 step", "alone, 2 steps"]
    assert [row["case"] for row in measured] == [f"{g}, {way}" for way in ways for g in groups]
    assert [row["questions"] for row in measured] == 4 * [1, 1, 1, 3]
    for row in measured:
        assert 0 <= row["ece"] <= 1
        assert 0 < row["probability"] <= 1


def test_a_request_that_the_server_refuses_ends_the_measurement_with_its_words(demo_server):
    (line, *_) = demo_lines(1)
    line.model = "another"
    with pytest.raises(typer.BadParameter, match=r"answers 404: .*another"):
        list(rows(demo_server.http, [line]))


def test_a_server_that_cannot_be_reached_is_named():
    with (
        httpx.Client(base_url="http://127.0.0.1:9") as client,
        pytest.raises(typer.BadParameter, match=r"http://127.0.0.1:9 can't be reached"),
    ):
        list(rows(client, list(demo_lines(1))))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answers": {"tea": True}}, "line 2: answers: 'city' is missing"),
        ({"answers": {"tea": 1, "city": "Paris"}}, "answers.tea: 1 is none of True, False"),
        ({"answers": {"tea": True, "city": "Oslo"}}, "answers.city: 'Oslo' is none of 'Rome', 'Pa"),
        ({"questions": {}}, "line 2: questions: "),
        ({"unknown": 1}, "line 2: unknown: "),
    ],
)
def test_a_wrong_line_of_a_file_is_named(change, fault, tmp_path):
    file = written(tmp_path, LINES[1], {**LINES[0], **change})
    with pytest.raises(typer.BadParameter) as refused:
        read_file(file)
    assert fault in str(refused.value)
