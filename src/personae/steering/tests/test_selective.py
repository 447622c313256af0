"""Selective prompt tuning on a tiny random LM and on dialogues whose replies depend on who speaks."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from personae.data.dialogues import Dialogue, Dialogues, Turn
from personae.data.survey import Question
from personae.lm.generation import generate
from personae.lm.prompts import PLACEMENTS, chat_prompt, reply_ids
from personae.lm.reading import prefix_cache
from personae.lm.tests.by_hand import corrected_by_hand
from personae.lm.tiny import tiny_lm
from personae.people.persona import ANYONE, Persona
from personae.steering import selection as losses
from personae.steering.base import REGISTRY
from personae.steering.replies import RepliesTask, persona_similarity, states
from personae.steering.selective import Selective
from personae.steering.turns import as_messages

SAID = {"i like tea .": ("tea please .", "more tea ."), "i like dogs .": ("my dog barks !", "a walk with the dog !")}
CHATS = [
    [{"role": "system", "content": "i like tea ."}, {"role": "user", "content": "what now ?"}],
    [{"role": "system", "content": "i like dogs ."}, {"role": "user", "content": "a question that is much longer"}],
    [{"role": "user", "content": "hi"}],
]


@pytest.fixture(scope="module")
def dialogues() -> Dialogues:
    return Dialogues(
        [
            Dialogue(
                str(i),
                (Turn("bob", f"hello {i} ?"), Turn(f"ann{i}", first), Turn("bob", "and ?"), Turn(f"ann{i}", then)),
                {f"ann{i}": (persona,)},
            )
            for i in range(20)
            for persona, (first, then) in [list(SAID.items())[i % 2]]
        ]
    )


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def people(dialogues) -> dict[str, Persona]:
    rng = np.random.default_rng(0)
    return {f"ann{i}": Persona(f"ann{i}", rng.normal(size=3), np.eye(3), 1.0) for i in range(len(dialogues))}


def trained(lm, dialogues, people=None, **how) -> Selective:
    how = {"n_prompts": 3, "n_tokens": 2, "steps": 12, **how}
    return Selective(lm, **how).fit(dialogues, people, progress=False)


@pytest.fixture(scope="module")
def steerer(lm, dialogues) -> Selective:
    return trained(lm, dialogues)


def plain_nll(lm, prompt, virtual, reply) -> float:
    """-log of a reply's probability by one pass of the whole model over one row."""
    ids, h = reply_ids(lm, reply), lm.hidden_size
    own, deeper = [], torch.zeros(0, h)
    if isinstance(virtual, torch.Tensor):
        own, deeper = [virtual[:, :h]], virtual[:, h:]
    x = torch.cat([lm.embed(prompt.before), *own, lm.embed(prompt.after), lm.embed(ids)])[None]
    cache = None if own else prefix_cache(virtual, lm.dtype)
    by_hand = corrected_by_hand(lm, deeper, len(prompt.before)) if deeper.numel() else nullcontext()
    with torch.no_grad(), by_hand:
        logits = lm.model(inputs_embeds=x, past_key_values=cache, use_cache=cache is not None).logits[0].float()
    log_p = logits.log_softmax(-1)[len(x[0]) - len(ids) - 1 : -1]
    return -log_p[torch.arange(len(ids)), ids].sum().item()


def of_row(virtual, row):
    if isinstance(virtual, torch.Tensor):
        return virtual[row]
    return [(k[row : row + 1], v[row : row + 1]) for k, v in virtual]


