"""The curve of accuracy against steps: its area, its settings, and questions from a file."""

import json
import math

import pytest
import typer
from transformers import AutoTokenizer

from bench.curve import Point, area
from bench.quality import COLUMNS, LIMITS, draw, groups, predicted, rows, sides
from bench.questions import Line, file_questions, read_file
from demo.evaluate import questions
from demo.tasks import TASKS
from engine.config import DEMO_MODEL_PATH


def curve(*points):
    """Returns the points of a curve from pairs of tokens a step and accuracy in percent."""
    return [Point(1, accuracy / 100, 1.0, tokens) for tokens, accuracy in points]


def test_the_area_of_a_curve_without_loss_is_that_under_it():
    assert area(curve((2.0, 80)), best=0.8) == pytest.approx(160)
    assert area(curve((2.0, 80), (5.0, 80)), best=0.8) == pytest.approx(5 * 80)
    # The order of the points, and a worse one at the same place, change nothing.
    assert area(curve((5.0, 80), (2.0, 10), (2.0, 80)), best=0.8) == pytest.approx(5 * 80)


def test_lost_accuracy_weighs_by_its_share_of_the_best_one():
    weight = math.exp(-3 * (1 - 77 / 80))
    expected = 1.0 * 80 + (3.0 - 1.0) * (80 + 77 * weight) / 2
    assert area(curve((1.0, 80), (3.0, 77)), best=0.8) == pytest.approx(expected)
    # A better competitor makes the same curve worth less, but not its slowest point.
    assert area(curve((1.0, 80), (3.0, 77)), best=0.9) < expected
    assert area(curve((1.0, 80)), best=0.9) == pytest.approx(80)


def test_points_that_lose_more_than_five_percentage_points_do_not_count():
    assert area(curve((1.0, 80), (9.0, 74.9)), best=0.8) == pytest.approx(80)
    assert area(curve((1.0, 80), (9.0, 75)), best=0.8) > 80


def test_a_curve_that_is_always_wrong_has_no_area():
    assert area(curve((1.0, 0), (4.0, 0)), best=0.0) == 0


