"""The command `dfl`: build the book, run one chapter, list parameters, check the published results."""

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from dfl_utils.build import chapter as chapters
from dfl_utils.store import processes, provenance


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 1 where the build or the results failed, or 2 for bad input, after one line on stderr. A rank beside
        rank 0 that fails is no failure of the run: it says so, and the others do its part.
    """
    arguments, rank = parser().parse_args(argv), 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few letters shows "?" for another, after hours of work
        sys.stdout.reconfigure(errors="replace")
    try:
        rank = processes.place().rank
        code = arguments.command(arguments) or 0
    except (ValueError, OSError) as error:
        code = _complain(error, 2)
    except chapters.BuildFailed as error:
        code = _complain(error, 1)
    except KeyboardInterrupt:
        code = _complain("stopped; the same command goes on where this one was", 130)
    except Exception:
        if not rank:
            raise
        traceback.print_exc()
        code = 1
    if rank and code:
        print(f"dfl: rank {rank} stops here, and the others do its part", file=sys.stderr)
    return 0 if rank else code


def parser() -> argparse.ArgumentParser:
    """The command line of `dfl`."""
    top = argparse.ArgumentParser(prog="dfl", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    models = argparse.ArgumentParser(add_help=False, parents=[settings])
    text = "what is asked for: all of the book (default), or ranking what is one's own"
    models.add_argument("--for", dest="purpose", choices=("book", "rerank"), default="book", help=text)
    models.add_argument("--profile", default="mini", metavar="NAME", help="whose models and data (mini)")

    def add(name: str, command: Callable, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=parents)
        sub.set_defaults(command=command)
        return sub

    book = add("book", _book, "execute what changed and render the book")
    book.add_argument(
        "--scale",
        choices=chapters.SCALES,
        default="published",
        help="published (default): show the published run; ci, quick: compute afresh, smaller; full: compute the "
        "published run anew and publish it; paper: the paper's models and data",
    )
    book.add_argument(
        "--reuse",
        action="store_true",
        help="take what the run store and the published run hold; at full, publish on from it",
    )
    book.add_argument("--no-html", action="store_true", help="execute the chapters only")
    book.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", help="chapters at a time (2; paper: 1)")
    run = add("run", _run, "execute one chapter", settings)
    text = "as `dfl chapters` names it; `dfl chapters CHAPTER` lists what -p can set"
    run.add_argument("chapter", metavar="CHAPTER", help=text)
    run.add_argument("--scale", choices=chapters.SCALES, help="start from params/SCALE.yml, not from the defaults")
    text = "execute a chapter for each combination of values, and compare them on one page"
    sweep = add("sweep", _of("build.sweep"), text)
    sweep.add_argument("chapter", metavar="CHAPTER", help="as of `dfl run`")
    text = "a parameter and its values, by commas (by semicolons where one holds a comma)"
    sweep.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), help=text)
    sweep.add_argument("--scale", choices=chapters.SCALES, help="as of `dfl run`")
    sweep.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", help="runs at a time (one a core)")
    known = add("chapters", _chapters, "list the chapters and their parameters")
    known.add_argument("chapter", nargs="?", metavar="CHAPTER", help="of which; of all if none is named")
    add("check", _of("build.publish"), "say which files have changed since the commit of the published results")
    add("answers", _of("build.front"), "write README's table of answers anew, from the published rows")
    golden = add("golden", _of("build.golden"), "compare a build at scale ci with results/ci/exhibits.csv")
    golden.add_argument("--write", action="store_true", help="write that file anew in place of comparing")
    verify = add("verify", _of("build.verify"), "recompute some published numbers from nothing, and compare")
    verify.add_argument("what", nargs="?", metavar="CHAPTER|EXHIBIT", help="of which; some chapters if none is named")
    verify.add_argument("--rows", type=int, default=10, metavar="N", help="how many rows that agree are shown (10)")
    verify.add_argument("--seed", type=int, metavar="S", help="draws chapters and shards (today's date)")
    verify.add_argument(
        "--minutes", type=float, default=10.0, metavar="M", help="how long it may compute, by recorded costs (10)"
    )
    text = "compare judges of captions with people: Flickr8k-Expert and -CF, Composite, Pascal-50S, FOIL"
    people = add("people", _of("game.people"), text, settings)
    people.add_argument("folder", metavar="FOLDER", help="of the published files, with the images anywhere beneath")
    people.add_argument("--profile", default="paper", metavar="NAME", help="whose models judge (paper)")
    people.add_argument("--judges", nargs="+", default=["CLIPScore", "likelihood", "denoising"], metavar="JUDGE")
    people.add_argument("-o", "--output", type=Path, default="people.csv", metavar="CSV", help="(people.csv)")
    text = "rank the captions of a folder's images by what the generator draws from them"
    rank = add("rerank", _of("build.ranked"), text, settings)
    rank.add_argument("folder", metavar="FOLDER", help="of images")
    text = "a file of captions (JSON Lines, CSV, COCO's JSON); the captioner writes some if left out"
    rank.add_argument("captions", nargs="?", metavar="CAPTIONS", help=text)
    rank.add_argument("-o", "--output", type=Path, default="ranked.csv", metavar="CSV", help="(ranked.csv)")
    rank.add_argument("--html", type=Path, metavar="HTML", help="a page with images, drawings and captions")
    rank.add_argument("--profile", default="mini", metavar="NAME", help="whose models (mini); -p sets its fields")
    rank.add_argument(
        "--similarity", choices=("clip", "dino", "efficientnet"), default="clip", help="that ranks (clip)"
    )
    text = "drawing, or, by the models' losses, which draw nothing, denoising or likelihood (drawing)"
    rank.add_argument("--judge", choices=("drawing", "denoising", "likelihood"), default="drawing", help=text)
    rank.add_argument("--candidates", type=int, default=10, metavar="N", help="that the captioner writes (10)")
    rank.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise (0)")
    add("data", _data, "write the embedded world's data sets")
    add("quality", _of("mini.quality_report"), "measure the embedded models")
    text = "say what chapters would cost with other parameters, on this CPU or on a GPU"
    cost = add("cost", _of("build.cost"), text, settings)
    cost.add_argument("exhibit", nargs="*", help="chapters or exhibits, such as table3; all if none is named")
    cost.add_argument("--scale", choices=chapters.SCALES, default="paper", help="of params/SCALE.yml (paper)")
    cost.add_argument("--gpu", metavar="NAME", help="of the table of cards (paper: H100, which was measured)")
    cost.add_argument("--here", action="store_true", help="measure how fast this machine's processor is, first")
    cost.add_argument("--price", type=float, metavar="Y", help="of an hour, in any currency; none is known here")
    add("doctor", _doctor, "say what this machine lacks for a profile's experiment, and how to mend it", models)
    fetch = add("fetch", _fetch, "download what it lacks: resumed after a break, sizes and hashes checked", models)
    fetch.add_argument("--only", nargs="+", default=[], metavar="NAME", help="ids of models, names of files")
    fetch.add_argument("--accept", nargs="+", default=[], metavar="LICENCE", help="accept a licence that you have read")
    return top


def _of(module: str) -> Callable[[argparse.Namespace], int | None]:
    """A module's `main`; imported when it is called, since torch takes seconds."""
    return lambda arguments: importlib.import_module(f"dfl_utils.{module}").main(arguments)


