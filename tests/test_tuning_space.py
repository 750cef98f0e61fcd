"""The space of a search: read from a file, checked by the settings themselves, and applied to a job."""

import pytest

from bincount import preflight
from bincount.errors import SettingsError
from bincount.problem import Classes
from bincount.settings import DataConfig, ImageConfig, Job, TrainConfig, TuneConfig
from bincount.tuning.space import Range, default_space, find_space, read_space

NAMED = Classes(names=("good", "defective"), ordered=False)
FROM_SCRATCH = TrainConfig(model="small", weights="none")
SMALL = Job(training=FROM_SCRATCH)


def find(folder, text: str, job: Job = SMALL, classes: Classes | None = None):
    """The space that a job searches with this file."""
    path = folder / "space.toml"
    path.write_text(text)
    return find_space(job.replace(tuning=TuneConfig(space=path)), classes)


def refusal(folder, text: str, job: Job = SMALL, classes: Classes | None = None) -> str:
    """What is said about such a file, without its path."""
    with pytest.raises(SettingsError) as refused:
        find(folder, text, job, classes)
    return str(refused.value).replace(f"{folder / 'space.toml'}: ", "").replace(str(folder / "space.toml"), "FILE")


# --- the file ------------------------------------------------------------------------------------------------------


def test_a_file_has_ranges_and_choices_by_section(tmp_path):
    space = find(
        tmp_path,
        """
        [training]
        learning_rate = {low = 1e-4, high = 1e-1, log = true}
        batch_size = [32, 64, 128]
        epochs = {low = 4, high = 12, step = 4}

        [images]
        image_size = {low = 96, high = 224}
        """,
    )

    assert space.parameters == {
        "training.learning_rate": Range(low=1e-4, high=1e-1, log=True),
        "training.batch_size": (32, 64, 128),
        "training.epochs": Range(low=4, high=12, step=4),
        "images.image_size": Range(low=96, high=224),
    }
    assert space.distributions()["images.image_size"].step == 32  # of which sizes are multiples


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate = [0.1, 0.2]", "learning_rate is in no section; write it below [training] or [images]"),
        ("[data]\nlimit = [10, 20]", "[data] limit cannot be searched, only settings of [training] and [images]"),
        ("[training]\nlerning_rate = [0.1, 0.2]", "did you mean learning_rate?"),
        ("[training]\nimage_size = [96, 128]", "is no setting of [training]; it is one of [images]"),
        ("[training]\ndevice = ['cpu', 'cuda']", "device cannot be searched: it says where"),
        ("[training]\nprecision = ['float32', 'bfloat16']", "precision cannot be searched: it is chosen for"),
        ("[training]\nseed = [0, 1]", "seed cannot be searched: a seed is better than another by chance"),
        ("[training]\nmembers = [1, 5]", "members cannot be searched: each network costs"),
        ("[training]\nkeep = ['best', 'last']", "keep cannot be searched: it decides which epoch"),
        ("[training]\ndebug = [true, false]", "debug cannot be searched: it changes no result"),
        ("[training]\nweights = ['none', 'imagenet']", "weights cannot be searched: they belong to a model"),
        ("[training]\nbatch_size = 64", "batch_size takes a range such as {low = 0.3, high = 1.0}, or choices"),
        ("[training]\nbatch_size = [64]", "needs two different choices or more; give a single value to the command"),
        ("[training]\nbatch_size = [64, 64]", "needs two different choices or more"),
        ("[training]\nbatch_size = [1, 64]", "batch_size takes a whole number of at least 2, not 1"),
        ("[training]\nbatch_size = [32.5, 64]", "batch_size takes a whole number of at least 2, not 32.5"),
        ("[training]\nbatch_size = [true, 64]", "batch_size takes a whole number of at least 2, not true"),
        ("[training]\nloss = ['mixed', 'crossentropy']", "not 'crossentropy'; did you mean cross_entropy?"),
        ("[training]\nloss = {low = 0, high = 1}", "loss takes choices in a list, not a range"),
        ("[training]\nflip = {low = 0, high = 1}", "flip takes choices in a list, not a range"),
        ("[training]\ndropout = {low = 0.1, hihg = 0.2}", "dropout has no hihg; did you mean high?"),
        ("[training]\ndropout = {low = 0.1}", "has a range without low or high"),
        ("[training]\ndropout = {low = 'a', high = 0.2}", 'takes a number for low, not "a"'),
        ("[training]\ndropout = {low = 0.1, high = nan}", "takes a number for high, not NaN"),
        (
            "[training]\ndropout = {low = 0.1, high = 1.0}",
            "dropout takes a number of at least 0 and less than 1, not 1.0",
        ),
        ("[training]\ndropout = {low = 0.3, high = 0.2}", "low 0.3, which is not below high 0.2"),
        ("[training]\ndropout = {low = 0.0, high = 0.2, log = true}", "from a low above 0 on"),
        ("[training]\ndropout = {low = 0.1, high = 0.2, log = 1}", "takes true or false for log"),
        ("[training]\ndropout = {low = 0.1, high = 0.5, step = 0.3}", "does not reach high 0.5 from low 0.1 in steps"),
        ("[training]\ndropout = {low = 0.1, high = 0.5, step = 0.0}", "has step 0; write one above 0"),
        ("[training]\nepochs = {low = 1.5, high = 3}", "takes whole numbers for low, high and step"),
        ("[training]\nlearning_rate = {low = 0.0, high = 0.1}", "learning_rate takes a number of more than 0, not 0.0"),
        ("[images]\nimage_size = {low = 100, high = 224}", "image_size takes a whole number"),
        ("[images]\nimage_size = {low = 96, high = 224, step = 16}", "has step 16; write a multiple of 32"),
        ("[images]\nimage_size = {low = 96, high = 224, log = true}", "not for multiples"),
        ("", "FILE has no settings"),
        ("[training", "FILE is not valid TOML"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_remedy(tmp_path, text, words):
    assert words in refusal(tmp_path, text)


def test_all_mistakes_are_named_at_once_with_the_file_the_section_and_the_setting(tmp_path):
    with pytest.raises(SettingsError) as refused:
        find(tmp_path, "[training]\nseed = [0, 1]\nbatch_size = [1, 64]\n[images]\nimage_size = [90, 128]")

    lines = str(refused.value).splitlines()
    assert [line.split(" ")[0:3] for line in lines] == [
        [f"{tmp_path / 'space.toml'}:", section, key]
        for section, key in (("[training]", "seed"), ("[training]", "batch_size"), ("[images]", "image_size"))
    ]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"there is no file .*; correct --space"):
        read_space(tmp_path / "space.toml")


