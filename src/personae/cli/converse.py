"""`personae converse`: banks of prompts that are learned from dialogues, to be trained, measured, talked with, seen."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.chat import REMEMBERED, typed_lines
from personae.cli.common import BundlePath, command, doing, open_bundle, percent, print_json, print_table, table

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.data.dialogues import Dialogues
    from personae.steering.selective import Selective

_FORMATS = ("convai2", "turns", "sharegpt", "openai", "chitchat")
_HELP = "/why   /about SENTENCES   /reset   /quit"
_format = click.option("--format", type=click.Choice(_FORMATS), help="Where the guess would be wrong.")
_lm = click.option(
    "--lm", metavar="NAME", default="smollm2-135m", show_default=True, help="Short name, folder or hub id."
)
_seed = click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Same seed, same result.",
)


def _number(name: str, default: int | None, help: str, least: int = 1) -> Any:
    return click.option(
        name, metavar="N", type=click.IntRange(least), default=default, show_default=default is not None, help=help
    )


@click.group("converse")
def converse() -> None:
    """Selective prompt tuning: a bank of soft prompts learned from dialogues, and a retriever that picks one.

    DIALOGUES is a ConvAI2 text, a JSON file or JSON lines with turns, conversations (ShareGPT) or messages (OpenAI),
    or the word chitchat for the conversations of 1,315 real people.

    \b
    personae converse train train_self_original.txt
    personae converse chat train_self_original-bundle --about "I have two dogs. I work at night."
    """


# train -----------------------------------------------------------------------------------------------------------
@command("train")
@click.argument("path", metavar="DIALOGUES")
@_format
@click.option(
    "--out", metavar="BUNDLE", type=BundlePath, help="Where to write; the file's name with -bundle by default."
)
@_lm
@click.option(
    "--recipe",
    type=click.Choice(["mixture", "paper"]),
    default="mixture",
    show_default=True,
    help="Our own, or the second paper's.",
)
@_number("--prompts", 4, "Prompts of the bank; 1 is one prompt that the context shifts.")
@_number("--tokens", 8, "Virtual tokens of each, most of which they share.")
@click.option(
    "--placement",
    type=click.Choice(["prefix", "before", "system", "late"]),
    help="Where they stand; late by default, for the paper's recipe before.",
)
@click.option(
    "--selection",
    type=click.Choice(["hard", "mixture"]),
    default="hard",
    show_default=True,
    help="Who speaks: the likeliest prompt, or all of them, each by its weight.",
)
@_number("--steps", 400, "Training steps at most, of eight replies a batch.")
@_number("--batches", 1, "Batches a step; several processes share them.")
@_seed
@click.option("--resume", is_flag=True, help="Go on where an interrupted run with the same settings stopped.")
def train(
    path: str,
    format: str | None,
    out: Path | None,
    lm: str,
    recipe: Any,
    prompts: int,
    tokens: int,
    placement: Any,
    selection: Any,
    steps: int,
    batches: int,
    seed: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Learn a bank of prompts from DIALOGUES and write a bundle.

    The turns of those who have persona sentences are learned, or those of everybody where nobody has.

    \b
    personae converse train train_self_original.txt --prompts 4 --tokens 8
    personae converse train chitchat --steps 100 --out chitchat-bundle
    torchrun --nproc-per-node 2 -m personae converse train chitchat --batches 2
    """
    from personae.bundle import Bundle
    from personae.bundle_files import check_replaceable

    out = out or Path(Path(path).stem + "-bundle")
    check_replaceable(out)
    if (out / "manifest.json").exists():
        raise click.ClickException(f"{out} is a bundle already; give another --out, or remove it")
    checkpoint = out.with_name(out.name + ".training")
    if resume and not checkpoint.exists():
        raise click.ClickException(f"there is no interrupted run to resume: {checkpoint} does not exist")
    if not resume and checkpoint.exists():
        click.echo(f"starting anew; {checkpoint} of an interrupted run (--resume) is replaced", err=True)
    dialogues, source = _read(path, format)

    from personae.steering.selective import Selective
    from personae.training.loop import best_figures, is_first_process

    if not as_json and is_first_process():
        click.echo(f"{dialogues!r}\n{dialogues.account}")
    bank: dict[str, Any] = {"recipe": recipe, "n_prompts": prompts, "n_tokens": tokens, "placement": placement}
    how: dict[str, Any] = {"selection": selection, "steps": steps, "batches": batches, "random_state": seed}
    steerer = Selective(lm, **bank, **how)
    try:
        steerer.fit(dialogues, checkpoint=checkpoint, resume=resume, progress=True)
    except KeyboardInterrupt:
        if checkpoint.exists():
            again = [a for a in sys.argv[1:] if a != "--resume"] + ["--resume"]
            click.echo(f"\ngo on with: personae {shlex.join(again)}", err=True)
        raise
    if not is_first_process():
        return
    with doing("writing the bundle"):
        Bundle.write(out, steerer=steerer, dialogues=dialogues, account=dialogues.account, source=source)
    checkpoint.unlink(missing_ok=True)
    best = best_figures(steerer.history_)
    if as_json:
        used = {"prompts": prompts, "prompts_in_use": steerer.effective_prompts_, "collapsed": steerer.collapsed_}
        print_json({"bundle": out, "dialogues": dialogues.account.as_dict(), "validation": best, **used})
        return
    click.echo(f"NLL {best['nll']:.3f} a token of held-out replies after {best['step']} steps")
    if prompts > 1:
        click.echo(f"prompts in use: {steerer.effective_prompts_:.1f} of {prompts}")
    if steerer.collapsed_:
        click.echo(
            f"the bank has collapsed: it is in truth one prompt, not {prompts}; more steps or dialogues may help"
        )
    name = shlex.quote(str(out))
    click.echo(f'\nbundle: {out}\n\ntry next\n  personae converse chat {name} --about "I have two dogs."')
    click.echo(f"  personae converse inspect {name}")


