"""Networks that answer questions about several pictures, and their trainings."""

import copy
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from synthetic_questions import CHANGES, IMAGES, NO_YES, dataset, write
from synthetic_training import QUICK
from synthetic_training import dataset as counting_dataset
from test_train import Cramped, StopAfter, assert_alike

from bincount.errors import DatasetError, SettingsError
from bincount.evaluation.evaluate import predict_test
from bincount.problem import Classes
from bincount.settings import ImageConfig, LaunchConfig, TrainConfig
from bincount.training import ensemble, losses, reader
from bincount.training import model as models
from bincount.training.device import choose_arithmetic
from bincount.training.distributed import World
from bincount.training.launch import train_in_subprocess
from bincount.training.loop import Stopped, fit
from bincount.training.model import build, load, load_weights, probabilities, save
from bincount.training.questions import MOST_ASKED, NOT_KNOWN, Questions
from bincount.training.reader import QuestionBatch, QuestionReader, locate
from bincount.training.run_folder import Request, Trained, read_history
from bincount.training.schedule import Schedule
from bincount.training.spec import ModelSpec
from bincount.training.trainer import Trainer
from bincount.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ("object", "quantity", "change")
# A picture, and up to four others that it is compared with; the second question has two of these.
PLACES = np.array([[0, 1, 2, 3, 4], [5, 6, 7, -1, -1]])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A snapshot of questions and its pack, by task."""
    return {task: dataset(tmp_path_factory.mktemp(task), task, test=6) for task in TASKS}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> dict[str, Trained]:
    return {task: fit(Request(*data[task], IMAGES, quick(task), tmp_path_factory.mktemp(task))) for task in TASKS}


def quick(task: str, **changes) -> TrainConfig:
    return QUICK.model_copy(update={"task": task, "epochs": 2, "batch_size": 8, **changes})


def spec(task: str, **training) -> ModelSpec:
    settings = TrainConfig(**{"task": task, "model": "small", "weights": "none", **training})
    return ModelSpec.make(IMAGES, settings, CHANGES if task == "change" else NO_YES)


def network(task: str, **training) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(spec(task, **training)).eval()


def pictures(number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), np.uint8)


def answer(task: str, places: np.ndarray, asked: tuple[int, ...] = (0, 0), **training) -> np.ndarray:
    """Return the probabilities of questions about eight pictures."""
    return probabilities(
        network(task, **training), spec(task, **training), pictures(8), Questions(places, asked_(asked))
    )


def asked_(numbers) -> np.ndarray:
    return np.array(numbers, np.int64)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("small", 128),
        ("resnet18", 512),
        ("mobilenet_v2", 1280),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
        ("densenet121", 1024),
        ("vgg11", 512),
        ("swin_t", 768),
        ("vit_b_32", 768),
    ],
)
def test_every_kind_of_backbone_answers_from_its_feature_map(model, channels):
    with torch.device("meta"):  # without memory for the weights
        asking = build(spec("object", model=model).model_copy(update={"image_size": 64})).eval()
        places, asked = torch.from_numpy(PLACES).to("meta"), torch.zeros(2, dtype=torch.long)
        assert asking(torch.zeros(8, 3, 64, 64), places, asked).shape == (2, 2 + 1 + MOST_ASKED)
    assert asking.head.encoder.project[1].in_channels == channels


@pytest.mark.parametrize("task", ["object", "quantity"])
def test_the_order_of_references_changes_no_answer(task):
    shuffled = PLACES[:, [0, 3, 1, 4, 2]]
    np.testing.assert_allclose(answer(task, shuffled), answer(task, PLACES), atol=1e-6)


@pytest.mark.parametrize("task", ["object", "quantity"])
def test_references_that_are_missing_count_for_nothing(task):
    [alone] = answer(task, PLACES[1:, :3], (0,))
    np.testing.assert_allclose(answer(task, PLACES)[1], alone, atol=1e-6)
    [other] = answer(task, np.array([[5, 6, 4]]), (0,))
    assert not np.allclose(other, alone, atol=1e-6)


def test_a_question_of_quantity_depends_on_the_quantity_and_others_do_not():
    same = np.repeat(PLACES[:1], 2, axis=0)
    for task, depends in (("object", False), ("quantity", True)):
        first, second = answer(task, same, (1, 3))
        assert np.allclose(first, second, atol=1e-6) != depends
    assert np.isfinite(answer("quantity", PLACES, (0, 999))).all()


def test_an_answer_follows_from_the_distribution_of_how_many_there_are():
    pixels, same = pictures(8), np.repeat(PLACES[:1], 2, axis=0)
    shares = models.quantities(network("object"), spec("object"), pixels, Questions(PLACES, asked_((0, 0))))
    assert shares.shape == (2, 1 + MOST_ASKED)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    plain = {"flip_at_test": False}  # a mean over views is none of odds
    np.testing.assert_allclose(
        answer("object", PLACES, **plain)[:, 0],
        models.quantities(network("object"), spec("object", **plain), pixels, Questions(PLACES, asked_((0, 0))))[:, 0],
        atol=1e-5,
    )
    [of_two] = models.quantities(
        network("quantity"), spec("quantity", **plain), pixels, Questions(PLACES[:1], asked_((0,)))
    )
    _, yes = answer("quantity", same, (1, 2), **plain)[:, 1]
    assert yes == pytest.approx(of_two[2], abs=1e-5)  # before a training has learned how often each quantity is asked


def test_models_of_earlier_releases_which_knew_no_quantities_still_answer(tmp_path):
    for task in ("object", "quantity"):
        earlier = spec(task).model_copy(update={"quantities": 0})
        save(tmp_path / task, build(earlier), earlier)
        assert "quantities" not in json.loads((tmp_path / task / "model.json").read_text())
        loaded, described = load(tmp_path / task)
        asking = Questions(PLACES, asked_((1, 2)))
        assert probabilities(loaded, described, pictures(8), asking).shape == (2, 2)
        with pytest.raises(SettingsError, match=r"does not say how many.*--task quantity"):
            models.quantities(loaded, described, pictures(8), asking)


@pytest.mark.parametrize("task", TASKS)
def test_a_step_trains_every_parameter_else_several_processes_would_wait_for_those_that_are_left_out(task):
    asking = build(spec(task)).train()
    places = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = asking(pixels, places, torch.tensor([1, 2, 0, 30]))
    assert outputs.isfinite().all()
    outputs.square().sum().backward()
    assert [name for name, parameter in asking.named_parameters() if parameter.grad is None] == []


def test_pictures_swapped_give_the_mirrored_distribution_of_the_change():
    places = np.array([[0, 1], [2, 3], [4, 4]])
    forth, back = answer("change", places, (0, 0, 0)), answer("change", places[:, ::-1].copy(), (0, 0, 0))
    np.testing.assert_allclose(forth, back[:, ::-1], atol=1e-6)
    assert not np.allclose(forth[0], back[0], atol=1e-4)
    assert forth[2][0] == pytest.approx(forth[2][2], abs=1e-6)  # nothing has changed between a picture and itself


def test_each_picture_is_seen_once_and_batches_get_smaller_when_memory_runs_out(monkeypatch):
    asking_network, seen = network("object"), []
    encode, answer, room = asking_network.encode, asking_network.answer, {"encode": 128, "answer": 128}

    def cramped(name, compute, *inputs):
        number = len(inputs[-1])
        if number > room[name]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append((name, number))
        return compute(*inputs)

    asking = Questions(np.random.default_rng(1).integers(0, 12, (60, 4)), np.zeros(60, np.int64))
    expected = probabilities(asking_network, spec("object"), pictures(12), asking)
    monkeypatch.setattr(asking_network, "encode", partial(cramped, "encode", encode))
    monkeypatch.setattr(asking_network, "answer", partial(cramped, "answer", answer))

    def check(*counts):
        seen.clear()
        np.testing.assert_allclose(
            probabilities(asking_network, spec("object"), pictures(12), asking), expected, atol=1e-6
        )
        assert seen[:: 1 + spec("object").flip_at_test] == [*counts]

    check(("encode", 12), ("answer", 32), ("answer", 28))
    room |= {"encode": 8, "answer": 16}
    check(("encode", 8), ("encode", 4), *[("answer", 16)] * 3, ("answer", 12))


def test_questions_are_answered_in_parts_of_few_pictures_those_with_the_same_references_together(monkeypatch):
    references = np.repeat(np.arange(30).reshape(10, 3), 6, axis=0)  # of ten items with six questions each
    shuffled = np.random.default_rng(0).permutation(60)
    rows = np.column_stack([30 + np.arange(60), references])[shuffled]
    asking = Questions(rows, np.zeros(60, np.int64))
    parts = asking.split(most_pictures=20)
    assert sorted(np.concatenate(parts)) == list(range(60))
    assert max(len(np.unique(rows[part])) for part in parts) <= 20
    assert sum(len(np.unique(rows[part])) for part in parts) < 60 + 2 * 30
    assert [len(part) for part in asking.split(most_pictures=1)] == [1] * 60
    assert Questions(rows[:0], np.zeros(0, np.int64)).split(most_pictures=20) == []

    whole = answer("object", rows % 8, (0,) * 60)
    monkeypatch.setattr(models, "MOST_PICTURES", 3)
    np.testing.assert_allclose(answer("object", rows % 8, (0,) * 60), whole, atol=1e-6)


def test_a_network_of_questions_refuses_single_pictures_with_the_remedy():
    with pytest.raises(SettingsError, match=r"answers questions of the task object.*--task counting"):
        probabilities(network("object"), spec("object"), pictures(3))


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_model_answers_the_same(trained, data, task, tmp_path):
    loaded, described = load(trained[task].checkpoint)
    assert described.task == task
    save(tmp_path, loaded, described)
    again = load(tmp_path)
    snapshot, pack = data[task]
    asking = locate(snapshot.labelled(), pack, task)
    one, other = (probabilities(*each, pack.images, asking) for each in ((loaded, described), again))
    assert np.array_equal(one, other)
    assert one.shape == (len(asking), len(described.classes))


def test_a_model_that_counts_is_described_as_before(tmp_path):
    counting = ModelSpec.make(IMAGES, TrainConfig(model="small", weights="none"), Classes.parse("0..5"))
    save(tmp_path, build(counting), counting)
    assert not {"task", "counts"} & set(json.loads((tmp_path / "model.json").read_text()))
    assert load(tmp_path)[1].task == "counting"


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_counting_model_gives_its_backbone_and_its_head(tmp_path, head):
    settings = TrainConfig(model="small", weights="none", head=head)
    counting = ModelSpec.make(IMAGES, settings, Classes.parse("0..5"), ("6", "7"))
    torch.manual_seed(1)
    known = build(counting)
    save(tmp_path, known, counting)
    starting = {"weights": str(tmp_path / "model.safetensors")}
    asking = network("quantity", **starting)
    assert (spec("quantity", **starting).head, spec("quantity", **starting).counts) == (head, 8)
    load_weights(asking, TrainConfig(task="quantity", model="small", **starting), 32)
    assert same(asking.backbone, known.backbone)
    assert same(asking.counter, known.head)


def test_a_model_of_questions_gives_all_to_its_own_kind_and_what_fits_to_another(tmp_path):
    counting = ModelSpec.make(IMAGES, TrainConfig(model="small", weights="none"), Classes.parse("0..5"))
    (tmp_path / "counting").mkdir()
    save(tmp_path / "counting", build(counting), counting)
    first = {"weights": str(tmp_path / "counting" / "model.safetensors")}
    asking = network("object", **first)
    load_weights(asking, TrainConfig(task="object", model="small", **first), 32)
    save(tmp_path, asking, spec("object", **first))
    starting = {"weights": str(tmp_path / "model.safetensors")}
    for task, gives_all in (("object", True), ("change", False)):
        other = build(spec(task, **starting))
        load_weights(other, TrainConfig(task=task, model="small", **starting), 32)
        assert same(other.backbone, asking.backbone)
        assert same(other.counter, asking.counter)
        assert (not gives_all) or same(other.head, asking.head)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_ends_as_the_unbroken_one(data, trained, tmp_path, task):
    for steps in (1, 3):  # in both epochs
        with pytest.raises(Stopped):
            fit(Request(*data[task], IMAGES, quick(task), tmp_path), stop=StopAfter(steps))
    assert Trained.read(tmp_path) is None
    assert_alike(fit(Request(*data[task], IMAGES, quick(task), tmp_path)), trained[task])


@pytest.mark.services
def test_the_small_network_learns_whether_an_item_is_there(tmp_path):
    questions = dataset(tmp_path, "object", train=300, val=100)
    done = fit(Request(*questions, IMAGES, quick("object", epochs=12, batch_size=16), tmp_path / "run"))
    assert done.val_accuracy > 0.9


@pytest.mark.services
def test_the_small_network_learns_how_many_of_an_item_are_there(tmp_path):
    questions = dataset(tmp_path, "quantity", train=300, val=100)
    done = fit(Request(*questions, IMAGES, quick("quantity", epochs=12, batch_size=16), tmp_path / "run"))
    assert done.val_accuracy > 0.7


def test_a_question_of_which_nobody_knows_how_many_there_are_is_learned_from_by_its_answer_alone():
    logits, held = torch.zeros(3, 4), torch.tensor([2, NOT_KNOWN, 9])  # 9 are taken for the largest
    loss = losses.of_quantities(logits, held)
    assert loss.tolist() == pytest.approx([np.log(4), 0, np.log(4)])


@pytest.mark.services
def test_the_small_network_learns_what_has_changed(tmp_path):
    questions = dataset(tmp_path, "change", train=150, val=60)
    done = fit(Request(*questions, IMAGES, quick("change", epochs=8, batch_size=16), tmp_path / "run"))
    assert done.val_accuracy > 0.8
    assert "val_rmse" in read_history(done.folder)[-1]


@pytest.mark.parametrize("task", TASKS)
def test_the_test_is_predicted_from_all_references(data, trained, tmp_path, task):
    snapshot, pack = data[task]
    predictions = predict_test(snapshot, pack, trained[task].checkpoint, tmp_path)
    test = snapshot.labelled().query("split == 'test'")
    assert predictions["image_id"].tolist() == test["image_id"].tolist()
    names = [f"p_{name}" for name in snapshot.classes.names]
    np.testing.assert_allclose(predictions[names].sum(axis=1), 1, atol=1e-5)


class Plain(torch.nn.Module):
    """Answers by the mean over a question's pictures, without norms, which would see parts of a batch."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2 + 1 + MOST_ASKED)

    def forward(self, pixels, places, asked):
        return self.answer(self.encode(pixels), places, asked)

    def encode(self, pixels):
        return (self.head(self.backbone(pixels)),)

    def answer(self, encoded, places, asked):
        is_there = (places >= 0)[:, :, None]
        return (encoded[0][places.clamp_min(0)] * is_there).sum(dim=1) + asked[:, None]


