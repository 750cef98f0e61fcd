"""Questions about a picture and others, by the rows of their pictures in a pack."""

from dataclasses import dataclass

import numpy as np

from bincount.errors import SettingsError
from bincount.model_settings import Task
from bincount.problem import Classes

MOST_ASKED = 20  # of an item; a question of more is taken for one of that many
NOT_KNOWN = -1


@dataclass(frozen=True)
class Questions:
    """N questions: their pictures' rows in the pack, (N, P) int64, and the quantities asked, (N,) int64.

    The picture that is asked about comes first, then its references, and -1 where a question has fewer. Of a change the
    picture is the later one, and its one reference the earlier one; what is asked is not used. held (N,) int64 is how
    many of the item are there, which a training learns; NOT_KNOWN, or None, where that is not known.
    """

    rows: np.ndarray
    asked: np.ndarray
    held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | np.ndarray) -> "Questions":
        return Questions(self.rows[part], self.asked[part], None if self.held is None else self.held[part])

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of all pictures, each once, (U,), and the place of each question's among them, (N, P)."""
        is_there = self.rows >= 0
        rows, places = np.unique(self.rows[is_there], return_inverse=True)
        of_questions = np.full(self.rows.shape, -1, np.int64)
        of_questions[is_there] = places
        return rows, of_questions

    def by_references(self) -> np.ndarray:
        """Return a number for each question, (N,) int64, the same for those with the same references."""
        return np.unique(self.rows[:, 1:], axis=0, return_inverse=True)[1].reshape(-1)

    def split(self, most_pictures: int) -> list[np.ndarray]:
        """Return the positions of all questions in parts, of which each has so many pictures at most, or one question.

        Questions with the same references come together, so that the parts have few pictures in common.
        """
        waiting, parts = [np.lexsort(self.rows.T[:2])], []
        while waiting:
            part = waiting.pop()
            if len(part) > 1 and len(np.unique(self.rows[part])) > most_pictures:
                waiting += reversed(np.array_split(part, 2))
            elif len(part):
                parts.append(part)
        return parts


def check(task: Task, classes: Classes) -> None:
    """Raise SettingsError when the classes are no answers to questions of a task."""
    if task in ("object", "quantity") and len(classes) != 2:
        raise SettingsError(f"--task {task} is answered by no or yes, and the snapshot has {len(classes)} classes")
    farthest = len(classes) // 2
    if task == "change" and classes.names != tuple(map(str, range(-farthest, farthest + 1))):
        raise SettingsError(
            f"--task change is answered by -K to K items, and the snapshot has the classes {', '.join(classes.names)}"
        )