# the bank --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shared", "common", "own"), [(None, 9, 1), (0.5, 6, 2), (0.0, 0, 4)])
def test_a_bank_has_k_times_n_tokens_of_which_some_are_common(lm, dialogues, shared, common, own):
    steerer = trained(lm, dialogues, n_tokens=4, shared=shared, shift=False)
    prompts = steerer.network_.bank.prompts().detach()
    assert prompts.shape == (3, common + own, 2 * lm.hidden_size)  # deep ones of an LM with two layers
    assert common + 3 * own == 3 * 4
    assert (prompts[:, :common] == prompts[:1, :common]).all()
    assert not torch.isclose(prompts[0, common:], prompts[1, common:]).any(-1).all()
    with pytest.raises(ValueError, match="shared is 2; it is a share of the bank's tokens, from 0 to 1"):
        trained(lm, dialogues, shared=2)


# what it computes ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("deep", [None, False])
def test_nll_is_that_of_a_plain_pass_with_the_chosen_prompt(lm, dialogues, placement, deep):
    steerer = trained(lm, dialogues, placement=placement, deep=deep, steps=2)
    assert steerer.deep_ == (deep is None and placement != "prefix")
    replies = ["tea please .", "my dog barks !", "a"]
    nll, tokens = steerer.nll(CHATS, replies)
    rows = steerer.rows(CHATS)
    for i, reply in enumerate(replies):
        prompt = chat_prompt(lm, CHATS[i], placement)
        assert nll[i] == pytest.approx(plain_nll(lm, prompt, of_row(rows.virtual, i), reply), rel=1e-3)
        assert tokens[i] == len(reply_ids(lm, reply))


def test_a_mixture_weighs_the_likelihoods_of_its_prompts(lm, dialogues):
    steerer = trained(lm, dialogues, selection="mixture")
    p = steerer.choose(CHATS[:1])[0]
    batch = next(steerer._batches(CHATS[:1], None))
    with torch.no_grad():
        virtual = steerer.network_.bank(batch.h, batch.z)[0]
    prompt = chat_prompt(lm, CHATS[0], "late")
    each = np.array([plain_nll(lm, prompt, virtual[k], "more tea .") for k in range(3)])
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert steerer.nll(CHATS[:1], ["more tea ."])[0][0] == pytest.approx(-np.log(p @ np.exp(-each)), rel=1e-3)


def test_a_mixture_speaks_the_likeliest_token_of_all_prompts_weighed_by_what_was_said(lm, dialogues):
    steerer = trained(lm, dialogues, selection="mixture")
    rows = steerer.rows(CHATS[:2])
    texts = generate(lm, *rows[:2], max_new_tokens=5, mixed=rows.mixed)
    assert generate(lm, *rows[:2], max_new_tokens=5, mixed=rows.mixed) == texts  # the rows are as they were
    np.testing.assert_allclose(rows.mixed.exp().numpy(), steerer.choose(CHATS[:2]), rtol=1e-5)
    log_w = torch.tensor(steerer.choose(CHATS[:1])[0]).log()
    prompt, said = chat_prompt(lm, CHATS[0], "late"), []
    for _ in range(5):
        each = []
        for k in range(3):
            own, deeper = rows.virtual[k].split(lm.hidden_size, 1)
            x = torch.cat([lm.embed(prompt.before), own, lm.embed(said)])[None]
            with corrected_by_hand(lm, deeper, len(prompt.before)), torch.no_grad():
                each.append(lm.model(inputs_embeds=x).logits[0, -1].float().log_softmax(-1))
        each = torch.stack(each)
        said.append(int((log_w[:, None] + each).logsumexp(0).argmax()))
        log_w = (log_w + each[:, said[-1]]).log_softmax(0)
    assert texts[0] == lm.tokenizer.decode(said).strip()
    assert len(texts) == 2
    assert "".join(t for (t,) in steerer.stream(CHATS[0], [ANYONE], max_new_tokens=5)).strip() == texts[0]


@pytest.mark.parametrize("recipe", ["mixture", "paper"])
def test_a_chat_has_the_same_prompt_alone_and_in_a_batch(lm, dialogues, recipe):
    steerer = trained(lm, dialogues, recipe=recipe, steps=4)
    together = steerer.choose(CHATS)
    for i, chat in enumerate(CHATS):
        np.testing.assert_allclose(steerer.choose([chat])[0], together[i], atol=1e-4)
    rows = steerer.rows(CHATS)
    texts = generate(lm, rows.prompts, rows.virtual, max_new_tokens=6)
    assert texts == [generate(lm, *steerer.rows([chat])[:2], max_new_tokens=6)[0] for chat in CHATS]


