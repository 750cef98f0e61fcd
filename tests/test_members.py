"""Members of one model that differ: in network, image size and other settings, listed in a file of settings."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from synthetic_training import QUICK, dataset

from bincount import forms, preflight, settings_file
from bincount.data import packing, pictures
from bincount.errors import ModelDamaged, SettingsError
from bincount.evaluation.attention import grad_cam
from bincount.evaluation.evaluate import evaluate
from bincount.evaluation.predictor import Model
from bincount.files import read_sealed, write_sealed
from bincount.problem import Classes
from bincount.serving import folding
from bincount.serving.engine import Engine
from bincount.settings import ImageConfig, Job, Member, TrainConfig
from bincount.tracking.packaging import packages_of
from bincount.training import device, ensemble
from bincount.training import model as models
from bincount.training.calibration import fit_temperature
from bincount.training.crossfit import CrossFit
from bincount.training.loop import fit
from bincount.training.run_folder import Request, folder_of, networks_of, read_history
from bincount.training.spec import ModelSpec, read_spec
from bincount.training.views import prepare, scale_down
from bincount.workspace import Workspace

LARGE = ImageConfig(image_size=64)
MIXED = QUICK.model_copy(
    update={
        "epochs": 2,
        "members": (
            Member(image_size=32, learning_rate=1e-2, normalization="symmetric"),
            Member(model="mobilenet_v3_small", epochs=1, head="mlp"),
        ),
    }
)
FILE = """
[images]
image_size = 128
[training]
members = [{model = "mobilenet_v2", image_size = 96}, {model = "resnet18", learning_rate = 0.001}]
"""


def described(training: TrainConfig = MIXED, images: ImageConfig = LARGE, **changes) -> ModelSpec:
    specs = [ModelSpec.make(own, member, Classes.parse("0..2")) for own, member in training.networks(images)]
    return ModelSpec.average(specs, images.image_size).model_copy(update=changes)


def saved(folder, spec: ModelSpec):
    torch.manual_seed(0)
    models.save(folder, models.build(spec), spec)
    return folder


def squares(count: int = 3, side: int = 64) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of two members that differ, the trainings that it is made of, and their data."""
    root = tmp_path_factory.mktemp("members")
    snapshot, _ = dataset(root / "datasets" / "drawn", train=24, val=12, test=12)
    pack, members = packing.pack_snapshot(snapshot, LARGE), []
    for images, training in MIXED.networks(LARGE):
        own = packing.pack_snapshot(snapshot, images)
        folder = folder_of(Workspace(root=root), snapshot, images, training)
        members.append(fit(Request(snapshot, own, images, training, folder)))
    return snapshot, pack, members, ensemble.combine(members, snapshot, pack, root / "runs" / "mixed", "cpu")


# Settings


def test_a_file_lists_members_and_what_they_leave_out_is_as_in_the_sections(tmp_path):
    (tmp_path / "mixed.toml").write_text(FILE)
    job = settings_file.read(tmp_path / "mixed.toml")
    (first, one), (second, other) = job.training.networks(job.images)
    assert (first.image_size, one.model, one.learning_rate, one.seed) == (96, "mobilenet_v2", 3e-3, 0)
    assert (second.image_size, other.model, other.learning_rate, other.seed) == (128, "resnet18", 1e-3, 1)
    assert job.training.describe_networks() == "mobilenet_v2 + resnet18"
    assert other == TrainConfig(model="resnet18", learning_rate=1e-3, seed=1)  # trained alone, it can be a member later


def test_the_file_that_the_command_prints_says_the_same(tmp_path):
    (tmp_path / "mixed.toml").write_text(FILE)
    job = settings_file.read(tmp_path / "mixed.toml")
    text = settings_file.write(job)
    (tmp_path / "printed.toml").write_text(text)
    assert settings_file.read(tmp_path / "printed.toml") == job
    assert '  {image_size = 96, model = "mobilenet_v2"},\n' in text
    assert TrainConfig.model_validate_json(job.training.model_dump_json()) == job.training