# --- what fits the job ---------------------------------------------------------------------------------------------


def test_an_ordinal_loss_is_searched_for_ordered_classes_only(tmp_path):
    text = "[training]\nloss = ['mixed', 'ordinal']"

    assert find(tmp_path, text).parameters["training.loss"] == ("mixed", "ordinal")
    assert "ordinal, which needs classes with an order" in refusal(tmp_path, text, classes=NAMED)
    named = Job(training=FROM_SCRATCH, data=DataConfig(classes="good,defective"))
    assert "ordinal, which needs classes with an order" in refusal(tmp_path, text, named)


def test_the_model_is_not_searched_with_the_weights_of_one(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.touch()
    text = "[training]\nmodel = ['resnet18', 'resnet34']"

    assert find(tmp_path, text, Job()).parameters
    job = Job(training=TrainConfig(weights=str(weights)))
    assert "model cannot be searched with the weights of one model" in refusal(tmp_path, text, job)
    small = "[training]\nmodel = ['resnet18', 'small']"
    assert "no ImageNet weights; take it out, or add `--weights none`" in refusal(tmp_path, small, Job())


def test_a_frozen_backbone_is_not_searched_with_random_weights(tmp_path):
    text = "[training]\nfreeze_backbone = [true, false]"
    assert find(tmp_path, text, Job()).parameters == {"training.freeze_backbone": (True, False)}
    assert "freeze_backbone has true, and random weights have to be trained; take it out, or" in refusal(tmp_path, text)


# --- the default ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "training",
    [
        TrainConfig(),
        FROM_SCRATCH,
        TrainConfig(
            epochs=3, batch_size=48, learning_rate=0.5, min_crop=0.1, optimizer="sgd", loss="mixed", head="mlp"
        ),
        TrainConfig(learning_rate=1e-5, weight_decay=3.0, model="efficientnet_v2_s", loss="ordinal"),
    ],
)
def test_the_given_settings_lie_in_the_default_space(training):
    job = Job(training=training)
    space = find_space(job)

    for name, value in space.given(job).items():
        values = space.parameters[name]
        assert value in values if isinstance(values, tuple) else values.low <= value <= values.high


