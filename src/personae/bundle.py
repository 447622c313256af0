"""`Bundle`: the folder that holds everything fitted, written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personae.bundle_files import PARTS, BundleError, checked_manifest, linker, location, read_manifest, replace

if TYPE_CHECKING:
    from personae.data.account import Account
    from personae.data.dialogues import Dialogues
    from personae.people.cohorts import Cohorts
    from personae.people.opinion_model import OpinionModel
    from personae.people.persona import Persona
    from personae.scale.everybody import Everybody

_TERM = re.compile(r"\s*(\d*\.?\d+)\s*\*\s*(.+?)\s*", re.DOTALL)  # 0.7*cohort-0
_BETWEEN_TERMS = re.compile(r"\+(?=\s*\d*\.?\d+\s*\*)")  # a plus before a weight: trait values may hold others


class Bundle:
    """An opened bundle: a checked manifest, and parts that load when they are first used.

    Parameters
    ----------
    folder : Path
        Where it is.
    manifest : dict
        What `manifest.json` says: ``schema``, ``created``, ``personae`` (version), ``seeds``, ``data`` (fingerprint,
        source, the reader's account), ``steerer`` (method, placement, LM fingerprint; or None) and ``files`` (bytes and
        sha256 of each).

    Notes
    -----
    Tables are Parquet, tensors safetensors, the rest JSON: nothing in a bundle is code. It holds person vectors and
    traits, but no answers.

    Examples
    --------
    >>> import tempfile
    >>> from personae import Cohorts, OpinionModel, load_sample
    >>> survey = load_sample()
    >>> people = OpinionModel(n_components=4).fit(survey)
    >>> folder = Path(tempfile.mkdtemp()) / "gss"
    >>> bundle = Bundle.write(folder, people, Cohorts(k=2).fit(people, survey), account=survey.account)
    >>> bundle = Bundle.open(folder)
    >>> bundle.persona("0.5*cohort-0+0.5*trait:partyid=strong democrat").name
    '0.5 cohort-0 + 0.5 partyid=strong democrat'
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    # opening ---------------------------------------------------------------------------------------------------
    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open a bundle after checking its manifest and the hash of every file.

        Raises
        ------
        BundleError
            There is none, it is of a newer version, or a file is missing, changed or foreign.
        """
        folder = Path(folder).resolve()
        return cls(folder, checked_manifest(folder))

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, token: str | None = None) -> Bundle:
        """Open a bundle of the Hugging Face hub (``owner/name``) or a folder; see `personae.export.hub.pull`."""
        from personae.export.hub import pull

        return cls.open(pull(name, revision, token))

    @cached_property
    def people(self) -> OpinionModel:
        """The opinion model."""
        from personae.people.opinion_model import OpinionModel

        return OpinionModel.load(self.part("people"))

    @cached_property
    def everybody(self) -> Everybody:
        """All people, where they are too many for the opinion model to hold more than a random sample of them."""
        from personae.scale.everybody import Everybody

        return Everybody(self.part("everybody"), self.people)

    @cached_property
    def cohorts(self) -> Cohorts:
        """The cohorts."""
        from personae.people.cohorts import Cohorts

        return Cohorts.load(self.part("cohorts"))

    @cached_property
    def steerer(self) -> Any:
        """The steerer with its LM; another LM than the one it was trained with raises ``ValueError``."""
        folder = self.part("steerer")
        method = self.manifest["steerer"]["method"]
        module = f"personae.steering.{method}"
        if not str(method).isidentifier() or importlib.util.find_spec(module) is None:
            raise BundleError(f"this personae does not know the method {method} of {self.folder}; upgrade personae")
        importlib.import_module(module)  # a method registers itself

        from personae.steering.base import REGISTRY

        return REGISTRY[method].load(folder)

    def __contains__(self, part: str) -> bool:
        return any(name.startswith(part + "/") for name in self.manifest["files"])

    def part(self, part: str) -> Path:
        """Folder of a part; raises `BundleError` if there is none, or the bundle was replaced since it was opened."""
        if part not in self:
            if "people" not in self:
                raise BundleError(f"the bundle {self.folder} was trained on dialogues and has no {part}")
            if part == "everybody":
                raise BundleError(f"the opinion model of the bundle {self.folder} holds all people: see people")
            made = "steer" if part == "steerer" else "fit"
            raise BundleError(f"the bundle {self.folder} has no {part}; make them with: personae {made}")
        if read_manifest(self.folder) != self.manifest:
            raise BundleError(f"the bundle {self.folder} was replaced while it was open; open it again")
        return location(self.folder) / part

    # personas --------------------------------------------------------------------------------------------------
    def persona(self, name: str) -> Persona:
        """The persona of a name.

        Parameters
        ----------
        name : str
            A cohort (``"cohort-2"``), a respondent's id, a trait group (``"trait:partyid=strong democrat"``), or a
            weighted blend of these (``"0.7*cohort-0+0.3*r0007"``; weights are normalised). A bundle that was trained on
            dialogues knows ``"anyone"`` alone.

        Raises
        ------
        SurveyError
            Nobody has this name; the nearest ones are named.
        """
        from personae.people.persona import ANYONE, Persona

        if "people" not in self:
            if name != ANYONE.name:
                raise BundleError(
                    f'the bundle {self.folder} was trained on dialogues and knows nobody by name: speak as "anyone", '
                    "and say in words who that is"
                )
            return ANYONE
        if (found := self._one(name)) is not None:
            return found
        terms = [_TERM.fullmatch(term) for term in _BETWEEN_TERMS.split(name)]
        if not all(terms):
            self._raise_unknown(name)
        weights: dict[Persona, float] = {}
        for weight, part in (term.groups() for term in terms if term):
            persona = self._one(part) or self._raise_unknown(part)
            weights[persona] = weights.get(persona, 0.0) + float(weight)
        return Persona.blend(weights)

    def _one(self, name: str) -> Persona | None:
        """A cohort, respondent or trait group, in this order."""
        from personae.data.account import SurveyError

        if "cohorts" in self and (mine := next((p for p in self.cohorts if p.name == name), None)) is not None:
            return mine
        if "everybody" in self:
            if name in self.everybody:
                return self.everybody[name]
        elif name in self.people.respondent_ids_:
            return self.people[name]
        if not name.startswith("trait:"):
            return None
        trait, equals, value = name.removeprefix("trait:").partition("=")
        if not equals:
            raise SurveyError(f'a trait group is written "trait:NAME=VALUE", not "{name}"')
        return self.people.trait_persona(trait, value)

    def _raise_unknown(self, name: str) -> Any:
        import pandas as pd

        from personae.data.survey import look_up

        cohorts = [p.name for p in self.cohorts] if "cohorts" in self else []
        look_up(pd.Index([*cohorts, *self.people.respondent_ids_], dtype=object), [name], "persona")

    # writing ---------------------------------------------------------------------------------------------------
    @classmethod
    def write(
        cls,
        folder: str | Path,
        people: OpinionModel | None = None,
        cohorts: Cohorts | None = None,
        steerer: Any = None,
        account: Account | None = None,
        source: Mapping[str, Any] | None = None,
        dialogues: Dialogues | None = None,
        everybody: Everybody | None = None,
    ) -> Bundle:
        """Write a new bundle; an existing one is replaced as a whole.

        Parameters
        ----------
        folder : str or Path
        people, cohorts, steerer
            What was fitted.
        account : Account, optional
            What the reader skipped and why; its counts are kept, the places are not.
        source : mapping, optional
            The arguments of `read_survey` or `read_dialogues`, so that the data can be found again.
        dialogues : Dialogues, optional
            What a steerer was trained on where there are no people.
        everybody : Everybody, optional
            All people, where ``people`` holds a sample of them (`personae.scale.als.fit_store`).

        Raises
        ------
        BundleError
            The folder holds something else than a bundle, or another process is writing it.
        """
        about: dict[str, Any] = {"source": dict(source or {}), "account": _without_places(account)}
        if people is not None:
            sizes = {"respondents": len(everybody or people), "questions": len(people.questions_)}
            about = {"fingerprint": people.fingerprint_, **sizes, **about}
        elif dialogues is not None and steerer is not None:
            sizes = {"dialogues": len(dialogues), "turns": sum(dialogues.speakers.values())}
            about = {"fingerprint": dialogues.fingerprint, **sizes, **about}
        else:
            raise ValueError("a bundle holds people, or a steerer with the dialogues that it was trained on")
        fitted = {"people": people, "cohorts": cohorts}
        seeds = {part: model.random_state for part, model in fitted.items() if model is not None}
        writers = {part: model.save for part, model in {**fitted, "steerer": steerer}.items() if model is not None}
        if everybody is not None:
            writers["everybody"] = linker(everybody.folder)
        return cls._write(Path(folder), writers, {"seeds": seeds, "data": about, "steerer": None}, steerer)

    def push_to_hub(self, repo_id: str, **how: Any) -> str:
        """Upload to the Hugging Face hub; see `personae.export.hub.push` for ``token``, ``private`` and others."""
        from personae.export.hub import push

        return push(self, repo_id, **how)

    def with_steerer(self, steerer: Any) -> Bundle:
        """Write this bundle again with another steerer, in place; the other parts are linked, not written."""
        writers = {part: linker(self.part(part)) for part in PARTS if part in self and part != "steerer"}
        return self._write(self.folder, {**writers, "steerer": steerer.save}, self.manifest, steerer)

    @classmethod
    def _write(
        cls, folder: Path, parts: Mapping[str, Callable[[Path], object]], facts: dict[str, Any], steerer: Any
    ) -> Bundle:
        if steerer is not None:
            about = {"method": steerer.method, "placement": steerer.placement_, "lm": dict(steerer.lm_fingerprint_)}
            facts = {**facts, "steerer": about, "seeds": {**facts["seeds"], "steerer": steerer.random_state}}
        folder = folder.resolve()
        return cls(folder, replace(folder, parts, {key: facts[key] for key in ("seeds", "data", "steerer")}))


def _without_places(account: Account | None) -> dict[str, Any] | None:
    """Counts say what was skipped; rows and columns would point at single people."""
    if account is None:
        return None
    notes = [{"reason": note.reason, "count": note.count} for note in account.notes]
    return {"source": account.source, "format": account.format, "notes": notes}
