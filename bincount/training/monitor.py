"""The records of `--debug`: gradient norms, dead channels, time spent waiting for data, a profile of some steps."""

import csv
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from bincount.files import atomic_write
from bincount.text import percent

logger = logging.getLogger(__name__)

STEPS_BETWEEN_RECORDS = 20
PROFILED_STEPS = range(5, 8)  # the first steps are slower than all others
VANISHING = 1e-6  # ratio of a layer's gradient norm to its weight norm
EXPLODING = 1e2
DEAD = 0.5  # share of a layer's channels that no image of a batch activates
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


class Monitor:
    """Records gradients and activations of a network every few steps of its training; does nothing unless enabled."""

    def __init__(self, model: nn.Module, *, enabled: bool):
        self.model, self.enabled = model, enabled
        self.gradients: list[dict] = []
        self.dead: dict[str, float] = {}  # share of a layer's channels, as last recorded
        self.calls: Counter[str] = Counter()  # of each layer in one forward pass: a ResNet's block uses one ReLU twice
        self.profiler: torch.profiler.profile | None = None  # while it runs
        self.profile: torch.profiler.profile | None = None  # until it is written
        self.first_step: int | None = None  # of this process
        self.records_activations = enabled  # of the next step
        if enabled:
            model.register_forward_pre_hook(lambda *_: self.calls.clear())
            for name, layer in model.named_modules():
                if isinstance(layer, ACTIVATIONS):
                    layer.register_forward_hook(lambda _, __, output, name=name: self._record(name, output))

    def after_backward(self, step: int) -> None:
        """Record the gradients of a step. Call it between the backward pass and the optimizer; steps count from 0."""
        if not self.enabled:
            return
        if self.first_step is None:
            self.first_step = step
        if step % STEPS_BETWEEN_RECORDS == 0:
            self.gradients += [
                {
                    "step": step,
                    "layer": name.removesuffix(".weight"),
                    "gradient_norm": parameter.grad.norm().item(),
                    "weight_norm": parameter.detach().norm().item(),
                }
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None and parameter.ndim > 1
            ]
        self.records_activations = (step + 1) % STEPS_BETWEEN_RECORDS == 0
        if step - self.first_step == PROFILED_STEPS.start:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self.profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self.profiler.start()
        elif self.profiler and step - self.first_step == PROFILED_STEPS.stop:
            self._end_profile()

    @contextmanager
    def recording(self, folder: Path, read_history: Callable[[], list[dict]]) -> Iterator[None]:
        """Write the records when the block ends, also with an error, which they may explain; log the findings."""
        try:
            yield
        finally:
            if self.profiler:
                self._end_profile()
            self.write(folder, read_history())
            for finding in self.findings():
                logger.warning("%s", finding)

    def write(self, folder: Path, history: list[dict]) -> None:
        """Write gradients.csv, findings.json, and after the profile trace.json for Perfetto or chrome://tracing.

        Gradients that an earlier process of this training recorded in earlier steps stay.
        """
        if not (self.gradients or self.dead or self.profile):  # no step was left to take
            return
        folder.mkdir(parents=True, exist_ok=True)
        first = self.gradients[0]["step"] if self.gradients else math.inf
        self.gradients = _read_before(first, folder / "gradients.csv") + self.gradients
        with atomic_write(folder / "gradients.csv") as temporary, open(temporary, "w", newline="") as file:
            table = csv.DictWriter(file, ["step", "layer", "gradient_norm", "weight_norm"])
            table.writeheader()
            table.writerows(self.gradients)
        if self.profile:
            with atomic_write(folder / "trace.json") as temporary:
                self.profile.export_chrome_trace(str(temporary))
            self.profile = None
        waiting = [record["waiting_for_data"] for record in history]
        content = {"findings": self.findings(), "waiting_for_data": waiting, "dead_channels": self.dead}
        with atomic_write(folder / "findings.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2))

    def _end_profile(self) -> None:
        self.profiler.stop()
        self.profile, self.profiler = self.profiler, None

    def findings(self) -> list[str]:
        """Describe what looks wrong: exploding, vanishing or infinite gradients, and dead channels."""
        ratios = defaultdict(list)
        for row in self.gradients:
            ratios[row["layer"]].append(row["gradient_norm"] / max(row["weight_norm"], 1e-12))
        findings = []
        for layer, values in ratios.items():
            if not all(map(math.isfinite, values)):
                findings.append(f"{layer}: its gradient was not finite")
            elif max(values) > EXPLODING:
                findings.append(f"{layer}: its gradient was {max(values):.0f} times its weights; it may be exploding")
            elif max(values) < VANISHING:
                findings.append(f"{layer}: its gradient was at most {max(values):.1e} of its weights; it vanishes")
        findings += [
            f"{layer}: {percent(share)} of its channels are dead" for layer, share in self.dead.items() if share > DEAD
        ]
        return findings

    def _record(self, name: str, output: Tensor) -> None:
        if self.records_activations and self.model.training:
            self.calls[name] += 1
            key = name if self.calls[name] == 1 else f"{name}, use {self.calls[name]}"
            channels = output.detach().transpose(0, 1).flatten(1)
            self.dead[key] = (channels.amax(dim=1) <= 0).float().mean().item()


def _read_before(step: float, path: Path) -> list[dict]:
    """Read the rows of earlier steps from a table of gradients."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [
            {"step": int(row["step"]), "layer": row["layer"]}
            | {name: float(row[name]) for name in ("gradient_norm", "weight_norm")}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row["step"] < step]
