"""The demo model's training: its batches, and that it goes on as if it had not been interrupted."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from demo.batches import POOL_BATCHES, batches
from demo.curriculum import LESSON_SHARE, LESSON_STEPS, LESSONS, task_weights
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
    optimisers,
    train_step,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(0, examples=4000)


@pytest.fixture
def few(monkeypatch):
    """Batches of two blocks of any task, and four batches a pool, so that a step is quick."""
    monkeypatch.setattr("demo.curriculum.LESSONS", ())
    monkeypatch.setattr("demo.batches.LESSON_STEPS", 0)
    monkeypatch.setattr("demo.batches.BLOCKS", 2)
    monkeypatch.setattr("demo.batches.POOL_BATCHES", 4)


def some(data, count):
    return [next(data) for _ in range(count)]


def tensors(batch):
    return [batch.tokens, batch.lengths, batch.block, batch.weights, batch.noisy, batch.noisier]


@pytest.mark.parametrize("start", [1, 4, 6])
def test_batches_are_the_same_from_whatever_step_they_start(tokenizer, few, start):
    whole = some(batches(tokenizer, VOCAB_SIZE, 0), 9)
    later = some(batches(tokenizer, VOCAB_SIZE, 0, start=start), 9 - start)
    for one, other in zip(whole[start:], later, strict=True):
        assert one.tasks == other.tasks
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(a, b)


def test_a_training_goes_on_from_its_file_as_if_it_had_not_ended(
    tokenizer, few, tmp_path, monkeypatch
):
    monkeypatch.setattr("demo.batches.BLOCKS", 1)
    monkeypatch.setattr("demo.batches.NARROW_SHARES", (1.0, 1.0))

    def trained(steps, training):
        data = batches(tokenizer, VOCAB_SIZE, 0, start=training.step)
        while training.step < steps:
            train_step(training, next(data), steps=2, seed=0)
        return training

    def new(seed):
        torch.manual_seed(seed)
        model = new_model(seed, new_config(layers=("sliding", "full")))
        return Training(model, optimisers(model))

    whole = trained(2, new(0))
    trained(1, new(0)).save(tmp_path / "state.pt")
    resumed = new(1)
    resumed.load(tmp_path / "state.pt")
    assert resumed.step == 1
    trained(2, resumed)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_lesson_has_mostly_its_own_tasks_and_beside_them_those_of_earlier_lessons():
    taught: set[str] = set()
    step = 0
    for steps, tasks in LESSONS:
        # A pool of batches belongs to one lesson.
        assert steps % POOL_BATCHES == 0
        for at in (step, step + steps - 1):
            weights = task_weights(at)
            own = sum(weights[task] for task in tasks)
            assert weights.keys() == taught | set(tasks)
            assert sum(weights.values()) == pytest.approx(1.0)
            assert own == pytest.approx(LESSON_SHARE if taught else 1.0)
        assert not taught & set(tasks)
        taught |= set(tasks)
        step += steps
    assert step == LESSON_STEPS
    assert task_weights(step).keys() == TASKS.keys() <= taught


def test_each_examples_task_is_one_of_its_steps(tokenizer, few, monkeypatch):
    lessons = ((4, ("greet", "add")), (4, ("word_choice",)))
    monkeypatch.setattr("demo.curriculum.LESSONS", lessons)
    monkeypatch.setattr("demo.batches.LESSON_STEPS", 8)
    for step, batch in enumerate(some(batches(tokenizer, VOCAB_SIZE, 0), 8)):
        assert set(batch.tasks) <= task_weights(step).keys()


def test_the_learning_rate_falls_to_zero_behind_the_lessons():
    end = LESSON_STEPS + 1000
    assert learning_rate_share(0, end) < 0.1
    assert learning_rate_share(LESSON_STEPS, end) == 1.0
    assert learning_rate_share(LESSON_STEPS + 500, end) == pytest.approx(0.5)
    assert learning_rate_share(end - 1, end) == pytest.approx(0.001)


def test_the_training_forward_is_that_of_transformers(tokenizer, few):
    check_forward(new_model(0), next(batches(tokenizer, VOCAB_SIZE, 0)))


def test_a_decision_is_also_trained_with_all_but_its_labels_known(tokenizer, few, monkeypatch):
    monkeypatch.setattr("demo.curriculum.TASK_WEIGHTS", {"choose": 1.0})
    monkeypatch.setattr("demo.batches.SLOTS_SHARE", 1.0)
    for batch in some(batches(tokenizer, VOCAB_SIZE, 0), 8):
        for row, noisy in enumerate(batch.noisy):
            clean = batch.block[row]
            colons = (clean[:-1] == tokenizer.convert_tokens_to_ids(":")).nonzero() + 1
            (changed,) = (noisy != clean).nonzero(as_tuple=True)
            assert set(changed.tolist()) <= set(colons.flatten().tolist())


def test_an_edit_is_also_trained_from_the_text_before_it(tokenizer, few, monkeypatch):
    edit = Example([user("Replace")], "red tea " * 20, "", draft="red sun " * 20)
    monkeypatch.setattr("demo.batches.training_example", lambda *_: ("edit", edit))
    monkeypatch.setattr("demo.batches.DRAFT_SHARE", 1.0)
    monkeypatch.setattr("demo.batches.PURE_NOISE_SHARES", (0.0, 0.0))
    batch = next(batches(tokenizer, VOCAB_SIZE, 0))
    sun = tokenizer.encode(" sun", add_special_tokens=False)
    # Noise replaces a share of the draft, which is a half at most. The model learns the answer.
    assert (batch.noisy == sun[0]).sum() > len(batch.noisy) * 20 / 2
    assert sun[0] not in batch.block


def test_a_narrow_canvas_has_room_for_the_end_and_none_is_too_wide(tokenizer, few):
    widths = set()
    for batch in some(batches(tokenizer, VOCAB_SIZE, 0), 40):
        width = batch.block.shape[1]
        widths.add(width)
        assert width % 16 == 0
        assert width <= CANVAS
        assert batch.noisy.shape == (len(batch.block), width)
    assert min(widths) < CANVAS in widths


def test_products_in_bfloat16_give_nearly_the_same_loss_and_gradients(tokenizer, few):
    model = new_model(0, new_config(layers=("sliding", "full")))
    batch = next(batches(tokenizer, VOCAB_SIZE, 0))

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


def test_the_command_goes_on_with_the_vocabulary_that_it_began_with(
    tokenizer, few, tmp_path, monkeypatch
):
    def train(steps):
        folders = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
        monkeypatch.setattr("sys.argv", ["train", "--steps", str(steps), *folders])
        main()
        return PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").get_vocab()

    monkeypatch.setattr("demo.train.build_tokenizer", lambda _seed: tokenizer)
    assert train(1) == tokenizer.get_vocab()
    monkeypatch.delattr("demo.train.build_tokenizer")  # other tasks would give words other ids
    assert train(2) == tokenizer.get_vocab()
    assert torch.load(tmp_path / "state" / "state.pt", weights_only=True)["step"] == 2
