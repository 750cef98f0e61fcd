"""Networks with one output a class: a backbone, and a head on its pooled features.

A trained model is a folder of two files that cannot run code: model.safetensors has the weights, model.json says how to
rebuild the network and how to prepare images for it.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bincount.backbones import TIMM
from bincount.errors import SettingsError, WeightsUnavailable
from bincount.files import atomic_write
from bincount.model_settings import TrainConfig
from bincount.training.device import exact_convolutions, is_out_of_memory
from bincount.training.networks import build_backbone, build_head, fetch_weights, fit_tensors
from bincount.training.questions import Questions
from bincount.training.spec import (
    WEIGHTS,
    ModelSpec,
    check_initial_weights,
    check_weights,
    damaged_model,
    read_spec,
    weights_digest,
    write_spec,
)
from bincount.training.verification import Encoded, Verifier
from bincount.training.views import prepare

INFERENCE_BATCH = 128  # pictures
MOST_PICTURES = 512  # of questions that are answered together; what is kept of one, some 50 kB, is in memory meanwhile
COUNTER = "encoder.counter."  # what names of tensors of a counting head begin with, in heads that answer questions


def build(spec: ModelSpec) -> nn.Module:
    """Build the network with random weights: (N, 3, S, S) normalised images -> (N, C + E) logits.

    The first C outputs are the classes, the others the extra names. Several members are a ModuleList. A network that
    answers questions is a verification.Verifier, which takes more than images. Raises SettingsError where the network
    needs a package that is not installed.
    """
    if spec.members > 1:
        return nn.ModuleList(build(network) for network in spec.each_network())
    if spec.task != "counting":
        return Verifier(spec)
    backbone, num_features = build_backbone(spec.model, spec.image_size)
    head = build_head(spec.head, spec.dropout, num_features, len(spec.outputs))
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def load_weights(model: nn.Module, training_config: TrainConfig, image_size: int) -> None:
    """Load initial weights into the backbone of a network that build made, and into its head when they fit.

    From a model that save wrote, the head is loaded too when it has the same outputs, that of a counting model also as
    the counting head of a Verifier; of several members that fit the seed chooses one. The head of any other file is
    ignored. Position embeddings are interpolated to image_size. Raises SettingsError; WeightsUnavailable when the
    weights cannot be read or lack a tensor of the backbone; and ModelDamaged when a saved model is damaged.
    """
    name, weights = training_config.model, training_config.weights
    check_initial_weights(training_config)
    if weights == "none":
        return
    tensors = fetch_weights(name, image_size) if weights == "imagenet" else _read_tensors(Path(weights))
    head, expected = {}, model.backbone.state_dict()
    if any("backbone." in key for key in tensors):
        tensors, head = _backbone_and_head(tensors, training_config.seed, expected)
    tensors = fit_tensors(name, image_size, model.backbone, tensors)
    unfit = [
        key
        for key, tensor in expected.items()
        if not key.endswith("num_batches_tracked") and getattr(tensors.get(key), "shape", None) != tensor.shape
    ]
    if unfit:
        library = "timm" if name.startswith(TIMM) else "torchvision"
        raise WeightsUnavailable(
            f"{weights} does not fit {name}: {len(unfit)} of {len(expected)} tensors are missing or of another shape, "
            f"such as {', '.join(unfit[:3])}; give a file of {name} with {library}'s names"
        )
    if not all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise WeightsUnavailable(f"{weights} holds numbers that are not finite; give another file")
    load_tensors(model.backbone, {key: tensors.get(key, tensor) for key, tensor in expected.items()})
    counter = {key.removeprefix(COUNTER): tensor for key, tensor in head.items() if key.startswith(COUNTER)}
    own_counter = getattr(model, "counter", None)
    for part, given in ((model.head, head), (own_counter, head), (own_counter, counter)):
        if part is not None and _shapes(part.state_dict()) == _shapes(given):
            part.load_state_dict(given)
            break


def _backbone_and_head(
    tensors: dict[str, Tensor], seed: int, expected: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the tensors of a model that save wrote into the two parts of its network, or of one of its members.

    Of several members it is one with the expected tensors, or else, since position embeddings depend on the size of the
    images, one that has them in another shape.
    """
    wanted = _shapes(expected)
    numbers = sorted({int(key.partition(".")[0]) for key in tensors if key[0].isdecimal()})
    shapes = {f"{number}.": _shapes(tensors, f"{number}.backbone.") for number in numbers}
    equal = [prefix for prefix, own in shapes.items() if own == wanted]
    alike = [prefix for prefix, own in shapes.items() if own.keys() == wanted.keys()]
    candidates = equal or alike or list(shapes) or [""]
    prefix = candidates[seed % len(candidates)]
    return tuple(
        {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        for start in (f"{prefix}backbone.", f"{prefix}head.")
    )


def _shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, torch.Size]:
    return {key.removeprefix(prefix): tensor.shape for key, tensor in tensors.items() if key.startswith(prefix)}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.name == WEIGHTS and (path.parent / "model.json").exists():
        check_weights(path.parent, read_spec(path.parent))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsUnavailable(
            f"{path} is not a file of weights ({error}); give `--weights` a .pth or .safetensors file of named tensors"
        ) from error