class CrampedPlain(Cramped):
    def forward(self, pixels, *question):
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.network(pixels, *question)


def test_a_batch_too_large_for_memory_is_accumulated_in_parts(data, tmp_path, monkeypatch, caplog):
    plain, ends = Plain().to(memory_format=torch.channels_last), {}
    config = quick("quantity", epochs=1, learning_rate=1e-4)
    for name, room in (("roomy", 99), ("cramped", 9)):
        monkeypatch.setattr(models, "build", lambda spec: copy.deepcopy(plain))
        monkeypatch.setattr(World, "data_parallel", lambda self, model, room=room: CrampedPlain(model, room))
        done = fit(Request(*data["quantity"], IMAGES, config, tmp_path / name))
        ends[name] = safetensors.torch.load_file(done.checkpoint / "model.safetensors")["head.weight"]
    torch.testing.assert_close(ends["roomy"], ends["cramped"])
    assert "from here on each step accumulates the gradients of its 8 images in 4 parts" in caplog.text


@pytest.mark.services
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_to_the_weights_of_one(data, tmp_path, task):
    config = quick(task, dropout=0.0, optimizer="sgd", learning_rate=0.005)
    alone = fit(Request(*data[task], IMAGES, config, tmp_path / "alone"))
    two = LaunchConfig(nproc_per_node=2)
    together = train_in_subprocess(Request(*data[task], IMAGES, config, tmp_path / "together"), launch=two)
    curves = [pd.DataFrame(read_history(each.folder))[["train_loss", "val_loss"]] for each in (alone, together)]
    np.testing.assert_allclose(*curves, rtol=1e-2)