def test_settings_change_the_worker_or_the_sampler_of_a_second_side():
    released, changed = sides("demo", ["early_end=true", "entropy_bound=0.2"])
    assert (released.name, changed.name) == ("released", "early_end=true, entropy_bound=0.2")
    assert (released.config.early_end, changed.config.early_end) == (False, True)
    assert (released.sampling.entropy_bound, changed.sampling.entropy_bound) == (None, 0.2)
    assert len(sides("demo", [])) == 1
    assert sides("demo", ["quality=fast"])[1].config.quality == "fast"


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("early_end", "must be NAME=VALUE"),
        ("entropy_bound=low", "'low' is no number"),
        ("earlyend=true", "earlyend: Extra inputs are not permitted; known: temperature"),
        ("quality=best", "quality: Input should be 'exact', 'balanced' or 'fast'"),
        ("max_active=0", "max_active: Input should be greater than or equal to 1"),
        ("top_p=9", "top_p: 9.0 is out of range"),
        ("model=/no/such/folder", "model '/no/such/folder': there is no such folder"),
    ],
)
def test_a_wrong_setting_is_named(setting, fault):
    with pytest.raises(typer.BadParameter, match=fault):
        sides("demo", [setting])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("hello", "line 2: Invalid JSON"),
        ('{"prompt": "a"}', "needs either answer or pattern"),
        ('{"prompt": "a", "answer": "b", "pattern": "b"}', "needs either answer or pattern"),
        ('{"answer": "b"}', "needs either prompt or messages"),
        ('{"prompt": "a", "pattern": "("}', "pattern is no regular expression"),
        ('{"prompt": "a", "answer": "b", "x": 1}', "line 2: x: Extra inputs"),
        ('{"task": "all", "prompt": "a", "answer": "b"}', "line 2: task: 'all' means all tasks"),
        ('{"prompt": 1, "answer": "b"}', "line 2: prompt: Input should be a valid string"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(tmp_path, line, fault):
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(typer.BadParameter, match=fault):
        read_file(file)


def test_a_file_without_lines_is_refused(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("\n")
    with pytest.raises(typer.BadParameter, match="has no line"):
        read_file(file)


def test_an_answer_has_the_room_that_the_context_leaves_and_a_longer_prompt_is_named():
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)

    def asked(context_length):
        lines = [Line(task="own", prompt="hello", answer="b")]
        options = {"prompts": None, "max_tokens": 64, "ends": frozenset()}
        return dict(file_questions(lines, tokenizer, context_length=context_length, **options))

    (question,) = asked(1000)["own"]
    size = len(question.prompt)
    assert question.room == 64
    assert asked(size + 5)["own"][0].room == 5
    with pytest.raises(typer.BadParameter, match=f"own: a prompt has {size} tokens, but"):
        asked(size)


def test_an_answer_is_compared_without_its_thought_and_the_space_around_it():
    exact = Line(prompt="a", answer=" 42\n")
    assert exact.is_right("<|channel>thought\n41?<channel|>42 ")
    assert not exact.is_right("42.")
    pattern = Line(prompt="a", pattern=r"#### 18$")
    assert pattern.is_right("9 * 2 = 18\n#### 18\n")
    assert not pattern.is_right("#### 180")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Rows of two sides, from a file with an answer that is right and one that can't be."""
    file = tmp_path_factory.mktemp("tasks") / "own.jsonl"
    lines = [
        {"task": "greet", "prompt": "hello", "answer": "Hello! How can I help you?"},
        {"task": "greet", "messages": [{"role": "user", "content": "hello"}], "pattern": "^Hello!"},
        {"prompt": "hello", "answer": "Goodbye."},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    compared = sides("demo", ["confidence_threshold=0"])
    return list(rows(compared, read_file(file), None, max_tokens=64))


def test_predicted_answers_have_a_curve_of_their_own_on_the_questions_that_have_one(tmp_path):
    file, numbers = tmp_path / "own.jsonl", ", ".join(map(str, range(1, 21)))
    lines = [
        {"prompt": "Count to 20", "answer": numbers, "prediction": numbers},
        {"task": "greet", "prompt": "hello", "answer": "Hello! How can I help you?"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    compared = predicted(sides("demo", []))
    measured = list(rows(compared, read_file(file), None, max_tokens=64))
    assert [row["case"] for row in measured] == [
        f"{task}, {side}" for task in ("own", "all") for side in ("released", "released, predicted")
    ]
    plain, with_prediction = measured[:2]
    assert plain["exact_match"] == with_prediction["exact_match"] == 1
    assert with_prediction["steps_a_block"] < plain["steps_a_block"]


def test_questions_without_any_prediction_are_refused():
    lines = [Line(task="own", prompt="hello", answer="b")]
    with pytest.raises(typer.BadParameter, match="no question has a prediction"):
        list(rows(predicted(sides("demo", [])), lines, None, max_tokens=8))


def test_an_edit_of_the_demo_model_has_a_prediction():
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    (question,) = questions("edit", tokenizer, 1)
    assert question.prediction is not None
    (question,) = questions("greet", tokenizer, 1)
    assert question.prediction is None


def test_the_demo_models_tasks_are_counted_by_group_and_those_of_a_file_only_together():
    counted = groups(list(TASKS), None)
    assert [*counted] == ["easy", "hard", "decisions", "all"]
    assert counted["all"] == [*TASKS] == [*counted["easy"], *counted["hard"], *counted["decisions"]]
    assert groups(["edit"], None) == {"all": ["edit"]}
    lines = [Line(task="edit", prompt="hello", answer="b")]
    assert groups(list(TASKS), lines) == {"all": [*TASKS]}


def test_each_task_of_a_file_has_a_row_for_each_side_with_its_whole_curve(measured):
    cases = [row["case"] for row in measured]
    assert cases == [
        f"{task}, {side}"
        for task in ("greet", "own", "all")
        for side in ("released", "confidence_threshold=0")
    ]
    for row in measured:
        assert set(COLUMNS) < set(row)
        limits = [point["limit"] for point in row["curve"]]
        assert limits == [*LIMITS, 48]
        assert row["curve"][0]["steps_a_block"] == 1
        assert row["steps_a_block"] == row["curve"][-1]["steps_a_block"]
    by_case = {row["case"]: row for row in measured}
    assert by_case["greet, released"]["exact_match"] == 1
    assert by_case["own, released"]["exact_match"] == 0
    assert by_case["all, released"]["exact_match"] == pytest.approx(2 / 3)


def test_a_setting_that_needs_more_steps_has_a_smaller_area(measured):
    areas = {row["case"]: row["aup"] for row in measured}
    # With this setting no block is ever done before its last step.
    assert areas["greet, released"] > 0
    steps = {row["case"]: row["steps_a_block"] for row in measured}
    assert steps["greet, confidence_threshold=0"] == 48 > steps["greet, released"]
    assert areas["own, released"] == 0
    assert areas["all, released"] == pytest.approx(areas["greet, released"] / 2)


def test_a_model_that_cannot_be_loaded_is_named_before_anything_is_measured():
    with pytest.raises(typer.BadParameter, match="model '/no/such/folder': there is no such"):
        sides("/no/such/folder", [])


def test_tasks_whose_names_have_commas_have_panels_of_their_own(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda _figure: None)
    point = {"steps_a_block": 1.0, "accuracy": 1.0}
    tasks = ["sums, small", "sums, large"]
    rows = [{"case": task, "task": task, "setting": "released", "curve": [point]} for task in tasks]
    draw("A title", rows, tmp_path / "plot.png")
    figure = pyplot.gcf()
    monkeypatch.undo()
    pyplot.close(figure)
    assert [panel.get_title() for panel in figure.axes] == tasks


def test_the_curves_are_drawn_into_a_file(measured, tmp_path):
    pytest.importorskip("matplotlib")
    draw("A title", measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_tokenizer_keeps_markers_of_a_thought():
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    text = "<|channel>thought\nI count.<channel|>1, 2"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
