"""From which probability on a change has happened: chosen by a training, and kept with its model."""

import pytest
import torch
from synthetic_questions import IMAGES
from synthetic_training import QUICK

import bincount
from bincount.data import packing, questions, synthetic
from bincount.evaluation.evaluate import evaluate
from bincount.training import limits
from bincount.training.loop import fit
from bincount.training.run_folder import Request, read_request, write_request
from bincount.training.spec import ModelSpec, read_spec, write_spec


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    """Bins that share products, so that of many pairs of photos the items are in other bins too."""
    folder = tmp_path_factory.mktemp("bins")
    synthetic.generate(folder / "source", 200, size=(32, 32), broken=False, num_products=20)
    return bincount.prepare(folder / "source", workspace=folder, image_size=32).snapshot


@pytest.mark.services
@pytest.mark.parametrize("task", ["quantity", "change"])
def test_a_training_keeps_from_which_probability_on_a_change_has_happened(bins, task, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FEWEST", 4)
    frozen = questions.freeze(bins, task)
    pack = packing.pack_snapshot(frozen, IMAGES)
    config = QUICK.model_copy(update={"task": task, "epochs": 1, "flip_at_test": False})
    done = fit(Request(frozen, pack, IMAGES, config, tmp_path / "run", bins=bins))
    limit = read_spec(done.checkpoint).change_limit
    assert 0 <= limit <= 1
    verified = evaluate(frozen, pack, done.checkpoint, tmp_path / "test", "cpu", bins).asked.verified
    assert verified.min_probability == limit
    assert verified.of_item == (task == "quantity")
    monkeypatch.setattr(limits, "FEWEST", 10**6)  # so many that val has too few
    spec = read_spec(done.checkpoint).model_copy(update={"change_limit": None})
    write_spec(done.checkpoint, spec)
    rows = frozen.read().query("split == 'val'")
    limits.keep(done.checkpoint, bins, pack, rows, None, torch.device("cpu"))
    assert read_spec(done.checkpoint).change_limit is None


def test_a_request_takes_the_bins_along_to_the_process_that_trains(bins, tmp_path):
    frozen = questions.freeze(bins, "change")
    pack = packing.pack_snapshot(frozen, IMAGES)
    for about in (bins, None):
        request = Request(frozen, pack, IMAGES, QUICK, tmp_path.resolve(), bins=about)
        assert read_request(write_request(request)).bins == about


@pytest.mark.parametrize("limit", [0.0, 0.25, None])
def test_a_limit_is_read_as_it_was_written_and_without_one_model_json_is_that_of_earlier_releases(tmp_path, limit):
    training = QUICK.model_copy(update={"task": "change"})
    spec = ModelSpec.make(IMAGES, training, questions.CHANGES).model_copy(update={"change_limit": limit})
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path).change_limit == limit
    assert ("change_limit" in (tmp_path / "model.json").read_text()) == (limit is not None)