@pytest.mark.parametrize(
    ("members", "mistake"),
    [
        (
            '[{}, {model = "resnet19"}]',
            "members, member 2: model: there is no network 'resnet19', perhaps resnet18",
        ),
        ("[{image_size = 100}, {}]", "members, member 1: image_size takes a whole number in steps of 32 .*, not 100"),
        ("[{learning_rate = -1.0}, {}]", "members, member 1: learning_rate takes a number of more than 0, not -1.0"),
        ("[{}, {}, {seeds = 1}]", "members, member 3 has no setting seeds of its own; did you mean seed"),
        ("[{}, 3]", "members, member 2 takes settings such as .*, not 3"),
        ("[{}]", "members takes a whole number, or a list of at least 2 members, not of 1"),
        ("0", "members takes a whole number of at least 1 and at most 20, not 0"),
    ],
)
def test_a_mistake_in_the_list_names_the_member_and_the_setting(tmp_path, members, mistake):
    (tmp_path / "wrong.toml").write_text(f"[training]\nmembers = {members}\n")
    with pytest.raises(SettingsError, match=mistake) as caught:
        settings_file.read(tmp_path / "wrong.toml")
    assert len(str(caught.value).splitlines()) == 1


def test_the_images_of_a_member_are_no_larger_than_those_of_the_model(tmp_path):
    training = TrainConfig(weights="none", members=({"image_size": 96}, {"image_size": 256}))
    job = Job(images=ImageConfig(image_size=128), training=training, workspace=tmp_path)
    with pytest.raises(SettingsError, match=r"member 2 has images of 256 pixels .* give --image-size 256"):
        preflight.check_training(job, Classes.parse("0..5"))


def test_the_weights_of_every_member_are_checked_before_anything_starts(tmp_path):
    training = TrainConfig(members=({"model": "resnet18"}, {"model": "small"}))
    with pytest.raises(SettingsError, match="no ImageNet weights for the model small"):
        preflight.check_training(Job(training=training, workspace=tmp_path), Classes.parse("0..5"))


def test_a_number_of_members_is_written_and_named_as_ever():
    assert json.loads(QUICK.model_dump_json())["members"] == 1
    three = QUICK.model_copy(update={"members": 3})
    assert (three.describe_networks(), three.params()) == ("3 x small", three.model_dump())
    assert three.repeat_members(2).members == 6


def test_the_networks_of_folds_are_those_of_the_list_for_each_fold():
    whole = MIXED.repeat_members(3)
    assert (whole.num_members, whole.describe_networks()) == (6, "3 x small + 3 x mobilenet_v3_small")
    assert whole.params()["model"] == "3 x small + 3 x mobilenet_v3_small"


def test_a_member_trains_in_the_folder_of_its_settings_alone(tmp_path):
    snapshot, _ = dataset(tmp_path, train=3, val=3)
    mixed = device.resolve(TrainConfig(model="small", members=({"image_size": 32}, {"model": "efficientnet_v2_l"})))
    alone = device.resolve(TrainConfig(model="efficientnet_v2_l", seed=1))
    images, training = networks_of(LARGE, mixed)[1]
    assert training.normalization == "symmetric"
    workspace = Workspace(root=tmp_path)
    assert folder_of(workspace, snapshot, images, training) == folder_of(workspace, snapshot, LARGE, alone)


def test_one_precision_serves_all_members(monkeypatch):
    monkeypatch.setattr(device, "_has_bfloat16", lambda _: True)
    pair = TrainConfig(device="cpu", members=({"model": "resnet18"}, {"model": "mobilenet_v2"}))
    assert device.resolve(pair).precision == "float32"
    assert device.resolve(pair.model_copy(update={"members": pair.members[:1] * 2})).precision == "bfloat16"


def test_the_form_shows_a_number_or_a_list_whose_members_have_the_bounds_of_the_settings():
    (closed,) = [part for part in forms.OthersOfTrain.__metadata__ if isinstance(part, forms.Closed)]
    field = closed._section("training")["anyOf"][1]["properties"]["members"]
    number, listed = field["anyOf"]
    assert (number["minimum"], number["maximum"], listed["minItems"]) == (1, 20, 2)
    assert listed["items"]["properties"]["epochs"]["anyOf"][0] == {"minimum": 1, "type": "integer"}
    assert "$ref" not in json.dumps(field)