def _read(path: str, format: str | None = None) -> tuple[Dialogues, dict[str, Any]]:
    """Dialogues, and the arguments with which they can be read again from anywhere."""
    from personae.data.read_dialogues import read_dialogues

    with doing(f"reading {path}"):
        dialogues = read_dialogues(path, format)
    where = path if path == "chitchat" else str(Path(path).expanduser().resolve())
    return dialogues, {"path": where, "format": format}


# evaluate --------------------------------------------------------------------------------------------------------
@command("evaluate")
@click.argument("path", metavar="DIALOGUES", default="chitchat")
@_format
@click.option(
    "--test", metavar="FILE", help="Dialogues to be tested on, once; by default a share of DIALOGUES is held out."
)
@click.option(
    "--part",
    type=click.Choice(["test", "choices"]),
    default="test",
    show_default=True,
    help="Which is examined: choose on choices, a share of DIALOGUES that nothing else sees.",
)
@click.option(
    "--held-out",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Of DIALOGUES, for choices (and the same for the test where there is no file).",
)
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Trained rows, result.json, result.md, replies.txt and figures; conversations by default. "
    "The same call goes on there.",
)
@click.option(
    "--row", "rows", metavar="NAME", multiple=True, help="Of the table, may be repeated (see --list); all by default."
)
@click.option("--list", "listed", is_flag=True, help="Name the rows and stop.")
@_number("--contexts", None, "True replies whose NLL is read; all by default.", least=2)
@_number("--swapped", 1000, "Of these, with somebody else's persona, too.", least=0)
@_number("--replies", 1000, "Contexts that every row replies to.", least=2)
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of the replies; 0 is greedy. Replies that were made otherwise are kept for the next call.",
)
@click.option(
    "--top-p",
    metavar="P",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest words that have this share.",
)
@click.option(
    "--budget",
    metavar="MINUTES",
    type=click.FloatRange(0, min_open=True),
    help="For all that is measured, training not counted; a smaller sample is taken if it has to be, and another one "
    "for another budget.",
)
@_lm
@_number("--prompts", 4, "Prompts K of a bank.")
@_number("--tokens", 8, "Virtual tokens n of each.")
@_number("--steps", 400, "Training steps at most, of eight replies each.")
@_seed
@click.option("--encoder", metavar="NAME", help="For embedding_similarity: minilm, or a folder.")
@click.option("--bert", metavar="FOLDER", help="An encoder for BERTScore.")
@_number("--bert-layer", 9, "Its layer whose output stands for the words.")
def evaluate(
    path: str,
    format: str | None,
    test: str | None,
    part: str,
    held_out: float,
    out: Path | None,
    rows: tuple[str, ...],
    listed: bool,
    contexts: int | None,
    swapped: int,
    replies: int,
    temperature: float,
    top_p: float,
    budget: float | None,
    lm: str,
    prompts: int,
    tokens: int,
    steps: int,
    seed: int,
    encoder: str | None,
    bert: str | None,
    bert_layer: int,
    as_json: bool,
) -> None:
    """Train every way to reply on DIALOGUES, and compare them in the same contexts.

    From the raw language model to selective prompt tuning and fine-tuning: NLL of the true reply, with its own persona
    and with somebody else's; replies, how near they are to the true one and how varied; use of the prompts.
    Four rows without a model (human, constant, copy, random) say what a figure is worth. 95 % intervals by bootstrap
    over dialogues.

    \b
    personae converse evaluate train_self_original.txt --test valid_self_original.txt
    personae converse evaluate chitchat --row "raw LM" --row SPT --budget 20
    """
    from personae.evaluation.talk_rows import TALK_ROWS

    if listed:
        _list(TALK_ROWS, as_json)
        return
    from personae.evaluation.converse import converse as run
    from personae.evaluation.likeness import BertScore
    from personae.evaluation.talk_plan import make_talk_plan
    from personae.lm.encoder import SentenceEncoder

    dialogues, source = _read(path, format)
    tested, from_test = _read(test, format) if test is not None else (None, None)
    plan = make_talk_plan(dialogues, tested, part, held_out, contexts, swapped, replies, seed)
    out = out or Path("conversations")
    read = {name: Path(known["path"]).name for name, known in (("dialogues", source), ("test", from_test)) if known}
    found = run(
        plan,
        out,
        rows or None,
        lm,
        prompts,
        tokens,
        steps,
        seed,
        temperature=temperature,
        top_p=top_p,
        budget=budget,
        encoder=None if encoder is None else SentenceEncoder.load(encoder),
        bert=None if bert is None else BertScore.load(bert, bert_layer),
        about={
            "source": read,
            "encoder": encoder,
            "bert": None if bert is None else f"{Path(bert).name}, {bert_layer}",
        },
        say=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(found)
        return
    _print(found)
    click.echo(f"\nresult.json, result.md, replies.txt (some of all rows, side by side) and figures are in {out}")


def _list(rows: dict[str, Any], as_json: bool) -> None:
    about = {name: " ".join((row.speaker.__doc__ or "").split()) for name, row in rows.items()}
    if as_json:
        print_json(about)
        return
    lines = table("row", "what it is")
    for name, text in about.items():
        lines.add_row(name, text)
    print_table(lines)


def _print(found: dict[str, Any]) -> None:
    from personae.evaluation.talk_table import BRIEF, choice_table, decoded, use_table, wide

    sizes = found["sizes"]
    click.echo(
        f"{sizes['contexts']:,} true replies, {sizes['swapped']:,} of them with somebody else's persona, too; "
        f"{sizes['replies']:,} {decoded(found['settings'])}\n"
    )
    for headers, lines in (wide(found, BRIEF), use_table(found["prompts"]), choice_table(found["prompts"])):
        if not lines:
            continue
        made = table(headers[0], *(f">{header}" for header in headers[1:]))
        made.padding = 0, 2, 0, 0
        for column in made.columns[1:]:
            column.no_wrap = True  # where a window is narrow, names are broken before figures are cut
        for line in lines:
            made.add_row(*line)
        print_table(made, indent=0)
        click.echo()


# chat ------------------------------------------------------------------------------------------------------------
@command("chat")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.option("--about", metavar="SENTENCES", default="", help="Who it is: what it is told before the conversation.")
@click.option("--once", metavar="MESSAGE", help="Say this, print the reply, and end.")
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(0),
    default=0.7,
    show_default=True,
    help="0 always takes the likeliest word.",
)
@_seed
def chat(folder: Path, about: str, once: str | None, temperature: float, seed: int, as_json: bool) -> None:
    """Talk with a bank of prompts; the end of input (Ctrl-D) ends the conversation.

    \b
    /why              which prompt replied, and how probable each was
    /about SENTENCES  talk with somebody else, from the start
    /reset            forget what was said
    /quit             end
    """
    steerer = _bank(open_bundle(folder))
    talk = _Talk(steerer, about, {"temperature": temperature, "top_p": 0.9, "seeds": [seed]}, as_json)
    if once is not None:
        talk.say(once)
        return
    click.echo(_HELP, err=True)
    for line in typed_lines():
        if line == "/quit":
            return
        talk.take(line)