def _complain(error: object, code: int) -> int:
    print(f"dfl: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _book(arguments: argparse.Namespace) -> None:
    from dfl_utils.build import book

    # A GPU holds one chapter's models; on a CPU every chapter has a core of its own.
    jobs = arguments.jobs or (1 if arguments.scale == "paper" else min(2, os.cpu_count() or 1))
    here = processes.place()
    jobs = 1 if here.world_size > 1 else jobs  # ranks work on one chapter at a time, together
    html = not arguments.no_html and here.rank == 0
    index = book.build(arguments.scale, html=html, jobs=jobs, reuse=arguments.reuse)
    if index:
        print(f"the book: {index}")


def _run(arguments: argparse.Namespace) -> None:
    from dfl_utils.build import ranges

    source = chapters.find(arguments.chapter)
    values = chapters.check(source, dict(arguments.p), typed=True)
    whole = chapters.effective(source, chapters.at_scale(source, arguments.scale or "published") | values)
    ranges.check(source.stem, whole)
    from dfl_utils.build import cost, execution  # these take seconds
    from dfl_utils.exhibits import answers

    print(cost.estimate(source.stem, whole), flush=True)
    with execution.environment(DFL_PROGRESS=os.environ.get("DFL_PROGRESS", "1")):
        print(f"executed copy: {execution.run_chapter(source.stem, values, arguments.scale)}")
    rows = execution.folder("results") / "run" / f"{source.stem}.csv"
    if rows.is_file():
        print(answers.of_run(source.stem, rows, int(whole.get("NUM_SEEDS", 0))) or "")


def _chapters(arguments: argparse.Namespace) -> None:
    for source in [chapters.find(arguments.chapter)] if arguments.chapter else chapters.sources().values():
        print(source.stem)
        for key, parameter in chapters.parameters(source).items():
            comment = f"  # {parameter.comment}" if parameter.comment else ""
            print(f"  {key} = {parameter.default!r}{comment}")


def _data(arguments: argparse.Namespace) -> None:
    from dfl_utils.world import splits

    splits.write(provenance.ROOT / "data" / "mini" / "world")


def _profile(arguments: argparse.Namespace):
    from dfl_utils.world import profile

    return profile.configured(profile.with_fields(arguments.profile, arguments.p))


def _doctor(arguments: argparse.Namespace) -> int:
    from dfl_utils.build import doctor

    profile = _profile(arguments)
    print(f"what profile {profile.name} needs here:")
    findings = doctor.examine(profile, purpose=arguments.purpose)
    print("\n".join(map(str, findings)))
    gaps = sum(not finding.ok for finding in findings)
    print(f"{gaps} gap{'s' * (gaps != 1)}" if gaps else "nothing is missing")
    return 1 if gaps else 0


def _fetch(arguments: argparse.Namespace) -> None:
    from dfl_utils.build import fetch

    print("\n".join(fetch.run(_profile(arguments), arguments.only, arguments.accept, arguments.purpose)))


if __name__ == "__main__":  # as torchrun starts it
    sys.exit(main())
