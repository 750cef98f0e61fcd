"""Networks with one output a class: a backbone, and a head on its pooled features.

A trained model is a folder of two files that cannot run code: model.safetensors has the weights, model.json says how to
rebuild the network and how to prepare images for it.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
from bincount.training.verification import Verifier
from bincount.training.views import prepare

INFERENCE_BATCH = 128  # pictures
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
    that answers questions needs Questions, and sees each picture of a batch of them once. V is the number of members,
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
    device = next(model.parameters()).device
    rows = np.arange(len(images)) if rows is None else rows
    num_outputs = len(spec.outputs if with_extra else spec.classes)
    outputs = slice(num_outputs)
    if of_quantities:
        outputs, num_outputs = slice(num_outputs, None), 1 + spec.quantities
    results = [np.empty((0, spec.members * (1 + spec.flip_at_test), num_outputs), np.float32)]
    start, batch_size = 0, INFERENCE_BATCH
    if isinstance(rows, Questions):
        batch_size = max(1, INFERENCE_BATCH // rows.rows.shape[1])
    while start < len(rows):
        batch, question = rows[start : start + batch_size], ()
        pictures = batch
        if isinstance(batch, Questions):
            pictures, places = batch.pictures()
            question = [torch.from_numpy(each).to(device) for each in (places, batch.asked)]
        pixels = torch.from_numpy(np.take(images, pictures, axis=0))
        try:
            batch_logits = _apply_to_views(model, spec, pixels.to(device), outputs, *question)
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2
            continue
        results.append(batch_logits.cpu().numpy())
        start += len(batch)
        on_batch(len(batch))
    return np.concatenate(results)


def _apply_to_views(model: nn.Module, spec: ModelSpec, images: Tensor, outputs: slice, *question: Tensor) -> Tensor:
    views = prepare(images, spec)
    members = zip(model if spec.members > 1 else [model], spec.each_network(), strict=True)
    # An image that is taken to be of one of the classes has no use for the outputs of the extra names, which are last.
    results = [member(view, *question)[:, outputs] for member, network in members for view in views[network.input]]
    return torch.stack(results, dim=1)


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