def test_a_member_of_each_fold_is_trained_on_images_of_its_own_size(tmp_path):
    snapshot, _ = dataset(tmp_path, train=3, val=3)
    cross_fit = CrossFit(Workspace(root=tmp_path), snapshot, LARGE, MIXED, num_folds=2)
    found = [(fold.number, images.image_size, own.model) for fold, images, own, _ in cross_fit.networks()]
    assert found == [(number, *each) for number in (1, 2) for each in ((32, "small"), (64, "mobilenet_v3_small"))]
    assert len({folder for *_, folder in cross_fit.networks()}) == 4
    job = Job(images=LARGE, training=MIXED)
    with pytest.raises(SettingsError, match="11 folds of 2 members are 22 networks"):
        preflight.check_folds(job, 11, "--cross-fit")


# The model


def test_a_member_has_what_fits_its_own_images_and_normalisation():
    images, spec = torch.from_numpy(squares()), described(flip_at_test=True)
    views = prepare(images, spec)
    assert [network.input for network in spec.each_network()] == [(32, "symmetric"), (64, "imagenet")]
    small, large = views[32, "symmetric"], views[64, "imagenet"]
    assert (small[0].shape, large[0].shape) == ((3, 3, 32, 32), (3, 3, 64, 64))
    assert torch.equal(small[1], small[0].flip(3))
    plain = spec.each_network()[1]
    assert torch.equal(large[0], prepare(images, plain)[plain.input][0])


def test_what_is_scaled_down_is_as_if_it_had_been_decoded_at_that_size():
    from PIL import Image

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((320, 240))
    large, small = (pictures.decode(photo, ImageConfig(image_size=side)) for side in (128, 96))
    scaled = scale_down(torch.from_numpy(large.copy()).permute(2, 0, 1)[None], 96)[0].permute(1, 2, 0)
    assert np.abs(scaled.numpy().astype(int) - small).mean() < 2  # of 255


def test_the_model_predicts_the_mean_over_members_and_the_service_likewise(tmp_path, monkeypatch):
    monkeypatch.setattr(folding, "PIXELS_AT_ONCE", 4 * 64 * 64)  # so that there are several parts
    spec = described(flip_at_test=True, center_crop=0.9)
    network, spec = models.load(saved(tmp_path, spec))
    images = squares(5)
    logits = models.logits(network, spec, images, with_extra=True)
    small = scale_down(torch.from_numpy(squares(5)).permute(0, 3, 1, 2), 64)
    assert logits.shape == (5, 4, 3)
    for number, (member, own) in enumerate(zip(network, spec.each_network(), strict=True)):
        views = prepare(small.permute(0, 2, 3, 1), spec)[own.input]
        with torch.no_grad():
            alone = [member(view).numpy() for view in views]
        np.testing.assert_allclose(logits[:, 2 * number : 2 * number + 2], np.stack(alone, 1), atol=1e-5)
    engine = Engine.load(tmp_path, "cpu")
    assert engine.folded is not None
    np.testing.assert_allclose(engine.logits(images), logits, atol=1e-4)


def test_its_attention_covers_the_picture_as_it_was_decoded():
    spec = described(flip_at_test=True)
    heat = grad_cam(models.build(spec).eval(), spec, squares(2))
    assert heat.shape == (2, 64, 64)
    assert np.isfinite(heat).all()
    assert heat.max(axis=(1, 2)) == pytest.approx([1, 1])


def test_members_that_are_alike_are_written_as_releases_before_wrote_them(tmp_path):
    alike = described(QUICK.model_copy(update={"members": 2}))
    assert (alike.networks, alike.members) == ((), 2)
    content = read_sealed(saved(tmp_path, alike) / "model.json")
    assert "networks" not in content
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == set(models.build(alike).state_dict())
    assert read_spec(tmp_path) == alike.model_copy(update={"weights_sha256": content["weights_sha256"]})


@pytest.mark.parametrize(
    ("change", "mistake"),
    [({"members": 3}, "2 networks are described of 3 members"), ({"image_size": 32}, "larger images than the model")],
)
def test_a_description_that_contradicts_itself_is_refused(tmp_path, change, mistake):
    path = saved(tmp_path, described()) / "model.json"
    content = {name: value for name, value in read_sealed(path).items() if name != "xxh3"}
    write_sealed(path, content | change)
    with pytest.raises(ModelDamaged, match=mistake):
        read_spec(tmp_path)


