"""The demo model's training: its batches, and that it goes on as if it had not been interrupted."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from demo.batches import POOL_BATCHES, pool_of_batches
from demo.curriculum import LESSON_SHARE, LESSONS, TASK_WEIGHTS, Curriculum, Lesson
from demo.examples import Example, user
from demo.mixed_precision import ProductsInBfloat16
from demo.network import CANVAS, Network, new_config, new_model
from demo.tasks import TASKS
from demo.tokenizer import VOCAB_SIZE, build_tokenizer
from demo.train import (
    Training,
    check_forward,
    learning_rate_share,
    loss_of,
    main,
    next_pool,
    optimisers,
    train_step,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(0, examples=4000)


@pytest.fixture
def few(monkeypatch):
    """Batches of two blocks, and four batches a pool, so that a step is quick."""
    monkeypatch.setattr("demo.batches.BLOCKS", 2)
    monkeypatch.setattr("demo.batches.POOL_BATCHES", 4)


def pool(tokenizer, number=0, weights=TASK_WEIGHTS, narrow_share=0.5):
    return list(
        pool_of_batches(tokenizer, VOCAB_SIZE, 0, number, weights, narrow_share=narrow_share)
    )


def tensors(batch):
    return [batch.tokens, batch.lengths, batch.block, batch.weights, batch.noisy, batch.noisier]


def test_a_pool_of_batches_is_the_same_each_time_and_another_has_others(tokenizer, few):
    first, again, other = pool(tokenizer), pool(tokenizer), pool(tokenizer, number=1)
    for one, two in zip(first, again, strict=True):
        assert one.tasks == two.tasks
        for a, b in zip(tensors(one), tensors(two), strict=True):
            assert torch.equal(a, b)
    assert [batch.tasks for batch in first] != [batch.tasks for batch in other]


def test_a_training_goes_on_from_its_file_as_if_it_had_not_ended(
    tokenizer, few, tmp_path, monkeypatch
):
    monkeypatch.setattr("demo.batches.BLOCKS", 1)
    monkeypatch.setattr("demo.batches.POOL_BATCHES", 1)

    def trained(steps, training):
        while training.step < steps:
            for batch in next_pool(training, tokenizer, seed=0):
                train_step(training, batch, seed=0)
        return training

    def new(seed):
        torch.manual_seed(seed)
        model = new_model(seed, new_config(layers=("sliding", "full")))
        lessons = [Lesson(2, 0.0, ("greet",)), Lesson(1, 0.0, ("capital",))]
        return Training(model, optimisers(model), Curriculum(lessons))

    whole = trained(3, new(0))
    trained(1, new(0)).save(tmp_path / "state.pt")
    resumed = new(1)
    resumed.load(tmp_path / "state.pt")
    assert resumed.step == 1
    trained(3, resumed)
    assert resumed.curriculum.state == whole.curriculum.state
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_lesson_has_mostly_its_own_tasks_and_beside_them_those_of_earlier_lessons():
    curriculum = Curriculum()
    taught: set[str] = set()
    for lesson in LESSONS:
        # A pool of batches belongs to one lesson.
        assert lesson.most_steps % POOL_BATCHES == 0
        weights = curriculum.weights()
        assert weights.keys() == taught | set(lesson.tasks)
        assert sum(weights.values()) == pytest.approx(1.0)
        own = sum(weights[task] for task in lesson.tasks)
        # A lesson may teach again what an earlier one taught.
        assert own == pytest.approx(LESSON_SHARE if taught - set(lesson.tasks) else 1.0)
        taught |= set(lesson.tasks)
        for _ in range(lesson.most_steps):
            assert curriculum.weights() == weights
            curriculum.add([], [])
            curriculum.advance()
    assert not curriculum.teaches
    assert curriculum.weights().keys() == TASKS.keys()


def test_the_last_lessons_and_what_follows_have_mostly_whole_canvases():
    curriculum = Curriculum()
    shares = []
    while curriculum.teaches:
        shares.append(curriculum.narrow_share)
        curriculum.add([], [])
        curriculum.advance()
    assert shares[0] > 0.5 > shares[-1]
    assert curriculum.narrow_share == shares[-1]


def test_a_lesson_ends_when_the_loss_of_its_own_tasks_is_low():
    curriculum = Curriculum([Lesson(1000, 0.1, ("greet",)), Lesson(1000, 0.1, ("add",))])
    curriculum.add(["greet"], [0.05])
    curriculum.advance()
    assert "add" in curriculum.weights()
    # What was taught before counts no longer, and one good example is not enough after a bad one.
    curriculum.add(["greet", "add", "add"], [0.05, 2.0, 0.05])
    curriculum.advance()
    assert curriculum.teaches
    steps = 0
    while curriculum.teaches:
        curriculum.add(["add", "add"], [0.05, 0.05])
        curriculum.advance()
        steps += 1
    assert 100 < steps < 1000


def test_each_examples_task_is_one_of_its_lesson(tokenizer, few):
    torch.manual_seed(0)
    model = new_model(0, new_config(layers=("sliding", "full")))
    lessons = [Lesson(4, 0.0, ("greet", "add")), Lesson(4, 0.0, ("word_choice",))]
    training = Training(model, optimisers(model), Curriculum(lessons))
    for _ in lessons:
        for batch in next_pool(training, tokenizer, seed=0):
            assert set(batch.tasks) <= training.curriculum.weights().keys()
            training.curriculum.add(batch.tasks, [1.0] * len(batch.tasks))


def test_the_learning_rate_falls_to_zero_behind_the_lessons():
    model = new_model(0, new_config(layers=("sliding",)))
    curriculum = Curriculum([Lesson(1000, 0.0, ("greet",))], mix_steps=1000)
    training = Training(model, [], curriculum)
    shares = []
    while curriculum.remaining > 0:
        shares.append(learning_rate_share(training))
        curriculum.add([], [])
        curriculum.advance()
        training.step += 1
    assert len(shares) == 2000
    assert shares[0] < 0.1
    assert shares[500] == shares[1000] == 1.0
    assert shares[1500] == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(0.001)


def test_the_training_forward_is_that_of_transformers(tokenizer, few):
    check_forward(new_model(0), pool(tokenizer)[0])


@pytest.mark.parametrize(
    ("task", "sign"),
    [("choose", ":"), ("number_facts", ":"), ("conditions", "."), ("small_sums", "▁=")],
)
def test_only_labels_or_results_are_noise_in_some_canvases(tokenizer, few, monkeypatch, task, sign):
    monkeypatch.setattr("demo.batches.SLOTS_SHARE", 1.0)
    for batch in pool(tokenizer, weights={task: 1.0}):
        for row, noisy in enumerate(batch.noisy):
            clean = batch.block[row]
            slots = (clean[:-1] == tokenizer.convert_tokens_to_ids(sign)).nonzero() + 1
            (changed,) = (noisy != clean).nonzero(as_tuple=True)
            assert set(changed.tolist()) <= set(slots.flatten().tolist())


def test_an_edit_is_also_trained_from_the_text_before_it(tokenizer, few, monkeypatch):
    edit = Example([user("Replace")], "red tea " * 20, "", draft="red sun " * 20)
    monkeypatch.setattr("demo.batches.training_example", lambda *_: ("edit", edit))
    monkeypatch.setattr("demo.batches.DRAFT_SHARE", 1.0)
    monkeypatch.setattr("demo.batches.PURE_NOISE_SHARES", (0.0, 0.0))
    batch = pool(tokenizer)[0]
    sun = tokenizer.encode(" sun", add_special_tokens=False)
    # Noise replaces a share of the draft, which is a half at most. The model learns the answer.
    assert (batch.noisy == sun[0]).sum() > len(batch.noisy) * 20 / 2
    assert sun[0] not in batch.block


def test_a_narrow_canvas_has_room_for_the_end_and_none_is_too_wide(tokenizer, few):
    widths = set()
    for batch in [batch for number in range(10) for batch in pool(tokenizer, number)]:
        width = batch.block.shape[1]
        widths.add(width)
        assert width % 16 == 0
        assert width <= CANVAS
        assert batch.noisy.shape == (len(batch.block), width)
    assert min(widths) < CANVAS in widths


def test_products_in_bfloat16_give_nearly_the_same_loss_and_gradients(tokenizer, few):
    model = new_model(0, new_config(layers=("sliding", "full")))
    batch = pool(tokenizer)[0]

    def loss_and_gradients():
        model.zero_grad()
        torch.manual_seed(0)
        loss = sum(loss_of(Network(model), batch)[0].values())
        loss.backward()
        parameters = model.model.decoder.named_parameters()
        return loss.item(), {name: each.grad.clone() for name, each in parameters}

    loss, gradients = loss_and_gradients()
    with ProductsInBfloat16():
        other_loss, others = loss_and_gradients()
    assert other_loss == pytest.approx(loss, rel=2e-3)
    assert other_loss != loss  # so the mode was on
    for name, gradient in gradients.items():
        error = (others[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 0.25, name  # a few gradients are small sums of large parts


@pytest.fixture
def train(tokenizer, few, tmp_path, monkeypatch):
    """Returns a function that trains for some steps with all tasks, by the command."""
    monkeypatch.setattr("demo.batches.POOL_BATCHES", 1)
    monkeypatch.setattr("demo.train.build_tokenizer", lambda _seed: tokenizer)

    def run(steps, *options, state="state"):
        folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / state)]
        arguments = ["--lessons", "0", "--mix-steps", str(steps), *folders, *options]
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        main()
        return json.loads((tmp_path / state / "model" / "progress.json").read_text())["step"]

    return run


def vocabulary(folder):
    return PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()


def test_the_command_goes_on_with_the_vocabulary_that_it_began_with(
    tokenizer, train, tmp_path, monkeypatch
):
    assert train(1) == 1
    assert vocabulary(tmp_path / "out") == tokenizer.get_vocab()
    monkeypatch.delattr("demo.train.build_tokenizer")  # other tasks would give words other ids
    assert train(2) == 2
    assert vocabulary(tmp_path / "out") == tokenizer.get_vocab()


def test_a_training_starts_from_an_unfinished_checkpoint(tokenizer, train, tmp_path, monkeypatch):
    train(2)
    monkeypatch.delattr("demo.train.build_tokenizer")
    monkeypatch.setattr("demo.train.new_model", None)  # no fresh weights are made
    unfinished = tmp_path / "state" / "model"
    assert train(3, "--start", str(unfinished), state="other") == 3
    assert vocabulary(tmp_path / "out") == tokenizer.get_vocab()