def test_the_contexts_of_a_step_are_computed_once_whatever_the_number_of_prompts(lm, dialogues, monkeypatch):
    encode, computed = lm.encode, []
    monkeypatch.setattr(lm, "encode", lambda ids: computed.append(sum(map(len, ids))) or encode(ids))

    def tokens(k: int) -> int:
        computed.clear()
        trained(lm, dialogues, n_prompts=k, steps=3)
        return sum(computed)

    assert tokens(1) == tokens(6) > 0


# learning --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("selection", ["hard", "mixture"])
def test_a_chat_is_read_once_to_choose_a_prompt_and_to_reply(lm, dialogues, selection, monkeypatch):
    steerer = trained(lm, dialogues, steps=1, selection=selection)
    chat = as_messages(next(iter(dialogues.examples(None))))
    said, passed, run = steerer.chat(chat, max_new_tokens=4), [], lm.model.base_model.forward

    def counted(*args, **kwargs):
        passed.append((kwargs["input_ids"] if "input_ids" in kwargs else kwargs["inputs_embeds"][..., 0]).shape)
        return run(*args, **kwargs)

    monkeypatch.setattr(lm.model.base_model, "forward", counted)
    assert steerer.chat(chat, max_new_tokens=4) == said
    voices = 1 if selection == "hard" else steerer.n_prompts
    first = [(1, len(chat_prompt(lm, chat, "late").text_ids)), (voices, steerer.network_.bank.prompts().shape[1])]
    assert passed[:2] == first
    assert set(passed[2:]) <= {(voices, 1)}


@pytest.mark.parametrize(("recipe", "rest"), [("mixture", 0.98), ("paper", 0.998)])  # prompts move a random LM little
def test_it_learns_and_leaves_the_lm_alone(lm, dialogues, recipe, rest):
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    some = dialogues.examples()
    chats, replies = [as_messages(e) for e in some], [e.reply for e in some]
    untrained, _ = trained(lm, dialogues, recipe=recipe, steps=1).nll(chats, replies)
    steerer = trained(lm, dialogues, recipe=recipe, steps=40)
    assert steerer.nll(chats, replies)[0].sum() < rest * untrained.sum()
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert 1 <= steerer.effective_prompts_ <= 3.001


def task_of(steerer, dialogues) -> RepliesTask:
    """The training task of a bank, at the place where its training ended."""
    how = steerer.placement_, steerer.encoder_, steerer.recipe, steerer.choice, steerer.selection == "mixture"
    task = RepliesTask(steerer.lm_, dialogues, None, *how, steerer.weights_, steerer.steps, steerer.random_state)
    task.network = steerer.network_
    return task


@pytest.mark.parametrize("placement", ["late", "before"])
@pytest.mark.parametrize(("weights", "rest"), [({}, (0.4, 0.4)), ({"selection": 1.0, "contrastive": 0.7}, (1.0, 0.7))])
def test_a_step_has_the_four_losses_as_published(lm, placement, weights, rest):
    told = ("i like tea .", "my dog barks all night .", "we are seven .")
    turns = (Turn("bob", "hello ?"), Turn("ann", "tea please ."), Turn("bob", "and ?"), Turn("ann", "a walk !"))
    dialogues = Dialogues([Dialogue(str(i), turns, {"ann": (told[i % 3],)}) for i in range(9)])
    task = task_of(trained(lm, dialogues, recipe="paper", placement=placement, weights=weights), dialogues)
    examples, network = task.turns.draw(3), task.network
    batch = task.batch(examples)
    scores = network.retriever.scores(batch.h, network.bank.prompts())
    nll, fused = losses.reply_nlls(lm.logits, *states(lm, batch, network.bank(batch.h, None)), scores)
    alike = persona_similarity([e.persona for e in examples])
    contrast = losses.contrastive_loss(scores, alike)
    of_choice = rest[0] * losses.selection_loss(scores, nll) + rest[1] * contrast
    whole = losses.lm_loss(nll) + losses.fusion_loss(fused) + of_choice
    assert contrast > 0.01
    torch.testing.assert_close(sum(loss for loss, _ in task.losses(3)), whole)