def test_batches_of_questions_are_not_compiled_since_each_has_another_number_of_pictures():
    settings = TrainConfig(task="object", device="cuda", precision="bfloat16")
    assert not choose_arithmetic(settings, num_steps=10_000).compiled


# --- batches ----------------------------------------------------------------------------------------------------------

MANY = Questions(np.arange(72).reshape(8, 9).astype(np.int64), asked_(range(8)))
MANY.rows[0, 3:] = -1


ALONE = World()


def read(world: World = ALONE, first_step: int = 0, batches=((0, 1, 2, 3), (4, 5, 6, 7))) -> list[QuestionBatch]:
    pack = np.arange(72, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return list(QuestionReader(pack, MANY, world, seed=0).batches(np.array(batches), first_step))


def rows_of(batch: QuestionBatch) -> list[list[int]]:
    """The rows of each question's pictures in the pack, which are the pictures' values."""
    return [[int(batch.pictures[place, 0, 0, 0]) for place in places if place >= 0] for places in batch.places]


def test_a_step_has_the_picture_and_at_most_three_references_of_each_question():
    for number, batch in enumerate(read()):
        assert batch.asked.tolist() == [4 * number, 4 * number + 1, 4 * number + 2, 4 * number + 3]
        for question, rows in zip(batch.asked.tolist(), rows_of(batch), strict=True):
            assert rows[0] == MANY.rows[question, 0]
            assert set(rows) <= set(MANY.rows[question])
            assert len(set(rows)) == len(rows) == (3 if question == 0 else 1 + reader.MOST_REFERENCES)


def test_a_step_has_how_many_of_the_item_each_question_has_where_that_is_known(data):
    pack = np.zeros((72, 2, 2, 3), np.uint8)
    batches = np.array([[3, 0, 5]])
    known = Questions(MANY.rows, MANY.asked, 10 * MANY.asked)
    [batch] = QuestionReader(pack, known, ALONE, seed=0).batches(batches, 0)
    assert batch.held.tolist() == [30, 0, 50]
    [batch] = QuestionReader(pack, MANY, ALONE, seed=0).batches(batches, 0)
    assert set(batch.held.tolist()) == {NOT_KNOWN}
    snapshot, pack = data["quantity"]
    rows = snapshot.labelled()
    assert locate(rows, pack, "quantity").held.tolist() == rows["held"].tolist()
    assert set(locate(rows.drop(columns="held"), pack, "quantity").held) == {NOT_KNOWN}


def test_the_references_of_a_step_follow_from_its_number():
    _, second = read(first_step=5)
    [resumed] = read(first_step=6, batches=((4, 5, 6, 7),))
    assert rows_of(resumed) == rows_of(second)
    [other] = read(first_step=7, batches=((4, 5, 6, 7),))
    assert rows_of(other) != rows_of(second)


def test_processes_share_the_questions_of_a_batch():
    whole = [rows_of(batch) for batch in read()]
    shards = [[rows_of(batch) for batch in read(World(rank=rank, size=2))] for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert batch[0::2] == shards[0][number]
        assert batch[1::2] == shards[1][number]


def sharing(batch_size: int) -> tuple[Questions, Schedule]:
    """32 questions about four items with five references each, and the course of a training on them."""
    item = np.arange(32) % 4
    rows = np.column_stack([20 + np.arange(32) // 2, 5 * item[:, None] + np.arange(5)])
    config = TrainConfig(task="object", batch_size=batch_size)
    asking = Questions(rows, asked_([0] * 32))
    return asking, Schedule(config, np.arange(32) % 2, np.ones(2), 2, asking.by_references())


def test_questions_with_the_same_references_come_side_by_side_in_a_random_order():
    asking, schedule = sharing(batch_size=16)
    orders = [schedule.batches(epoch) for epoch in (0, 1)]
    assert not np.array_equal(*orders)
    for batches in orders:
        assert sorted(batches.flatten()) == list(range(32))
        for batch in batches:
            units = asking.rows[batch, 1].reshape(4, 4)  # a unit is a column
            assert (units == units[0]).all()
    _, odd = sharing(batch_size=9)  # which has units of one
    assert len(np.unique(odd.batches(0))) == 27


def test_a_picture_is_there_once_for_all_questions_of_a_unit_with_one_view():
    asking, schedule = sharing(batch_size=16)
    pack = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    batches = schedule.batches(0)
    shared, apart = (
        next(QuestionReader(pack, asking, ALONE, 0, unit_size).batches(batches, 0)) for unit_size in (4, 1)
    )
    assert len(apart.pictures) == 16 * 4
    assert rows_of(shared) == rows_of(apart)
    for unit in range(4):
        seen = shared.places[unit::4]
        assert len(seen[:, 1:].unique()) == reader.MOST_REFERENCES
        assert len({tuple(sorted(each)) for each in seen[:, 1:].tolist()}) == 1
    of_units = [{row for question in rows_of(shared)[unit::4] for row in question} for unit in range(4)]
    assert len(shared.pictures) == sum(map(len, of_units)) < 16 * 4
    assert len(shared.views.unique()) == len(shared.views) == len(shared.pictures)


def test_processes_share_whole_units_so_that_they_see_what_one_process_sees():
    asking, schedule = sharing(batch_size=16)
    pack = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    whole, *shards = (
        next(QuestionReader(pack, asking, world, 0, schedule.unit_size).batches(schedule.batches(0), 0))
        for world in (ALONE, World(rank=0, size=2), World(rank=1, size=2))
    )
    assert sum(len(shard.pictures) for shard in shards) == len(whole.pictures)
    assert sorted(torch.cat([shard.views for shard in shards]).tolist()) == sorted(whole.views.tolist())
    for rank, shard in enumerate(shards):
        assert rows_of(shard) == rows_of(whole)[rank::2]


def test_pictures_that_questions_share_are_kept_once():
    rows, places = Questions(np.array([[7, 3, 9], [7, 9, -1]]), asked_((0, 0))).pictures()
    assert rows.tolist() == [3, 7, 9]
    assert places.tolist() == [[1, 0, 2], [1, 2, -1]]


def test_references_are_found_in_lists_of_python_and_of_arrow(data):
    snapshot, pack = data["object"]
    rows = snapshot.labelled()
    lists = [list(each) for each in rows["references"]]
    arrows = pd.array(lists, dtype=pd.ArrowDtype(pa.list_(pa.string())))
    one, other = (locate(rows.assign(references=each), pack, "object") for each in (lists, arrows))
    assert np.array_equal(one.rows, other.rows)
    digests = [digest.decode() for digest in pack.digests.to_pylist()]
    for row, sha256, references in zip(one.rows, rows["sha256"], lists, strict=True):
        assert [digests[place] for place in row if place >= 0] == [sha256, *references]


@pytest.mark.parametrize(("task", "together"), [("change", True), ("object", False)])
def test_the_two_pictures_of_a_change_are_mirrored_together_and_others_are_not(tmp_path, task, together):
    labels = np.zeros(64, np.int64)
    config = quick(task, batch_size=64)
    trainer = Trainer(
        network(task), spec(task), Schedule(config, labels, np.ones(2)), choose_arithmetic(config, 1), World()
    )
    places = torch.arange(128).view(64, 2)
    numbers = torch.zeros(64, dtype=torch.long)
    batch = QuestionBatch(torch.zeros(128, 32, 32, 3, dtype=torch.uint8), places, numbers, numbers, places.flatten())
    views = trainer._augment(batch, 64).views
    alike = views.mirrored.view(64, 2)[:, 0] == views.mirrored.view(64, 2)[:, 1]
    assert bool(alike.all()) == together
    assert 10 < views.mirrored.sum() < 118
    assert not torch.equal(views.left[0::2], views.left[1::2])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_snapshot_and_a_task_that_do_not_fit_are_refused_with_the_remedy(data, tmp_path):
    counting = counting_dataset(tmp_path, train=12, val=6, test=3)
    with pytest.raises(SettingsError, match="the snapshot holds questions; say by --task which"):
        fit(Request(*data["object"], IMAGES, quick("counting"), tmp_path / "run"))
    with pytest.raises(SettingsError, match="--task change is answered by -K to K items"):
        fit(Request(*data["object"], IMAGES, quick("change"), tmp_path / "run"))
    with pytest.raises(SettingsError, match="--task object is answered by no or yes, and the snapshot has 3 classes"):
        fit(Request(*counting, IMAGES, quick("object"), tmp_path / "run"))
    with pytest.raises(SettingsError, match="has no column asked or references"):
        locate(counting[0].labelled(), counting[1], "object")


@pytest.mark.parametrize(("task", "numbers"), [("object", 0), ("change", 2)])
def test_a_question_with_too_few_or_too_many_references_is_refused(data, tmp_path, task, numbers):
    snapshot, pack = data[task]
    rows = snapshot.read()
    rows["references"] = [list(rows["sha256"][:numbers])] * len(rows)
    broken = write(rows, snapshot.classes, tmp_path)
    with pytest.raises(DatasetError, match=f"a question of the task {task} needs"):
        fit(Request(broken, pack, IMAGES, quick(task), tmp_path / "run"))


def test_several_networks_are_for_counting_alone(trained, data, tmp_path):
    with pytest.raises(SettingsError, match="--task object is one network; leave out --members"):
        quick("object", members=2).networks(ImageConfig())
    with pytest.raises(SettingsError, match="networks of the task object are not averaged"):
        ensemble.combine([trained["object"]] * 2, *data["object"], tmp_path)


def test_trainings_that_count_keep_the_folders_that_earlier_releases_gave_them():
    workspace = Workspace(root=Path("w"))
    assert workspace.run("abc", ImageConfig(), TrainConfig()).name == "abc-00b16d2ecdaf"
    small = TrainConfig(model="small", weights="none", device="cpu", members=2)
    assert workspace.run("abc", ImageConfig(image_size=64), small, decoder=2).name == "abc-e1cbd504adbb"
    assert workspace.run("abc", ImageConfig(), TrainConfig(task="object")).name != "abc-00b16d2ecdaf"


def test_the_log_says_that_questions_are_trained_on(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bincount")
    fit(Request(*data["object"], IMAGES, quick("object", epochs=1), tmp_path))
    assert "training small on 16 questions about images of 32 pixels, 8 for val" in caplog.text
