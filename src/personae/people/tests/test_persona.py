import numpy as np
import pytest

from personae.people.persona import Persona


@pytest.fixture
def ann():
    return Persona("ann", np.array([1.0, 2.0]), np.diag([0.5, 0.1]), 2.0, {"kind": "respondent"}, "Ann")


@pytest.fixture
def bob():
    return Persona("bob", np.array([-1.0, 0.0]), np.eye(2), 2.0, {"kind": "fold-in", "answers": 3})


def test_blend_is_the_weighted_mean_of_independent_vectors(ann, bob):
    blend = Persona.blend({ann: 2, bob: 6})
    assert np.allclose(blend.vector, 0.25 * ann.vector + 0.75 * bob.vector)
    assert np.allclose(blend.covariance, 0.0625 * ann.covariance + 0.5625 * bob.covariance)
    assert blend.origin["parts"][1] == {"name": "bob", "kind": "fold-in", "weight": 0.75}
    assert blend.label == "0.25 Ann + 0.75 bob"


def test_blends_of_blends_stay_small(ann):
    parts = [ann]
    for level in range(400):  # every one a blend of up to eight of the last ones
        parts.append(Persona.blend(dict.fromkeys(parts[-8:], 1), name=f"blend-{level}"))
    assert len(parts[-1].to_json()) < 2000
    assert Persona.from_json(parts[-1].to_json()) == parts[-1]
    assert parts[-1].label.endswith(" ...")


def test_blend_of_one_is_that_one(ann):
    alone = Persona.blend({ann: 5})
    assert np.array_equal(alone.vector, ann.vector)
    assert np.array_equal(alone.covariance, ann.covariance)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive(ann, bob, weight):
    with pytest.raises(ValueError, match='the weight of persona "bob"'):
        Persona.blend({ann: 1, bob: weight})


def test_blend_needs_personas_of_one_model(ann):
    with pytest.raises(ValueError, match="at least one"):
        Persona.blend({})
    with pytest.raises(ValueError, match="differ in length"):
        Persona.blend({ann: 1, Persona("c", np.zeros(3), np.eye(3), 3.0): 1})


def test_json_round_trip(ann, bob):
    blend = Persona.blend({ann: 1, bob: 2}, name="bl\u00e9nd")
    assert Persona.from_json(blend.to_json()) == blend
    with pytest.raises(ValueError, match="not a persona"):
        Persona.from_json('{"name": "x"}')
    with pytest.raises(ValueError, match="not a persona"):
        Persona.from_json("[1]")


def test_equality_and_hash(ann, bob):
    assert ann == Persona.from_json(ann.to_json())
    assert len({ann, Persona.from_json(ann.to_json()), bob}) == 2
    assert ann != bob
    assert ann != "ann"


def test_uncertainty_is_a_share_of_the_prior(ann, bob):
    assert np.isclose(ann.uncertainty, 0.3)
    assert bob.uncertainty == 1.0


def test_wrong_shapes_and_values():
    with pytest.raises(ValueError, match="needs a vector"):
        Persona("x", np.zeros(3), np.eye(2), 1.0)
    with pytest.raises(ValueError, match="not finite"):
        Persona("x", np.array([np.nan]), np.eye(1), 1.0)


def test_arrays_cannot_be_changed(ann):
    with pytest.raises(ValueError):
        ann.vector[0] = 3
