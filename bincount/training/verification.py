"""Networks that answer questions about a picture with the help of others: one backbone for all, and a small head.

The backbone turns each picture into a feature map. Its cells, some 7 x 7, are projected to vectors that can be compared
from picture to picture; a pooled vector alone would not tell which item of a bin is meant.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bincount.training.networks import build_backbone, build_head, num_channels, with_map
from bincount.training.questions import MOST_ASKED
from bincount.training.spec import ModelSpec

WIDTH = 128  # of the vectors of cells
HEADS = 4  # of the comparison, each of its share of a vector
HIDDEN_UNITS = 128
MATCHES = 16  # ways in which a cell may match another picture
CELLS_SHARE = 4  # a piece fills about this part of a picture's cells, where its density is about 1
MOST_CELLS = 12  # on a side; finer maps are averaged

Encoded = tuple[Tensor, Tensor, Tensor]  # of M pictures, as Encoder returns it


class Verifier(nn.Module):
    """A backbone and a head, which answer questions about pictures.

    Pictures are normalised, (M, 3, S, S). Question b of B is about the pictures at places[b], (P,) int64: first the one
    that is asked about, then its references, -1 for none. asked (B,) int64 is the quantity. Returns the logits of the
    answers, (B, C), and where the spec has quantities, behind them those of 0..quantities of the item: (B, C + Q + 1).
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.backbone, num_features = build_backbone(spec.model, spec.image_size)
        encoder = Encoder(spec, num_channels(self.backbone, spec.image_size), num_features)
        kind = ChangeHead if spec.task == "change" else ItemHead if spec.quantities else ReferencesHead
        self.head = kind(spec, encoder)

    @property
    def counter(self) -> nn.Module | None:
        """The counting head, where the network has one."""
        return self.head.encoder.counter

    def forward(self, pictures: Tensor, places: Tensor, asked: Tensor) -> Tensor:
        return self.answer(self.encode(pictures), places, asked)

    def encode(self, pictures: Tensor) -> Encoded:
        """Return what the answers take of pictures: nearly all of the work, the same for all questions about them."""
        return self.head.encoder(*with_map(self.backbone, pictures))

    def answer(self, encoded: Encoded, places: Tensor, asked: Tensor) -> Tensor:
        """Return the logits of answers about pictures that encode was given."""
        return self.head(encoded, places, asked)