@pytest.mark.parametrize(
    "how",
    [
        {"recipe": "paper"},
        {},
        {"selection": "mixture"},
        {"choice": "random"},
        {"n_prompts": 1},
        {"placement": "prefix", "deep": False},
    ],
)
def test_where_prompts_repeat_their_context_few_rows_are_held_and_the_gradient_is_the_same(
    lm, dialogues, how, monkeypatch
):
    steerer = trained(lm, dialogues, **{"placement": "before", **how})
    task, rows, run = task_of(steerer, dialogues), [], lm.model.base_model.forward

    def counted(*args, **kwargs):
        if torch.is_grad_enabled():
            rows.append(len(kwargs["inputs_embeds"]))
        return run(*args, **kwargs)

    def gradients(at_most: int) -> tuple[dict[str, torch.Tensor], int]:
        monkeypatch.setattr("personae.steering.replies._ROWS", at_most)
        task.network.zero_grad()
        rows.clear()
        parts = list(task.losses(3))
        assert sum(n for _, n in parts) == len(task.turns.draw(3))
        sum(loss for loss, _ in parts).backward()
        return {n: p.grad.clone() for n, p in task.network.named_parameters() if p.grad is not None}, max(rows)

    monkeypatch.setattr(lm.model.base_model, "forward", counted)
    (few, held), (all_, everything) = gradients(3), gradients(1000)
    assert held <= 3 < everything
    torch.testing.assert_close(few, all_, rtol=1e-4, atol=1e-6)
    assert any(g.abs().max() > 1e-4 for g in few.values())


def test_a_bank_that_everybody_leaves_to_one_prompt_is_called_one(lm, dialogues):
    steerer = trained(lm, dialogues, steps=1)
    steerer.history_ = [{"step": 1, "nll": 1.0, "prompts in use": 1.2}]
    assert not steerer.collapsed_
    steerer.history_ = [{"step": 1, "nll": 1.0, "prompts in use": 1.02}]
    assert steerer.collapsed_
    steerer.n_prompts = 1
    assert not steerer.collapsed_


@pytest.mark.parametrize(("mixture", "used"), [(False, 1.0), (True, 3.0)])
def test_prompts_in_use_are_those_that_speak(lm, dialogues, monkeypatch, mixture, used):
    """A retriever that is nearly undecided, always on the same side, leaves a hard choice with one prompt."""

    def nearly_even(network, batch, choice):
        return torch.tensor([[0.34, 0.33, 0.33]]).log().expand(len(batch.h), -1)

    monkeypatch.setattr("personae.steering.replies.log_choice", nearly_even)
    steerer = trained(lm, dialogues, steps=1, selection="mixture" if mixture else "hard")
    assert steerer.effective_prompts_ == pytest.approx(used, abs=1e-3)
    assert steerer.collapsed_ is not mixture


def test_resuming_gives_the_result_of_an_uninterrupted_run(lm, dialogues, tmp_path, monkeypatch):
    whole = Selective(lm, n_prompts=2, n_tokens=2, steps=60).fit(dialogues, progress=False)
    file = tmp_path / "checkpoint"

    class Stopped(Exception):
        pass

    of_step = RepliesTask.losses

    def stop(self, step, batch):
        if step == 55:
            raise Stopped
        return of_step(self, step, batch)

    interrupted, again = (Selective(lm, n_prompts=2, n_tokens=2, steps=60) for _ in range(2))
    monkeypatch.setattr(RepliesTask, "losses", stop)
    with pytest.raises(Stopped):
        interrupted.fit(dialogues, checkpoint=file, progress=False)
    monkeypatch.setattr(RepliesTask, "losses", of_step)
    again.fit(dialogues, checkpoint=file, resume=True, progress=False)
    for name, value in whole.network_.state_dict().items():
        assert torch.equal(value, again.network_.state_dict()[name]), name