def _bank(bundle: Bundle) -> Selective:
    """The bundle's bank of prompts; another steerer is refused."""
    method = (bundle.manifest["steerer"] or {}).get("method")
    if method != "selective":
        raise click.ClickException(
            f"{bundle.folder.name} holds no bank of prompts; make one with: personae converse train DIALOGUES"
            + (f" (talk with its people by: personae chat {bundle.folder.name} --as NAME)" if method else "")
        )
    with doing("loading the language model"):
        steerer: Selective = bundle.steerer
    return steerer


class _Talk:
    def __init__(self, steerer: Selective, about: str, how: dict[str, Any], as_json: bool) -> None:
        self.steerer, self.about, self.how, self.as_json = steerer, about, how, as_json
        self.messages: list[dict[str, str]] = []
        self.heard: list[dict[str, str]] = []  # what the last reply followed

    def take(self, line: str) -> None:
        """One line of input: a word to us, or a message."""
        word, _, rest = line.partition(" ")
        if not line:
            return
        if word == "/why":
            click.echo(self.why() if self.heard else "nothing was said yet", err=True)
        elif word in ("/about", "/reset"):
            self.about = rest.strip() if word == "/about" else self.about
            self.messages, self.heard = [], []
            click.echo("forgotten" if word == "/reset" else f"about: {self.about}", err=True)
        elif line.startswith("/"):
            click.echo(_HELP, err=True)
        else:
            self.say(line)

    def say(self, message: str) -> None:
        """Print the reply as it is made (with JSON, when it is complete) and remember both."""
        from personae.people.persona import ANYONE

        self.messages = [*self.messages[-REMEMBERED:], {"role": "user", "content": message}]
        told = [{"role": "system", "content": self.about}] if self.about else []
        self.heard = [*told, *self.messages]
        pieces = []
        for (piece,) in self.steerer.stream(self.heard, [ANYONE], **self.how):
            pieces.append(piece)
            if not self.as_json:
                click.echo(piece, nl=False)
        reply = "".join(pieces).strip()
        self.messages.append({"role": "assistant", "content": reply})
        if self.as_json:
            said = {"about": self.about, "message": message, "reply": reply, "prompts": self.probabilities()}
            click.echo(json.dumps(said, ensure_ascii=False))
        else:
            click.echo()

    def probabilities(self) -> list[float]:
        """Of each prompt, in the context of the last reply."""
        return [float(p) for p in self.steerer.choose([self.heard])[0]]

    def why(self) -> str:
        """Which prompt replied."""
        p = self.probabilities()
        if len(p) == 1:
            return "this bank has one prompt"
        each = ", ".join(f"prompt {k} {percent(share)}" for k, share in enumerate(p))
        if self.steerer.selection == "mixture":
            return f"all prompts together, to begin with: {each}"
        return f"prompt {p.index(max(p))} replied: {each}"