def test_the_default_space_has_backbones_for_imagenet_weights_only():
    assert default_space(Job()).parameters["training.model"][:2] == ("resnet18", "resnet34")
    for training in (FROM_SCRATCH, TrainConfig(weights="none"), TrainConfig(model="resnet50")):
        assert "training.model" not in default_space(Job(training=training)).parameters


def test_the_default_space_has_an_ordinal_loss_for_ordered_classes_only():
    assert "ordinal" in default_space(Job()).parameters["training.loss"]
    assert "ordinal" not in default_space(Job(), NAMED).parameters["training.loss"]


# --- applying ------------------------------------------------------------------------------------------------------


def test_values_take_the_place_of_the_jobs_own(tmp_path):
    job = Job(training=TrainConfig(epochs=7, dropout=0.4), images=ImageConfig(image_size=96, resize="crop"))
    space = find(tmp_path, "[training]\ndropout = {low = 0.0, high = 0.5}\n[images]\nimage_size = [64, 96]")

    applied = space.apply(job, {"training.dropout": 0.1, "images.image_size": 64})

    assert applied.training == TrainConfig(epochs=7, dropout=0.1)
    assert applied.images == ImageConfig(image_size=64, resize="crop")
    assert space.given(job) == {"training.dropout": 0.4, "images.image_size": 96}


def test_a_searched_optimizer_brings_its_weight_decay_unless_one_was_given(tmp_path):
    space = find(tmp_path, "[training]\noptimizer = ['adamw', 'sgd']")

    assert space.apply(Job(), {"training.optimizer": "sgd"}).training.weight_decay == 1e-4
    given = Job(training=TrainConfig(weight_decay=0.03))
    assert space.apply(given, {"training.optimizer": "sgd"}).training.weight_decay == 0.03


def test_a_space_is_described_with_its_scales_and_steps(tmp_path):
    lines = ["learning_rate = {low = 1e-4, high = 0.1, log = true}", "batch_size = [32, 64]"]
    lines.append("color_jitter = {low = 0.0, high = 0.4, step = 0.1}")
    space = find(tmp_path, "\n".join(["[training]", *lines]))
    assert space.describe() == {
        "training.learning_rate": "0.0001 to 0.1, log",
        "training.batch_size": "32, 64",
        "training.color_jitter": "0 to 0.4, in steps of 0.1",
    }


def test_mistakes_of_each_kind_are_named_at_once(tmp_path):
    text = "\n".join(
        [
            "learning_rate = {low = 0.1, high = 0.2}",
            "[training]",
            "min_crop = {low = 0.5}",
            "epochs = [0, 3]",
            "seed = [1, 2]",
            'model = ["small", "resnet18"]',
        ]
    )
    job = SMALL.replace(training=TrainConfig())
    lines = refusal(tmp_path, text, job).splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("learning_rate is in no section; write it below [training] or [images]")
    for line, part in zip(
        lines[1:], ("min_crop has a range without", "epochs takes", "seed cannot be", "model has small"), strict=True
    ):
        assert part in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[training]\nmodel = ['resnet18', 'maxvit_t']",
            "[training] model cannot be searched: maxvit_t takes no images of",
        ),
        ("[training]\nmodel = ['resnet18', 'alexnet']\n[images]\nimage_size = {low = 32, high = 96}", "of 32 pixels"),
        (
            "[images]\nimage_size = [64, 96]",
            "[images] image_size cannot be searched: inception_v3 takes no images of 64",
        ),
    ],
)
def test_a_network_is_not_searched_with_images_that_it_does_not_take(tmp_path, text, words):
    job = Job(images=ImageConfig(image_size=128), training=TrainConfig(model="inception_v3", weights="none"))
    with pytest.raises(SettingsError, match=r"give --image-size .* or take it out of the search") as refused:
        preflight.check_searched_networks(job, find(tmp_path, text, job))
    assert words in str(refused.value)


def test_networks_are_searched_with_images_that_each_takes(tmp_path):
    text = "[training]\nmodel = ['resnet18', 'maxvit_t']\n[images]\nimage_size = [224, 448]"
    preflight.check_searched_networks(SMALL, find(tmp_path, text))
    preflight.check_searched_networks(SMALL, find(tmp_path, "[training]\nepochs = [1, 2]"))