class Encoder(nn.Module):
    """What a head knows of a picture: its cells, and a vector of the whole.

    The vector has the probabilities that a counting model gives its classes, where the weights are one's.
    """

    def __init__(self, spec: ModelSpec, num_channels: int, num_features: int):
        super().__init__()
        # Centred: what all cells have in common would make them look alike.
        self.project = nn.Sequential(nn.BatchNorm2d(num_channels), nn.Conv2d(num_channels, WIDTH, 1))
        self.summarize = nn.Linear(num_features, WIDTH)
        self.counter = build_head(spec.head, spec.dropout, num_features, spec.counts) if spec.counts else None
        self.width = WIDTH + spec.counts

    def forward(self, features: Tensor, cells: Tensor) -> Encoded:
        """Return (M, L, WIDTH) cells, (M, width) vectors and (M, L) saliences of features (M, F) and maps (M, C, H, W).

        The salience of a cell, 0 to 1, says how far it is from what most cells look like: low for the walls of a bin.
        """
        if (step := -(-max(cells.shape[2:]) // MOST_CELLS)) > 1:
            cells = functional.avg_pool2d(cells, step, ceil_mode=True)
        projected = self.project(cells).flatten(2).transpose(1, 2)
        # Each head's share of a vector has the same length everywhere, so that the product of two is their similarity.
        shares = functional.layer_norm(projected.unflatten(2, (HEADS, -1)), (WIDTH // HEADS,))
        distance = 3 * projected.square().mean(dim=2)  # 1 on average in a new network
        vectors = [functional.relu(self.summarize(features))]
        if self.counter is not None:
            vectors.append(self.counter(features).softmax(dim=1))
        return shares.flatten(2), torch.cat(vectors, dim=1), distance / (1 + distance)


class Comparison(nn.Module):
    """Compares the cells of one picture with those of another: (B, L, WIDTH) and (B, K, WIDTH) -> (B, width).

    Each cell attends to the cells of the other picture by their similarity (the scaled dot product of Vaswani et al.,
    Attention Is All You Need, NeurIPS 2017), and is seen beside what it finds there and how similar that is. The most
    and the mean over the cells are kept: the most says that there is such a cell, the mean how many there are.
    """

    width = 2 * HIDDEN_UNITS

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * WIDTH + HEADS, HIDDEN_UNITS), nn.ReLU(inplace=True))

    def forward(self, cells: Tensor, others: Tensor) -> Tensor:
        queries, keys = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (cells, others))
        similarity = queries @ keys.transpose(2, 3) / math.sqrt(WIDTH // HEADS)  # (B, HEADS, L, K)
        found = (similarity.softmax(dim=3) @ keys).transpose(1, 2).flatten(2)  # (B, L, WIDTH)
        most_similar = similarity.amax(dim=3).transpose(1, 2)  # (B, L, HEADS)
        compared = self.layers(torch.cat([cells, found, cells * found, most_similar], dim=2))
        return torch.cat([compared.amax(dim=1), compared.mean(dim=1)], dim=1)


class ItemHead(nn.Module):
    """Says how many of an item are on a picture, given other pictures that show it, and answers questions from that.

    Each cell of the picture is compared with all references at once: what it finds on them, how similar that is, in how
    many places, and on how many of them it matches something. So a cell that shows what the references have in common
    differs from one that shows what one of them holds beside it. Each cell then gives a part of a piece, and the sum
    over the picture is the expected quantity, as where objects of any kind are counted by the density that an example
    of them gives rise to (Ranjan et al., Learning To Count Everything, CVPR 2021). It and the pooled cells give the
    logits of 0, 1, 2, …

    Whether the item is there is answered by the probability of all quantities but 0. Whether there are so many, by the
    log odds of that quantity, and a number for each quantity: questions with yes and no are equally frequent, however
    frequent the quantity is.
    """

    def __init__(self, spec: ModelSpec, encoder: Encoder):
        super().__init__()
        self.encoder, self.task = encoder, spec.task
        self.match = nn.Linear(HEADS, MATCHES)
        self.compare = nn.Sequential(
            nn.Linear(3 * WIDTH + 2 * HEADS + MATCHES + 1, HIDDEN_UNITS), nn.ReLU(inplace=True)
        )
        self.density = nn.Linear(HIDDEN_UNITS, 1)
        nn.init.constant_(self.density.bias, math.log(math.expm1(1 / CELLS_SHARE)))  # one piece at first, of all cells
        self.sharpness = nn.Parameter(torch.zeros(1))
        self.quantities = _answer(spec, 2 * HIDDEN_UNITS + 1 + encoder.width, 1 + spec.quantities)
        if spec.task == "quantity":  # several processes train no parameter that the answers leave out
            self.balance = nn.Parameter(torch.zeros(1 + spec.quantities))

    def forward(self, encoded: Encoded, places: Tensor, asked: Tensor) -> Tensor:
        cells, vectors, salience = encoded
        picture, references = places[:, 0], places[:, 1:]
        compared = self.compare(self._see(cells, salience[:, :, None], picture, references))  # (B, L, HIDDEN_UNITS)
        parts = functional.softplus(self.density(compared).squeeze(2)) * CELLS_SHARE / cells.shape[1]  # (B, L)
        expected = parts.sum(dim=1, keepdim=True)
        pooled = [compared.amax(dim=1), compared.mean(dim=1), expected, vectors[picture]]
        logits = self.quantities(torch.cat(pooled, dim=1))
        numbers = torch.arange(logits.shape[1], device=expected.device)
        logits = logits - self.sharpness.exp() * (numbers - expected) ** 2
        return torch.cat([self._answer(logits.float(), asked), logits], dim=1)

    def _see(self, cells: Tensor, salience: Tensor, picture: Tensor, references: Tensor) -> Tensor:
        """Return each cell of the pictures beside what it finds on their references, (B, L, F).

        Cells of references count by their salience: walls look alike in all pictures, and would outshine the item.
        """
        is_there = references >= 0  # (B, R)
        weights = (is_there / is_there.sum(dim=1, keepdim=True).clamp_min(1))[:, :, None, None]
        own = cells[picture]  # (B, L, WIDTH)
        queries = own.unflatten(2, (HEADS, -1)).transpose(1, 2)[:, None]  # (B, 1, HEADS, L, W)
        keys = (
            (cells * salience)[references.clamp_min(0)].unflatten(3, (HEADS, -1)).transpose(2, 3)
        )  # (B, R, HEADS, K, W)
        similarity = queries @ keys.transpose(3, 4) / math.sqrt(WIDTH // HEADS)  # (B, R, HEADS, L, K)
        found = (similarity.softmax(dim=4) @ keys).transpose(2, 3).flatten(3)  # (B, R, L, WIDTH)
        found = (found * weights).sum(dim=1)
        most_similar = similarity.amax(dim=4).transpose(2, 3)  # (B, R, L, HEADS)
        # Of a wall there are many places that look alike, of an item few.
        spread = similarity.logsumexp(dim=4).transpose(2, 3) - most_similar
        similar = (torch.cat([most_similar, spread, self.match(most_similar).sigmoid()], dim=3) * weights).sum(dim=1)
        return torch.cat([own, found, own * found, similar, salience[picture]], dim=2)

    def _answer(self, logits: Tensor, asked: Tensor) -> Tensor:
        """Return the logits (B, 2) of no and yes, given those of the quantities, (B, Q + 1)."""
        if self.task == "object":
            return torch.stack([logits[:, 0], logits[:, 1:].logsumexp(dim=1)], dim=1)
        numbers = torch.arange(logits.shape[1], device=logits.device)
        is_asked = asked.clamp(0, len(numbers) - 1)[:, None] == numbers
        others = logits.masked_fill(is_asked, -math.inf).logsumexp(dim=1)
        return torch.stack([others, ((logits + self.balance) * is_asked).sum(dim=1)], dim=1)


class ReferencesHead(nn.Module):
    """Answers whether an item is on a picture, or so many of it, in models of earlier releases.

    The picture is compared with each reference, in both directions, and the mean over the references decides (Zaheer et
    al., Deep Sets, NeurIPS 2017): their order does not matter, and what they have in common outweighs the other items
    that each of them shows. Each quantity has logits of its own, of which those of the asked one are the answer.
    """

    def __init__(self, spec: ModelSpec, encoder: Encoder):
        super().__init__()
        self.encoder, self.of_picture, self.of_reference = encoder, Comparison(), Comparison()
        self.num_quantities = 1 + MOST_ASKED if spec.task == "quantity" else 1
        self.answer = _answer(spec, 2 * Comparison.width + encoder.width, self.num_quantities * len(spec.classes))

    def forward(self, encoded: Encoded, places: Tensor, asked: Tensor) -> Tensor:
        cells, vectors, _ = encoded
        picture, references = places[:, 0], places[:, 1:]
        is_there = references >= 0  # (B, R)
        theirs = cells[references.clamp_min(0)]  # (B, R, L, WIDTH)
        own = cells[picture][:, None].expand_as(theirs)
        theirs, own = theirs.flatten(0, 1), own.flatten(0, 1)
        compared = torch.cat([self.of_picture(own, theirs), self.of_reference(theirs, own)], dim=1)
        weights = is_there / is_there.sum(dim=1, keepdim=True).clamp_min(1)
        mean = (compared.unflatten(0, references.shape) * weights[:, :, None]).sum(dim=1)
        answers = self.answer(torch.cat([mean, vectors[picture]], dim=1)).unflatten(1, (self.num_quantities, -1))
        quantities = torch.arange(self.num_quantities, device=asked.device)
        is_asked = asked.clamp(0, self.num_quantities - 1)[:, None] == quantities
        return (answers * is_asked[:, :, None]).sum(dim=1)


class ChangeHead(nn.Module):
    """Answers by how many items a bin has changed from an earlier picture, the reference, to a later one.

    The logit of d is g(earlier, later)[d] + g(later, earlier)[-d], so that the pictures swapped give the same
    distribution mirrored.
    """

    def __init__(self, spec: ModelSpec, encoder: Encoder):
        super().__init__()
        self.encoder, self.comparison = encoder, Comparison()
        self.answer = _answer(spec, 2 * Comparison.width + 2 * encoder.width, len(spec.classes))

    def forward(self, encoded: Encoded, places: Tensor, _asked: Tensor) -> Tensor:
        cells, vectors, _ = encoded
        later, earlier = places.unbind(dim=1)
        added, taken = self.comparison(cells[later], cells[earlier]), self.comparison(cells[earlier], cells[later])
        forth = self.answer(torch.cat([added, taken, vectors[later], vectors[earlier]], dim=1))
        back = self.answer(torch.cat([taken, added, vectors[earlier], vectors[later]], dim=1))
        return forth + back.flip(1)


def _answer(spec: ModelSpec, width: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Dropout(spec.dropout),
        nn.Linear(width, HIDDEN_UNITS),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN_UNITS, num_outputs),
    )