# people ----------------------------------------------------------------------------------------------------------
def test_one_bank_speaks_differently_as_different_people(lm, dialogues, people):
    steerer = trained(lm, dialogues, people, steps=30)
    ann, eve = people["ann0"], people["ann1"]
    first, second = steerer.rows([CHATS[0]] * 2, [ann, eve]).virtual
    assert (first - second).abs().max() > 1e-4
    p = steerer.predict_proba([ann, eve], [Question("q", "Tea?", ("no", "yes"))])
    assert p.shape == (2, 1, 2)
    assert p.sum(-1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="give a persona for each of 1 chats"):
        steerer.nll(CHATS[:1], ["tea ."])
    with pytest.raises(ValueError, match='"stranger" has 2 numbers'):
        steerer.chat("hi", Persona("stranger", np.zeros(2), np.eye(2), 1.0))


@pytest.mark.parametrize("selection", ["hard", "mixture"])
@pytest.mark.parametrize("read", ["letters", "text"])
def test_questions_are_answered_alike_by_everybody_where_no_people_were_learned(lm, dialogues, people, selection, read):
    steerer = trained(lm, dialogues, selection=selection, steps=2)
    questions = [
        Question("q", "Tea or coffee?", ("tea", "coffee", "neither of them")),
        Question("r", "Dogs?", ("a", "b")),
    ]
    p = steerer.predict_proba([people["ann0"], people["ann1"]], questions, read)
    assert p.shape == (2, 2, 3)
    np.testing.assert_allclose(p[0], p[1])
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    assert (p[:, 1, 2] == 0).all()


# controls and settings -------------------------------------------------------------------------------------------
def test_a_random_prompt_is_the_same_for_the_same_context_and_all_are_drawn(lm, dialogues):
    steerer = trained(lm, dialogues, choice="random", steps=2)
    many = [[{"role": "user", "content": f"question {i}"}] for i in range(60)]
    p = steerer.choose(many)
    np.testing.assert_array_equal(p, steerer.choose(many))
    assert np.bincount(p.argmax(1), minlength=3).min() > 5
    assert p.max(1) == pytest.approx(1)


def test_an_even_mixture_chooses_nothing(lm, dialogues):
    steerer = trained(lm, dialogues, choice="uniform", selection="mixture", steps=2)
    np.testing.assert_allclose(steerer.choose(CHATS), 1 / 3, atol=1e-6)


@pytest.mark.parametrize("how", [{"n_prompts": 1, "shift": False}, {"reparametrise": True, "n_prompts": 1}])
def test_prompt_tuning_and_p_tuning_are_banks_of_one(lm, dialogues, how):
    steerer = trained(lm, dialogues, steps=4, **how)
    np.testing.assert_allclose(steerer.choose(CHATS), 1)
    first, second, _ = steerer.rows(CHATS).virtual
    same = torch.equal(first, second)
    assert same == (not how.get("shift", True))  # without a shift one prompt serves every context


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"recipe": "best"}, "recipe is"),
        ({"choice": "uniform"}, "no most probable prompt"),
        ({"recipe": "paper", "placement": "prefix"}, "word embeddings"),
        ({"weights": {"fusion": 1.0}}, "has no loss fusion; it has balance, contrast"),
        ({"n_prompts": 0}, "n_prompts is 0"),
        ({"deep": True, "placement": "prefix"}, "does not go with recipe='paper', placement='prefix'"),
    ],
)
def test_wrong_settings_are_said_before_anything_is_trained(lm, dialogues, how, said):
    with pytest.raises(ValueError, match=said):
        Selective(lm, **how).fit(dialogues, progress=False)


