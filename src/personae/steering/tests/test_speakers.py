"""Vectors of speakers on messages whose embeddings are drawn from a known distribution."""

from __future__ import annotations

import numpy as np
import pytest

from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.lm.encoder import SentenceEncoder
from personae.steering.speakers import Speakers

BETWEEN, WITHIN = np.array([4.0, 1.0]), np.array([1.0, 3.0])


class Drawn(SentenceEncoder):
    """Embeddings that were drawn beforehand, by the message's number."""

    def __init__(self, e: np.ndarray) -> None:
        self.e = e

    def encode(self, texts, batch=64):
        return self.e[[int(text) for text in texts]]


@pytest.fixture(scope="module")
def drawn() -> tuple[Dialogues, np.ndarray, np.ndarray]:
    """200 people with 2 to 10 messages over two dialogues each; embeddings of all messages, and people's true means."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(200, 2)) * np.sqrt(BETWEEN)
    turns, e = [], []
    for i, n in enumerate(rng.integers(2, 11, 200)):
        for m in range(n):
            turns.append((f"{m % 2}-{i // 2}", Turn(f"p{i}", str(len(e)))))
            e.append(means[i] + rng.normal(size=2) * np.sqrt(WITHIN))
    ids = sorted({d for d, _ in turns})
    dialogues = Dialogues([Dialogue(d, tuple(t for e, t in turns if e == d)) for d in ids])
    return dialogues, np.array(e), means


@pytest.fixture(scope="module")
def speakers(drawn) -> Speakers:
    return Speakers(Drawn(drawn[1]), n_components=2).fit(drawn[0])


def coordinates(speakers: Speakers, points: np.ndarray) -> np.ndarray:
    return speakers.pca_.transform(points)


def test_variances_are_found(speakers):
    turned = np.abs(speakers.pca_.components_)  # the axes are nearly those that were drawn, in order of variance
    assert np.allclose(turned, np.eye(2), atol=0.2)
    np.testing.assert_allclose(speakers.between_, BETWEEN, rtol=0.25)
    np.testing.assert_allclose(speakers.within_, WITHIN, rtol=0.25)


def test_vectors_are_closer_to_the_truth_than_plain_means_and_as_far_as_they_say(drawn, speakers):
    dialogues, e, means = drawn
    truth = coordinates(speakers, means)
    said = {name: [] for name in speakers.names_}
    for dialogue in dialogues:
        for turn in dialogue.turns:
            said[turn.speaker].append(int(turn.text))
    plain = np.array([coordinates(speakers, e[rows]).mean(0) for rows in said.values()])
    personas = [speakers[name] for name in said]
    order = [int(name[1:]) for name in said]
    error = ((np.array([p.vector for p in personas]) - truth[order]) ** 2).sum(1)
    assert error.mean() < 0.9 * ((plain - truth[order]) ** 2).sum(1).mean()
    expected = np.mean([np.trace(p.covariance) for p in personas])
    assert error.mean() == pytest.approx(expected, rel=0.25)


def test_elsewhere_knows_nothing_of_the_dialogue_at_hand(drawn, speakers):
    dialogues, _, _ = drawn
    example = dialogues.examples("p7")[0]
    others = [t.text for d in dialogues if d.id != example.dialogue for t in d.turns if t.speaker == "p7"]
    found, known = speakers.elsewhere(example), speakers.fold_in(others)
    np.testing.assert_allclose(found.vector, known.vector, atol=1e-9)
    np.testing.assert_allclose(found.covariance, known.covariance)
    assert found.origin["messages"] == len(others) < speakers["p7"].origin["messages"]


def test_nobody_in_particular_is_everybody(speakers):
    nobody = speakers.fold_in([])
    assert np.allclose(nobody.vector, 0)
    assert nobody.uncertainty == pytest.approx(1)
    with pytest.raises(ValueError, match='nobody named "eve" was read'):
        speakers["eve"]


def test_people_who_say_one_thing_each_cannot_be_told_apart():
    talk = (Turn("ann", "0"), Turn("bob", "1"))
    with pytest.raises(ValueError, match="more than one thing"):
        Speakers(Drawn(np.eye(2))).fit(Dialogues([Dialogue("1", talk)]))