def probabilities(
    model: nn.Module,
    spec: ModelSpec,
    images: np.ndarray,
    rows: np.ndarray | Questions | None = None,
    on_batch: Callable[[int], object] = lambda num_images: None,
    *,
    with_extra: bool = False,
) -> np.ndarray:
    """Predict the class probabilities of images (N, S, S, 3) uint8: (N, C) float32, each row adding up to 1.

    With rows, of those images only; with Questions, of each question about them. They are the mean over the members,
    and with flip_at_test over each image and its mirror image. on_batch receives the number of images, or questions, of
    each batch that is done. With with_extra they are of all outputs, as spec.outputs names them, for images that need
    not be of one of the classes.
    """
    return mean_softmax(logits(model, spec, images, rows, on_batch, with_extra=with_extra), spec.temperature)


def quantities(model: nn.Module, spec: ModelSpec, images: np.ndarray, rows: Questions) -> np.ndarray:
    """Predict how many of the item of each question are on its picture: the probabilities of 0..Q, (N, Q + 1).

    Raises SettingsError where the network does not tell quantities apart.
    """
    if not spec.quantities:
        raise SettingsError(
            "the model does not say how many of an item are there; train one with `bincount train --task quantity`"
        )
    return mean_softmax(logits(model, spec, images, rows, of_quantities=True), spec.temperature)