def test_one_dialogue_is_too_few(lm, dialogues):
    with pytest.raises(ValueError, match="two dialogues at least"):
        Selective(lm, steps=1).fit(Dialogues([dialogues[0]]), progress=False)


# files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [{}, {"recipe": "paper"}, {"deep": False}, {"reparametrise": True}])
def test_what_was_saved_speaks_the_same(lm, dialogues, people, tmp_path, how):
    known = people if not how else None
    steerer = trained(lm, dialogues, known, steps=3, **how)
    steerer.save(tmp_path)
    again = REGISTRY["selective"].load(tmp_path, lm)
    who = [people["ann0"]] * 3 if known else None
    np.testing.assert_array_equal(steerer.choose(CHATS, who), again.choose(CHATS, who))
    np.testing.assert_array_equal(
        steerer.nll(CHATS, ["a", "b", "c"], who)[0], again.nll(CHATS, ["a", "b", "c"], who)[0]
    )
    assert again.effective_prompts_ == steerer.effective_prompts_
    with pytest.raises(ValueError, match="train again"):
        Selective.load(tmp_path, tiny_lm("gpt2"))


def test_contexts_shift_what_is_corrected_before_every_layer(lm, dialogues, tmp_path):
    steerer = trained(lm, dialogues, n_prompts=1)
    bank, contexts = steerer.network_.bank, torch.randn(2, 2 * lm.hidden_size)
    one, other = bank(contexts, None)[:, 0]  # (T, L * H)
    apart = (one - other)[:, lm.hidden_size :]
    assert apart.abs().min(0).values.max() > 0
    torch.testing.assert_close(apart, apart[:1].expand_as(apart), rtol=1e-3, atol=1e-6)  # alike for all tokens
    steerer.save(tmp_path / "new")
    weights = load_file(tmp_path / "new" / "network.safetensors")
    del weights["bank.out_deeper.weight"]  # as a bank of an earlier version
    save_file(weights, tmp_path / "new" / "network.safetensors")
    one, other = Selective.load(tmp_path / "new", lm=lm).network_.bank(contexts, None)[:, 0]
    torch.testing.assert_close(one[:, lm.hidden_size :], other[:, lm.hidden_size :])
    assert (one - other).abs().max() > 0


def test_everybody_who_replies_needs_a_persona(lm, dialogues, people):
    some = {name: persona for name, persona in people.items() if name != "ann3"}
    with pytest.raises(
        ValueError, match=r'^nobody called "ann3" is among .* give a persona for everybody who replies$'
    ):
        Selective(lm, steps=1).fit(dialogues, some, progress=False)
    with pytest.raises(ValueError, match=r"^the paper's bank knows nothing of people"):
        Selective(lm, recipe="paper", steps=1).fit(dialogues, people, progress=False)


def test_one_reply_or_people_who_are_all_alike_are_enough_to_start_from(lm, people):
    """Two dialogues of one reply each: one is learned, the other held out."""
    talk = (Turn("bob", "Tea?"), Turn("ann0", "Coffee, please."))
    two = Dialogues([Dialogue(str(i), talk, {"ann0": ("I never drink tea.",)}) for i in range(2)])
    steerer = Selective(lm, n_prompts=2, n_tokens=2, steps=1).fit(two, {"ann0": people["ann0"]}, progress=False)
    other = Persona("other", people["ann0"].vector + 1, people["ann0"].covariance, 1.0)
    for who in (people["ann0"], other):
        nll, _ = steerer.nll(CHATS[:1], ["a"], [who])
        assert np.isfinite(nll).all()
        assert steerer._batch([chat_prompt(lm, CHATS[0], "late")], steerer._vectors([who], 1)).z.abs().max() <= 8