def test_weights_of_a_member_with_the_same_network_start_a_training(tmp_path):
    saved(tmp_path, described())
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for number, (images, training) in enumerate(MIXED.networks(LARGE)):
        network = models.build(ModelSpec.make(images, training, Classes.parse("0..2")))
        models.load_weights(network, training.start_all_from(str(tmp_path / "model.safetensors")), images.image_size)
        assert all(torch.equal(tensor, tensors[f"{number}.{key}"]) for key, tensor in network.state_dict().items())


def test_a_warm_start_takes_the_place_of_all_weights():
    several = TrainConfig(members=({"weights": "none"}, {}))
    assert {member.weights for member in several.start_all_from("/kept.safetensors").each_member()} == {
        "/kept.safetensors"
    }


# Trainings


def test_the_members_are_trainings_of_their_own_sizes(trained):
    _, _, members, mean = trained
    assert [read_spec(member.checkpoint).image_size for member in members] == [32, 64]
    assert mean.member_folders == tuple(member.folder.name for member in members)
    assert (mean.epochs, len(read_history(mean.folder))) == (2, 2)
    spec = read_spec(mean.checkpoint)
    assert (spec.image_size, spec.describe_networks()) == (64, "small + mobilenet_v3_small")


def test_scores_and_calibration_are_those_of_what_is_served(trained):
    snapshot, pack, _, mean = trained
    engine, network = Engine.load(mean.checkpoint, "cpu"), models.load(mean.checkpoint)
    rows = snapshot.labelled()
    for split in ("val", "test"):
        of_split = rows[rows["split"] == split]
        labels = of_split["label"].to_numpy(np.int64)
        decoded = [pictures.decode(snapshot.dataset / path, engine.spec.images) for path in of_split["path"]]
        served = models.mean_softmax(engine.logits(np.stack(decoded))[..., :3], engine.spec.temperature)
        if split == "val":
            assert (served.argmax(1) == labels).mean() == pytest.approx(mean.val_accuracy)
            logits = models.logits(*network, np.stack(decoded))
            assert engine.spec.temperature == pytest.approx(fit_temperature(logits, labels))
        else:
            evaluation = evaluate(snapshot, pack, mean.checkpoint, mean.folder / "evaluation", "cpu")
            kept = evaluation.predictions[["p_0", "p_1", "p_2"]].to_numpy()
            np.testing.assert_allclose(served, kept, atol=1e-4)


def test_python_predicts_with_it_and_names_it(trained):
    snapshot, _, _, mean = trained
    model = Model.load(mean.checkpoint, "cpu")
    paths = [snapshot.dataset / path for path in snapshot.labelled()["path"][:3]]
    assert len(model.predict(paths)) == 3
    assert "small + mobilenet_v3_small, 64 pixels" in repr(model)


def test_a_model_needs_timm_wherever_among_its_members_a_network_of_timm_is():
    spec = described()
    first, second = spec.networks
    mixed = spec.model_copy(update={"networks": (first, second.model_copy(update={"model": "timm/test_vit"}))})
    assert "timm" in packages_of(mixed)
    assert "timm" not in packages_of(spec)


def test_a_service_loads_a_model_of_which_a_later_member_is_timm_s(tmp_path):
    pytest.importorskip("timm")
    members = (Member(), Member(model="timm/test_vit"))
    spec = described(QUICK.model_copy(update={"weights": "none", "members": members}))
    engine = Engine.load(saved(tmp_path, spec), "cpu")
    expected = models.logits(*models.load(tmp_path), squares())
    np.testing.assert_allclose(engine.logits(squares()), expected, atol=1e-5)


def test_the_folder_of_a_mean_follows_from_what_the_members_weights_files_hold(tmp_path):
    (tmp_path / "some.pth").write_bytes(b"before")
    training = QUICK.model_copy(update={"members": (Member(weights=str(tmp_path / "some.pth")), Member())})
    before = Workspace(root=tmp_path).run("5" * 64, LARGE, training)
    assert Workspace(root=tmp_path).run("5" * 64, LARGE, training) == before
    (tmp_path / "some.pth").write_bytes(b"after")
    assert Workspace(root=tmp_path).run("5" * 64, LARGE, training) != before