def mean_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the mean probabilities (N, C) float32 of logits (N, V, C) of V views of each image."""
    return (torch.from_numpy(logits) / temperature).softmax(dim=2).mean(dim=1).numpy()


@exact_convolutions()
@torch.inference_mode()
def logits(
    model: nn.Module,
    spec: ModelSpec,
    images: np.ndarray,
    rows: np.ndarray | Questions | None = None,
    on_batch: Callable[[int], object] = lambda num_images: None,
    *,
    with_extra: bool = False,
    of_quantities: bool = False,
) -> np.ndarray:
    """Compute the classes' logits for each view of images (N, S, S, 3) uint8: (N, V, C) float32.

    With rows, of those images only, read batch by batch, so that a memory-mapped pack is never loaded whole. A network
    that answers questions needs Questions, and sees a picture once for hundreds of them. V is the number of members,
    doubled with flip_at_test. With with_extra they are of all outputs, as spec.outputs names them; with of_quantities
    they are those of how many of a question's item there are, in place of the classes'. The arithmetic is float32
    whatever the training's was, and the network is left in evaluation mode. When memory runs out, the batches are
    halved. Raises SettingsError for images without questions when the network answers these.
    """
    if spec.task != "counting" and not isinstance(rows, Questions):
        raise SettingsError(
            f"the model answers questions of the task {spec.task}, each about several pictures; choose a model that "
            "was trained with --task counting for single pictures"
        )
    model.eval()
    rows = np.arange(len(images)) if rows is None else rows
    num_outputs = len(spec.outputs if with_extra else spec.classes)
    outputs = slice(num_outputs)
    if of_quantities:
        outputs, num_outputs = slice(num_outputs, None), 1 + spec.quantities
    results = np.empty((len(rows), spec.members * (1 + spec.flip_at_test), num_outputs), np.float32)
    if isinstance(rows, Questions):
        parts = ((part, _answer(model, spec, images, rows[part])) for part in rows.split(MOST_PICTURES))
    else:
        parts = _in_batches(lambda part: _predict(model, spec, images, rows[part]), len(rows))
    for part, of_views in parts:
        # An image that is taken to be of one of the classes has no use for the outputs of the extra names.
        results[part] = torch.stack(of_views, dim=1)[:, :, outputs].cpu().numpy()
        on_batch(len(of_views[0]))
    return results


def _predict(model: nn.Module, spec: ModelSpec, images: np.ndarray, rows: np.ndarray) -> list[Tensor]:
    """Return the outputs (B, C + E) for each view of the images of rows (B,)."""
    views = _read_views(model, spec, images, rows)
    members = zip(model if spec.members > 1 else [model], spec.each_network(), strict=True)
    return [member(view) for member, network in members for view in views[network.input]]


def _answer(model: Verifier, spec: ModelSpec, images: np.ndarray, questions: Questions) -> list[Tensor]:
    """Return the outputs (B, C + Q + 1) of B questions for each view of their pictures, each of which is seen once."""
    rows, places = questions.pictures()

    def encode(part: slice) -> list[Encoded]:
        return [model.encode(view) for view in _read_views(model, spec, images, rows[part])[spec.input]]

    batches = [of_views for _, of_views in _in_batches(encode, len(rows))]
    encoded = [tuple(map(torch.cat, zip(*of_view, strict=True))) for of_view in zip(*batches, strict=True)]
    device = encoded[0][0].device
    places, asked = torch.from_numpy(places).to(device), torch.from_numpy(questions.asked).to(device)

    def answer(part: slice) -> list[Tensor]:
        return [model.answer(view, places[part], asked[part]) for view in encoded]

    batch_size = max(1, INFERENCE_BATCH // places.shape[1])
    batches = [of_views for _, of_views in _in_batches(answer, len(questions), batch_size)]
    return [torch.cat(of_view) for of_view in zip(*batches, strict=True)]


def _in_batches(
    compute: Callable[[slice], list], number: int, batch_size: int = INFERENCE_BATCH
) -> Iterator[tuple[slice, list]]:
    """Yield slices of so many, and what is computed of each; they are halved when memory runs out."""
    start = 0
    while start < number:
        part = slice(start, start + batch_size)
        try:
            computed = compute(part)
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2
            continue
        yield part, computed
        start = part.stop


def _read_views(model: nn.Module, spec: ModelSpec, images: np.ndarray, rows: np.ndarray) -> dict[tuple, list[Tensor]]:
    pixels = torch.from_numpy(np.take(images, rows, axis=0))
    return prepare(pixels.to(next(model.parameters()).device), spec)


def save(folder: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write the two files of a model, each atomically. Raises DiskFull."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as temporary:
        safetensors.torch.save_file(tensors, temporary)
    write_spec(folder, spec.model_copy(update={"weights_sha256": weights_digest(folder)}))


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a network, by the names of its own state_dict. Raises as load_state_dict does.

    Beside them that keeps versions of layers, which a file has not, and MNASNet refuses tensors without its own.
    """
    versioned = OrderedDict(tensors)
    versioned._metadata = model.state_dict()._metadata
    model.load_state_dict(versioned)


def load(folder: Path, device: torch.device | None = None) -> tuple[nn.Module, ModelSpec]:
    """Read a model that save wrote, in evaluation mode on the device, by default the CPU.

    Raises ModelNotFound, and ModelDamaged when the files are damaged or do not fit each other.
    """
    spec = read_spec(folder)
    check_weights(folder, spec)
    model = build(spec)
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        load_tensors(model, tensors)
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        first_lines = " ".join(str(error).split()[:40])
        raise damaged_model(folder / WEIGHTS, f"they do not fit model.json: {first_lines}") from error
    if not all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise damaged_model(folder / WEIGHTS, "some of them are not finite numbers")
    return model.to(device or "cpu", memory_format=torch.channels_last).eval(), spec