# inspect ---------------------------------------------------------------------------------------------------------
@command("inspect")
@click.argument("folder", metavar="BUNDLE", type=BundlePath)
@click.argument("path", metavar="[DIALOGUES]", required=False)
@_format
@_number("--dialogues", 100, "How many of them are read, at random.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of the figure (PNG, SVG, PDF); BUNDLE's name with -prompts.png by default.",
)
@_seed
def inspect(
    folder: Path, path: str | None, format: str | None, dialogues: int, out: Path | None, seed: int, as_json: bool
) -> None:
    """Draw which prompts are used, over the turns of a conversation and over people.

    DIALOGUES are those that BUNDLE was trained on, unless others are given.
    """
    import numpy as np

    from personae.data.dialogues import Dialogues
    from personae.evaluation.prompt_use import mutual_information, prompt_use
    from personae.evaluation.talk_figures import draw_use, use_by_person, use_by_turn
    from personae.evaluation.talk_plan import who
    from personae.steering.selective import COLLAPSED
    from personae.steering.turns import as_messages, within

    bundle = open_bundle(folder)
    source = {**bundle.manifest["data"]["source"], **({"path": path, "format": format} if path else {})}
    steerer = _bank(bundle)
    everything, _ = _read(**source)
    order = np.sort(np.random.default_rng(seed).permutation(len(everything))[:dialogues])
    some = Dialogues([everything[int(i)] for i in order])
    examples = some.examples(None if any(d.personas for d in some) else "each")
    with doing(f"choosing prompts for {len(examples):,} replies"):
        p = steerer.choose([as_messages(within(steerer.lm_, e)) for e in examples])
    used = p if steerer.selection == "mixture" else np.eye(p.shape[1])[p.argmax(1)]
    use, of_person = prompt_use(used), mutual_information(np.array([who(e) for e in examples]), used, seed=seed)
    by_turn, by_person = use_by_turn(examples, used), use_by_person(examples, used)
    out = out or Path(folder.name + "-prompts.png")
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("figures need matplotlib, which is not installed; run: pip install 'personae[eval]'")
    draw_use(by_turn, by_person).savefig(out, dpi=150)
    if as_json:
        print_json(
            {
                "figure": out,
                "replies": len(examples),
                "share": use.share.tolist(),
                "prompts_in_use": use.effective,
                "undecided": prompt_use(p).undecided,
                "person": of_person._asdict(),
                "by_turn": by_turn.reset_index().to_dict("records"),
                "by_person": by_person.reset_index().to_dict("records"),
            }
        )
        return
    lines = table("", *(f">prompt {k}" for k in range(p.shape[1])), ">replies")
    lines.columns[0].no_wrap = True
    lines.add_row("all", *(percent(share) for share in use.share), f"{len(p):,}")
    turns = ((f"own turn {turn}", row) for turn, row in by_turn.iterrows())
    people = (
        (textwrap.shorten(str(person), 44, placeholder=" …"), row) for person, row in by_person.head(8).iterrows()
    )
    for name, row in (*turns, *people):
        lines.add_row(name, *(percent(share) for share in row[:-1]), f"{int(row.iloc[-1]):,}")
    print_table(lines, indent=0)
    collapsed = ": it is in truth one prompt" if p.shape[1] > 1 and use.effective < COLLAPSED else ""
    click.echo(f"\nprompts in use: {use.effective:.1f} of {p.shape[1]}{collapsed}")
    click.echo(
        f"what the person says about the prompt: {of_person.excess:.3f} nats beyond chance (p = {of_person.p:.3f})"
    )
    click.echo(f"figure: {out}")


for _command in (train, evaluate, chat, inspect):
    converse.add_command(_command)
