import numpy as np

from personae.people.choice import STRENGTHS, choose


def test_goes_up_only_while_it_pays(make):
    d, strength, _, seen = choose(make(n=400, q=60, d=2, noise=0.3), None, 0)
    assert d == 4
    assert [v["n_components"] for v in seen if "n_components" in v] == [4, 8]
    losses = {v["strength"]: v["nll"] for v in seen if "strength" in v}
    assert strength == min(losses, key=losses.__getitem__)
    assert tuple(losses) == STRENGTHS


def test_a_richer_survey_gets_a_larger_dimension(make):
    assert choose(make(n=600, q=80, d=8, noise=0.2, density=0.9), None, 0)[0] > 4


def test_a_given_dimension_is_kept(survey):
    d, _, _, seen = choose(survey, 3, 0)
    assert d == 3
    assert len(seen) == 1 + len(STRENGTHS)


def test_nothing_to_hold_out(survey):
    one = survey.keep_answers(np.arange(survey.n_answers) == 0)
    assert choose(one, None, 0) == (4, STRENGTHS[0], 0.0, [])
