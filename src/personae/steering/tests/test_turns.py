from __future__ import annotations

import pytest

from personae.data.dialogues import Dialogue, Dialogues, Example, Turn
from personae.lm.tiny import tiny_lm
from personae.steering.turns import Turns, as_messages, person, within


def made(n: int, turns: int = 6, persona: bool = True) -> Dialogues:
    talk = [tuple(Turn("bob" if t % 2 == 0 else "ann", f"{i} says {t}") for t in range(turns)) for i in range(n)]
    known = {"ann": ("i am ann .",)} if persona else {}
    return Dialogues([Dialogue(str(i), said, known) for i, said in enumerate(talk)])


def test_held_out_replies_are_of_other_dialogues():
    turns = Turns(made(40), seed=1)
    learned, held_out = ({e.dialogue for e in part} for part in (turns.learned, turns.held_out))
    assert learned
    assert held_out
    assert not learned & held_out
    assert {e.speaker for e in turns.learned} == {"ann"}
    assert {e.speaker for e in Turns(made(40, persona=False), seed=1).learned} == {"ann", "bob"}


def test_a_step_has_two_turns_of_each_of_four_people_and_depends_on_seed_and_step_alone():
    turns = Turns(made(40), seed=1)
    drawn = turns.draw(3)
    assert drawn == Turns(made(40), seed=1).draw(3)
    assert drawn != turns.draw(4)
    people = [person(e) for e in drawn]
    assert len(people) == 8
    assert sorted(people.count(p) for p in set(people)) == [2, 2, 2, 2]
    assert len({e.reply for e in drawn}) == 8


def test_who_speaks_is_told_apart_by_dialogue():
    turns = Turns(made(5), seed=0)
    assert len({person(e) for e in turns.learned}) == 4


def test_sides_are_seen_from_the_one_who_replies():
    talk = (Turn("ann", "hi !"), Turn("bob", "hello ."), Turn("ann", "tea ?"))
    assert [m["role"] for m in as_messages(Example("1", "bob", (), talk, "yes ."))] == ["user", "assistant", "user"]
    assert [m["role"] for m in as_messages(Example("1", "ann", (), talk[:2], "tea ?"))] == ["assistant", "user"]


def test_a_long_history_loses_its_first_turns():
    lm = tiny_lm()
    talk = tuple(Turn("bob", f"turn {i} " + "word " * 20) for i in range(50))
    short = within(lm, Example("1", "ann", ("p .",), talk, "yes"), tokens=200)
    assert 1 < len(short.history) < 50
    assert short.history == talk[-len(short.history) :]
    assert short.persona == ("p .",)


def test_nothing_to_learn_is_said():
    silent = Dialogues([Dialogue(str(i), (Turn("bob", "hi"),), {"ann": ("i am quiet .",)}) for i in range(3)])
    with pytest.raises(ValueError, match="there are 0 with replies by somebody with persona sentences among 3"):
        Turns(silent, seed=0)
    with pytest.raises(ValueError, match=r"two dialogues at least, .* there are 1 with replies among 1"):
        Turns(made(1, persona=False), seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_few_dialogues_with_personas_are_learned_from(seed):
    few, many = made(4), made(40, persona=False)
    mixed = Dialogues([*(Dialogue(f"bare {d.id}", d.turns) for d in many), *few])
    turns = Turns(mixed, seed)
    assert {e.dialogue for e in turns.learned + turns.held_out} == {d.id for d in few}
    assert len({e.dialogue for e in turns.held_out}) == 1


def test_an_opening_by_somebody_unknown_is_a_chat_that_templates_take():
    told = as_messages(Example("1", "ann", (), (), "hi"))
    assert told == [{"role": "system", "content": ""}]
    assert tiny_lm().template.render(told)
